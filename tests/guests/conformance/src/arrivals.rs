//! The interrupts of devices, in the order in which they have arrived.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use pvmsi_guest_runtime::interrupts::FIRST_DEVICE;
use pvmsi_guest_runtime::msi::Route;
use pvmsi_guest_runtime::vcpu;

/// Interrupts of devices that each vCPU takes: those of the suite's messages.
const EACH: u16 = 200;
/// Arrivals that can wait to be looked at; more are lost, and a test that makes so many fails.
const ROOM: usize = 4096;

/// Numbers plus 1; 0 where none has arrived.
static LOG: [AtomicU16; ROOM] = [const { AtomicU16::new(0) }; ROOM];
static ARRIVED: AtomicUsize = AtomicUsize::new(0);
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// Where the message with a number of the suite's goes.
pub(crate) fn route(number: u16) -> Route {
    let step = u8::try_from(number.checked_rem(EACH).unwrap_or(0)).unwrap_or(0);
    Route {
        vcpu: usize::from(number.checked_div(EACH).unwrap_or(0)),
        interrupt: FIRST_DEVICE.saturating_add(step),
    }
}

/// The handler of all interrupts.
pub(crate) fn handle(interrupt: u8) {
    let Some(step) = interrupt.checked_sub(FIRST_DEVICE) else { return };
    let vcpu = u16::try_from(vcpu::index()).unwrap_or(0);
    let number = vcpu.saturating_mul(EACH).saturating_add(u16::from(step));
    let place = ARRIVED.fetch_add(1, Ordering::AcqRel);
    if let Some(slot) = LOG.get(place.checked_rem(ROOM).unwrap_or(0)) {
        slot.store(number.saturating_add(1), Ordering::Release);
    }
}

/// How many have arrived since the guest started.
pub(crate) fn count() -> usize {
    ARRIVED.load(Ordering::Acquire)
}

/// The numbers that have arrived since the last look.
pub(crate) fn take() -> Vec<u16> {
    let end = count();
    let start = TAKEN.swap(end, Ordering::AcqRel);
    (start..end)
        .filter_map(|place| {
            let slot = LOG.get(place.checked_rem(ROOM)?)?;
            loop {
                // A handler on another vCPU may still be between its two steps.
                if let Some(number) = slot.swap(0, Ordering::AcqRel).checked_sub(1) {
                    return Some(number);
                }
                core::hint::spin_loop();
            }
        })
        .collect()
}
