//! arm64: the SMC Calling Convention, by HVC or SMC.

use pvmsi_guest::{Conduit, NativeDoorbell, Offer, SmcccDoorbell, discover};

use crate::doorbell::{PVMSI_CONDUIT_HVC, PVMSI_CONDUIT_SMC, PVMSI_DOORBELL_SMCCC, pvmsi_doorbell};
use crate::offer::{answer, pvmsi_offer};
use crate::pointer::output;
use crate::status::pvmsi_status;

/// Asks the host whether it offers the service, by an SMCCC call. Do this once, at boot.
///
/// `conduit` is PVMSI_CONDUIT_HVC or PVMSI_CONDUIT_SMC and must be the one that the platform
/// names (the `method` of the device tree's `psci` node, or the PSCI flags of ACPI's FADT): a
/// host that does not know the call answers so; without a host the instruction is undefined.
/// Usable with interrupts off, before anything is initialised.
///
/// Returns PVMSI_STATUS_NOT_SUPPORTED when there is no service, PVMSI_STATUS_DOORBELL when there
/// is no such conduit, PVMSI_STATUS_POINTER.
///
/// # Safety
/// `offer`: where the offer shall be written; not NULL, else PVMSI_STATUS_POINTER.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvmsi_discover(conduit: u32, offer: *mut pvmsi_offer) -> pvmsi_status {
    let Some(conduit) = conduit_of(conduit) else { return pvmsi_status::Doorbell };
    // SAFETY: condition 1 of the crate.
    pvmsi_status::of(unsafe { output(offer) }.and_then(|offer| answer(offer, discover(conduit))))
}

/// The conduit that found the offer: kind and number.
pub(crate) fn pick_doorbell(offer: &Offer) -> Option<(u32, u32)> {
    let number = match offer.conduit() {
        Conduit::Hvc => PVMSI_CONDUIT_HVC,
        Conduit::Smc => PVMSI_CONDUIT_SMC,
    };
    Some((PVMSI_DOORBELL_SMCCC, number))
}

/// The doorbell of a kind and number that C has given.
///
/// # Safety
/// As [`SmcccDoorbell::new`].
pub(crate) unsafe fn native_doorbell(doorbell: &pvmsi_doorbell) -> Option<NativeDoorbell> {
    let conduit = conduit_of(doorbell.number)?;
    // SAFETY: the caller's condition.
    (doorbell.kind == PVMSI_DOORBELL_SMCCC).then(|| unsafe { SmcccDoorbell::new(conduit) })
}

fn conduit_of(number: u32) -> Option<Conduit> {
    match number {
        PVMSI_CONDUIT_HVC => Some(Conduit::Hvc),
        PVMSI_CONDUIT_SMC => Some(Conduit::Smc),
        _ => None,
    }
}
