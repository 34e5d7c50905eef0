//! Discovery by the device tree and by an SMCCC call.

use pvmsi_guest::{AnyDoorbell, Conduit, MmioDoorbell, discover};
use pvmsi_guest_runtime::{Conduit as PlatformConduit, Platform};

use super::identity_mapped;

/// The doorbell that the host offers. `Some(None)`: an offer without one that the guest can use.
pub(super) fn doorbell(platform: Platform) -> Option<Option<AnyDoorbell>> {
    if let Some(address) = platform.doorbell_register {
        // SAFETY:
        // 1. Device memory below 4 GiB is mapped where it is, on every vCPU, for good.
        // 2. The device tree says that the doorbell is there.
        let mmio = |register| AnyDoorbell::Mmio(unsafe { MmioDoorbell::new(register) });
        return Some(identity_mapped(address).map(mmio));
    }
    let conduit = match platform.conduit {
        PlatformConduit::Hvc => Conduit::Hvc,
        PlatformConduit::Smc => Conduit::Smc,
    };
    let offer = discover(conduit)?;
    // SAFETY:
    // 1. As above.
    // 2. The guest runs at EL1.
    Some(unsafe { AnyDoorbell::from_offer(&offer, identity_mapped) })
}
