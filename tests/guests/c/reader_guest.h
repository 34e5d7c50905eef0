/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What reader_guest.c needs of the architecture. */
#ifndef READER_GUEST_H
#define READER_GUEST_H

#include "../../conformance/reader/reader.h"

/* Sets how the service is asked for: CPUID and a port, a conduit, or a register that is known. */
void reader_platform(const void *handoff, struct reader_host *host);

#endif
