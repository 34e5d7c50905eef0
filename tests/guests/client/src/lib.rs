//! The connection of a bare-metal guest to PV-MSI.
#![no_std]

#[cfg_attr(target_arch = "x86_64", path = "discovery/x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "discovery/aarch64.rs")]
mod arch;

use core::ptr::NonNull;

use pvmsi_guest::{AnyDoorbell, CallBuffer, Client};
use pvmsi_guest_runtime::{Platform, memory, report};

/// Enough for 2048 vectors.
const BUFFER_BYTES: usize = 64 << 10;

/// A client through whichever doorbell the host offers.
pub type ServiceClient = Client<'static, AnyDoorbell>;

/// Connects; `None` when the host does not offer the service. An offer that does not hold is a failure of the run.
pub fn connect(platform: Platform) -> Option<ServiceClient> {
    let Some(doorbell) = arch::doorbell(platform)? else {
        report::failure(format_args!("the host offers PV-MSI without a usable doorbell"));
        return None;
    };
    let Some(area) = memory::allocate(BUFFER_BYTES) else {
        report::failure(format_args!("no RAM left for the call buffer; give the guest more"));
        return None;
    };
    // SAFETY:
    // 1. The area is valid, zeroed and never taken back.
    // 2. It is handed out to nobody else.
    // 3. Its address is its guest physical address.
    // 4. It is RAM.
    let buffer = unsafe { CallBuffer::new(area.start(), area.bytes(), area.physical()) }?;
    let mut client = Client::new(buffer, doorbell, delay);
    match client.negotiate() {
        Ok(_) => Some(client),
        Err(error) => {
            report::failure(format_args!("negotiate: {error}"));
            None
        }
    }
}

fn identity_mapped(address: u64) -> Option<NonNull<u32>> {
    let address = u32::try_from(address).ok().filter(|address| address.is_multiple_of(4))?;
    NonNull::new(core::ptr::with_exposed_provenance_mut(usize::try_from(address).ok()?))
}

/// Waits a little: an upper bound, where an instruction may take from a nanosecond to a microsecond.
fn delay(microseconds: u32) {
    for _ in 0..microseconds.saturating_mul(10) {
        core::hint::spin_loop();
    }
}
