/* SPDX-License-Identifier: Apache-2.0 OR MIT */
#include "reader_guest.h"

static void cpuid(void *ctx, uint32_t leaf, uint32_t words[4])
{
    (void)ctx;
    __asm__ volatile("cpuid"
                     : "=a"(words[0]), "=b"(words[1]), "=c"(words[2]), "=d"(words[3])
                     : "a"(leaf), "c"(0));
}

static void out32(void *ctx, uint16_t port, uint32_t value)
{
    (void)ctx;
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

void reader_platform(const void *handoff, struct reader_host *host)
{
    (void)handoff;
    host->cpuid = cpuid;
    host->out32 = out32;
}
