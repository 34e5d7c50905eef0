/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Where PV-MSI is on x86_64: CPUID says it. */
#include "machine.h"

bool machine_doorbell(const void *handoff, struct pvmsi_doorbell *doorbell)
{
    struct pvmsi_offer offer;

    (void)handoff;
    if (pvmsi_discover(&offer) != PVMSI_STATUS_SUCCESS)
        return false;
    *doorbell = offer.doorbell;
    if (doorbell->kind == PVMSI_DOORBELL_MMIO) /* identity mapped */
        doorbell->pointer = (void *)(uintptr_t)offer.doorbell_address;
    return true;
}
