/* SPDX-License-Identifier: Apache-2.0 OR MIT */
#include <stddef.h>

#include "aarch64.h"
#include "reader_guest.h"

/* SMCCC 1.0: a call may change X0 to X17. */
static void hvc(void *ctx, uint64_t x[4])
{
    register uint64_t x0 __asm__("x0") = x[0];
    register uint64_t x1 __asm__("x1") = x[1];
    register uint64_t x2 __asm__("x2") = x[2];
    register uint64_t x3 __asm__("x3") = x[3];

    (void)ctx;
    __asm__ volatile("hvc #0"
                     : "+r"(x0), "+r"(x1), "+r"(x2), "+r"(x3)
                     :
                     : "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14",
                       "x15", "x16", "x17", "memory");
    x[0] = x0, x[1] = x1, x[2] = x2, x[3] = x3;
}

/* The node that W-124 describes. Both halves of the register's address are 32-bit cells. */
void reader_platform(const void *handoff, struct reader_host *host)
{
    uint32_t bytes;
    const uint8_t *reg = device_tree_service(handoff, "reg", &bytes);

    if (reg != NULL && bytes >= 8) {
        host->bell = READER_REGISTER;
        host->bell_at = (uint64_t)read_be32(reg) << 32 | read_be32(reg + 4);
    } else if (device_tree_service(handoff, "method", &bytes) != NULL) {
        host->smccc = hvc; /* this machine's PSCI has no other conduit */
    }
}
