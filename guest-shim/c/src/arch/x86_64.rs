//! x86_64: CPUID, and an I/O port.

use pvmsi_guest::{NativeDoorbell, Offer, PortDoorbell, discover};

use crate::doorbell::{PVMSI_DOORBELL_PORT, pvmsi_doorbell};
use crate::offer::{answer, pvmsi_offer};
use crate::pointer::output;
use crate::status::pvmsi_status;

/// Asks the processor whether the host offers the service. Do this once, at boot.
///
/// Scans the CPUID hypervisor leaves; on other hosts that finds nothing and has no effect. Usable
/// with interrupts off, before anything is initialised.
///
/// Returns PVMSI_STATUS_NOT_SUPPORTED when there is no service, PVMSI_STATUS_POINTER.
///
/// # Safety
/// `offer`: where the offer shall be written; not NULL, else PVMSI_STATUS_POINTER.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvmsi_discover(offer: *mut pvmsi_offer) -> pvmsi_status {
    // SAFETY: condition 1 of the crate.
    pvmsi_status::of(unsafe { output(offer) }.and_then(|offer| answer(offer, discover())))
}

/// The port that the offer names: kind and number.
pub(crate) fn pick_doorbell(offer: &Offer) -> Option<(u32, u32)> {
    Some((PVMSI_DOORBELL_PORT, offer.block.doorbell_port?.into()))
}

/// The doorbell of a kind and number that C has given.
///
/// # Safety
/// As [`PortDoorbell::new`].
pub(crate) unsafe fn native_doorbell(doorbell: &pvmsi_doorbell) -> Option<NativeDoorbell> {
    let port = u16::try_from(doorbell.number).ok().filter(|&port| port != 0)?;
    // SAFETY: the caller's condition.
    (doorbell.kind == PVMSI_DOORBELL_PORT).then(|| unsafe { PortDoorbell::new(port) })
}
