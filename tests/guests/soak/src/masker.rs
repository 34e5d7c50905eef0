//! Masks and unmasks vectors, and sees that a masked one is quiet for as long.

use core::sync::atomic::Ordering;

use pvmsi_guest_runtime::timer;

use crate::ledger::{FIGURES, Slot, count};
use crate::subject::{self, Locked, Subject};
use crate::sync::{synchronise, wait};
use crate::{random, worker};

/// Vectors that are changed in one go.
const VECTORS: usize = 4;

/// Changes vectors at random until the round ends, and then unmasks them all.
pub(crate) fn work() -> Result<(), &'static str> {
    while worker::go_on() {
        for subject in subject::all() {
            change_some(subject)?;
        }
        // On a small host the vCPU that operates needs its processor.
        wait(timer::TICK_MS, || !worker::go_on());
    }
    for subject in subject::all() {
        let locked = subject.lock();
        synchronise()?;
        for (vector, slot) in subject.slots().take(subject.active.load(Ordering::Acquire).into()) {
            if slot.masked.load(Ordering::Acquire) {
                unmask(slot, &locked, vector);
            }
        }
    }
    Ok(())
}

/// Changes a few vectors in one go: waiting for all vCPUs is what takes the time.
fn change_some(subject: &Subject) -> Result<(), &'static str> {
    let active = subject.active.load(Ordering::Acquire);
    let first = random::with(|rng| rng.u16(..active.max(1)));
    let some = || subject.slots().take(active.into()).skip(first.into()).take(VECTORS);
    let locked = subject.lock();
    synchronise()?;
    for (vector, slot) in some() {
        if slot.masked.load(Ordering::Acquire) {
            unmask(slot, &locked, vector);
        } else {
            locked.mask(vector)?;
            slot.masked.store(true, Ordering::Release);
        }
        count(&FIGURES.mask_changes, 1);
    }
    synchronise()?;
    for (_, slot) in some().filter(|(_, slot)| slot.masked.load(Ordering::Acquire)) {
        slot.quiet.store(slot.taken(), Ordering::Release);
    }
    Ok(())
}

/// Unmasks a vector that has been masked and quiet since; all vCPUs have handled what they had pending.
fn unmask(slot: &Slot, locked: &Locked<'_>, vector: u16) {
    count(&FIGURES.while_masked, slot.taken().wrapping_sub(slot.quiet.load(Ordering::Acquire)));
    slot.masked.store(false, Ordering::Release);
    locked.unmask(vector);
}
