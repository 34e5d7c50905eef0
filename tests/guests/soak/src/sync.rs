//! Waiting for interrupts that are under way.

use core::sync::atomic::{AtomicU32, Ordering};

use pvmsi_guest_runtime::interrupts::{self, FIRST_OWN, WAKE};
use pvmsi_guest_runtime::{timer, vcpu};

use crate::{VCPUS_MAX, worker};

/// A vCPU takes it after all interrupts of devices that it has pending: it is below all of theirs.
pub(crate) const SYNC: u8 = FIRST_OWN;

/// How long another vCPU or a device may take for one thing, in milliseconds: KVM waits for all vCPUs when memory slots change, which takes seconds on a machine that has other things to do.
pub(crate) const PATIENCE: u32 = 60_000;
/// Glances before a vCPU goes to sleep.
const GLANCES: u32 = 50;

static TAKEN: [AtomicU32; VCPUS_MAX] = [const { AtomicU32::new(0) }; VCPUS_MAX];

/// Counts a [`SYNC`] interrupt.
pub(crate) fn taken(vcpu: usize) {
    if let Some(taken) = TAKEN.get(vcpu) {
        taken.fetch_add(1, Ordering::Release);
    }
}

/// Waits until `done`, at most so many milliseconds, on any vCPU; says whether it is done. Interrupts are on afterwards.
///
/// Asleep for most of the time: KVM may wait for a vCPU that spins, and those that have work need
/// the processors. `done` runs with interrupts off, so it must not wait itself.
pub(crate) fn wait(milliseconds: u32, mut done: impl FnMut() -> bool) -> bool {
    for _ in 0..GLANCES {
        if done() {
            return true;
        }
        core::hint::spin_loop();
    }
    // Others may have stopped it.
    timer::start_tick();
    let result = vcpu::wait_until(milliseconds, done);
    interrupts::enable();
    result
}

/// Wakes all others, so that they look again at what they wait for.
pub(crate) fn wake_others() {
    let this = vcpu::index();
    for other in (0..worker::vcpus()).filter(|&other| other != this) {
        interrupts::send(other, WAKE);
    }
}

/// Returns when every vCPU has handled the device interrupts that it had pending; on a worker, with interrupts on.
///
/// Others may do the same at the same time, so one [`SYNC`] more proves nothing: it may have been
/// taken already when this began. The second one has begun afterwards.
pub(crate) fn synchronise() -> Result<(), &'static str> {
    let vcpus = worker::vcpus();
    let targets = || TAKEN.iter().enumerate().take(vcpus);
    let mut before = [0; VCPUS_MAX];
    for (before, taken) in before.iter_mut().zip(&TAKEN) {
        *before = taken.load(Ordering::Acquire);
    }
    for count in 1..=2 {
        targets().for_each(|(target, _)| interrupts::send(target, SYNC));
        let came = || {
            let mut pairs = targets().zip(&before);
            pairs.all(|((_, taken), &before)| {
                taken.load(Ordering::Acquire).wrapping_sub(before) >= count
            })
        };
        if !wait(PATIENCE, came) {
            return Err("a vCPU does not take interrupts");
        }
    }
    Ok(())
}
