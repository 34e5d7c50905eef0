//! Discovery by CPUID.

use pvmsi_guest::{AnyDoorbell, discover};
use pvmsi_guest_runtime::Platform;

use super::identity_mapped;

/// The doorbell that the host offers. `Some(None)`: an offer without one that the guest can use.
pub(super) fn doorbell(_platform: Platform) -> Option<Option<AnyDoorbell>> {
    let offer = discover()?;
    // SAFETY:
    // 1. Device memory below 4 GiB is mapped where it is, on every vCPU, for good.
    // 2. The guest runs at privilege level 0.
    Some(unsafe { AnyDoorbell::from_offer(&offer, identity_mapped) })
}
