//! Interrupts by number, and the one handler of a guest.
//!
//! Numbers mean the same on every architecture. On one vCPU, a device's
//! interrupt comes before any lower number that waits, and the handler is
//! never interrupted.

use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use crate::{VCPUS_MAX, vcpu};

pub use crate::arch::interrupts::{disable, enable, enable_and_sleep, send};

/// The tick of [`timer`](crate::timer).
pub const TICK: u8 = 0x20;
/// Wakes a vCPU that waits for work.
pub const WAKE: u8 = 0x21;
/// The first number that vCPUs may [`send`] each other for purposes of their own; there are 14.
pub const FIRST_OWN: u8 = 0x22;
/// The first number of devices.
pub const FIRST_DEVICE: u8 = 0x30;

/// Runs for each interrupt (the tick is counted before it), on the interrupted vCPU with interrupts off; the end of the interrupt is signalled after it.
pub type Handler = fn(number: u8);

static HANDLER: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());
static TICKS: [AtomicU32; VCPUS_MAX] = [const { AtomicU32::new(0) }; VCPUS_MAX];

/// Names the handler of all interrupts, for all vCPUs. Without one they are only counted off.
pub fn set_handler(handler: Handler) {
    HANDLER.store(handler as *mut (), Ordering::Release);
}

/// Ticks that this vCPU has taken, modulo 2^32.
pub fn ticks() -> u32 {
    TICKS.get(vcpu::index()).map_or(0, |ticks| ticks.load(Ordering::Relaxed))
}

/// Handles an interrupt that the architecture has taken.
pub(crate) fn dispatch(number: u8) {
    let handler = HANDLER.load(Ordering::Acquire);
    if number == TICK
        && let Some(ticks) = TICKS.get(vcpu::index())
    {
        ticks.fetch_add(1, Ordering::Relaxed);
    }
    if !handler.is_null() {
        // SAFETY: only `set_handler` stores here, and only this type.
        let handler = unsafe { core::mem::transmute::<*mut (), Handler>(handler) };
        handler(number);
    }
}
