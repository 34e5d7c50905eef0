//! Waiting for interrupts that are under way.

use core::sync::atomic::{AtomicU32, Ordering};

use pvmsi_guest_runtime::interrupts::{self, FIRST_OWN};
use pvmsi_guest_runtime::vcpu;

use crate::{VCPUS_MAX, worker};

/// A vCPU takes it after all interrupts of devices that it has pending: it is below all of theirs.
pub(crate) const SYNC: u8 = FIRST_OWN;

/// How long another vCPU or a device may take for one thing, in milliseconds: KVM waits for all vCPUs when memory slots change, which takes seconds on a machine that has other things to do.
pub(crate) const PATIENCE: u32 = 60_000;
/// As long as a vCPU's stopwatch goes.
const TURN: u32 = 4000;

static TAKEN: [AtomicU32; VCPUS_MAX] = [const { AtomicU32::new(0) }; VCPUS_MAX];

/// Counts a [`SYNC`] interrupt.
pub(crate) fn taken(vcpu: usize) {
    if let Some(taken) = TAKEN.get(vcpu) {
        taken.fetch_add(1, Ordering::Release);
    }
}

/// Spins until `done`, at most [`PATIENCE`]; says whether it is done. Not on vCPU 0, whose tick would end.
pub(crate) fn spin_until(mut done: impl FnMut() -> bool) -> bool {
    (0..PATIENCE / TURN).any(|_| vcpu::spin_until(TURN, &mut done))
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
        if !spin_until(came) {
            return Err("a vCPU does not take interrupts");
        }
    }
    Ok(())
}
