/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* The kernel's names of types, as far as the wire layer needs them, in user space. */
#ifndef LINUX_TYPES_H
#define LINUX_TYPES_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef int32_t s32;
typedef uint64_t u64;
#endif
