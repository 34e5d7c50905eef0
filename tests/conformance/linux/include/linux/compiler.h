/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What the wire layer needs of the kernel's header, in user space. */
#ifndef LINUX_COMPILER_H
#define LINUX_COMPILER_H
#define READ_ONCE(place) (*(const volatile __typeof__(place) *)&(place))
#endif
