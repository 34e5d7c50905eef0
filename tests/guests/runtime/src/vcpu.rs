//! Waiting, and giving other vCPUs work.

use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use crate::interrupts::{self, ticks};
use crate::timer::{Stopwatch, TICK_MS};
use crate::{VCPUS_MAX, arch};

/// What a vCPU can be told to do; it gets its index.
pub type Work = fn(index: usize);

static ONLINE: AtomicUsize = AtomicUsize::new(0);
static WORK: [AtomicPtr<()>; VCPUS_MAX] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; VCPUS_MAX];

/// The index of the vCPU that runs this.
pub fn index() -> usize {
    arch::vcpu_index()
}

pub(crate) fn online() {
    ONLINE.fetch_add(1, Ordering::AcqRel);
}

/// vCPUs that have started.
pub fn count() -> usize {
    ONLINE.load(Ordering::Acquire)
}

/// Waits asleep until `done`, at most about `milliseconds`; says whether it is done. Interrupts are on meanwhile and off afterwards. Needs the tick on this vCPU.
pub fn wait_until(milliseconds: u32, mut done: impl FnMut() -> bool) -> bool {
    let start = ticks();
    let patience = (milliseconds / TICK_MS).saturating_add(1);
    loop {
        interrupts::disable();
        if done() {
            return true;
        }
        if ticks().wrapping_sub(start) > patience {
            return false;
        }
        interrupts::enable_and_sleep();
    }
}

/// Waits with interrupts off, spinning, until `done`, at most so many milliseconds (4000 at most); says whether it is done. Takes the timer: no tick comes afterwards.
pub fn spin_until(milliseconds: u32, mut done: impl FnMut() -> bool) -> bool {
    const GLANCES: u32 = 1000;
    for _ in 0..GLANCES {
        if done() {
            return true;
        }
        core::hint::spin_loop();
    }
    let stopwatch = Stopwatch::start();
    loop {
        for _ in 0..GLANCES {
            if done() {
                return true;
            }
            core::hint::spin_loop();
        }
        if stopwatch.milliseconds() >= milliseconds {
            return false;
        }
    }
}

/// Waits until `expected` vCPUs have started; returns how many have. Needs the tick.
pub fn settle(expected: usize) -> usize {
    wait_until(5000, || count() >= expected);
    count()
}

/// Makes another vCPU, which must be in [`serve`], do something. False when it still does something else.
pub fn start(index: usize, work: Work) -> bool {
    let Some(slot) = WORK.get(index) else { return false };
    let work = work as *mut ();
    let idle = core::ptr::null_mut();
    if slot.compare_exchange(idle, work, Ordering::AcqRel, Ordering::Acquire).is_err() {
        return false;
    }
    interrupts::send(index, interrupts::WAKE);
    true
}

/// Whether a vCPU has done what it was told.
pub fn is_idle(index: usize) -> bool {
    WORK.get(index).is_some_and(|slot| slot.load(Ordering::Acquire).is_null())
}

/// Does what [`start`] says, for ever.
pub fn serve(index: usize) -> ! {
    let Some(slot) = WORK.get(index) else { crate::park() };
    loop {
        interrupts::disable();
        let work = slot.load(Ordering::Acquire);
        if work.is_null() {
            interrupts::enable_and_sleep();
            continue;
        }
        // SAFETY: only `start` stores here, and only this type.
        let work = unsafe { core::mem::transmute::<*mut (), Work>(work) };
        work(index);
        slot.store(core::ptr::null_mut(), Ordering::Release);
    }
}
