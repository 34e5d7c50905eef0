/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Where PV-MSI is on arm64. */
#include <stddef.h>

#include "aarch64.h"

/* The device tree says what the host offers: a conduit, by which discovery asks for the rest, or
 * a register. Both halves of its address are 32-bit cells. */
bool machine_doorbell(const void *handoff, struct pvmsi_doorbell *doorbell)
{
    uint32_t bytes;
    const uint8_t *reg = device_tree_service(handoff, "reg", &bytes);

    if (reg != NULL && bytes >= 8) {
        const uint64_t address = (uint64_t)read_be32(reg) << 32 | read_be32(reg + 4);

        *doorbell = (struct pvmsi_doorbell){
            .kind = PVMSI_DOORBELL_MMIO,
            .pointer = (void *)address, /* identity mapped */
        };
        return true;
    }
    if (device_tree_service(handoff, "method", &bytes) != NULL) {
        struct pvmsi_offer offer;

        if (pvmsi_discover(PVMSI_CONDUIT_HVC, &offer) != PVMSI_STATUS_SUCCESS)
            return false;
        *doorbell = offer.doorbell;
        return true;
    }
    return false;
}
