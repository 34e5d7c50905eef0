//! Waiting, and giving other vCPUs work.

use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use x86_64::instructions::interrupts::{self as flag, enable_and_hlt};

use crate::entry::STACK_BYTES;
use crate::interrupts::ticks;
use crate::memory::PAGE;
use crate::{VCPUS_MAX, apic};

/// Wakes a vCPU that waits for work. Below all device vectors, so that a device's interrupts come first.
pub const WAKE_VECTOR: u8 = 0x21;

/// What a vCPU can be told to do; it gets its index.
pub type Work = fn(index: usize);

unsafe extern "C" {
    /// The end of the image; the linker defines it. The stacks follow it.
    static _end: u8;
}

static ONLINE: AtomicUsize = AtomicUsize::new(0);
static WORK: [AtomicPtr<()>; VCPUS_MAX] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; VCPUS_MAX];

/// The index of the vCPU that runs this, from where its stack lies: cheaper than the local APIC's id.
pub fn index() -> usize {
    let here = 0u8;
    let stacks = (&raw const _end).addr().next_multiple_of(PAGE);
    (&raw const here).addr().saturating_sub(stacks) / STACK_BYTES
}

pub(crate) fn online() {
    ONLINE.fetch_add(1, Ordering::AcqRel);
}

/// vCPUs that have started.
pub fn count() -> usize {
    ONLINE.load(Ordering::Acquire)
}

/// Waits with HLT until `done`, at most about `milliseconds`; says whether it is done. Interrupts are on meanwhile and off afterwards. Needs the tick on this vCPU.
pub fn wait_until(milliseconds: u32, mut done: impl FnMut() -> bool) -> bool {
    let start = ticks();
    let patience = (milliseconds / apic::TICK_MS).saturating_add(1);
    loop {
        flag::disable();
        if done() {
            return true;
        }
        if ticks().wrapping_sub(start) > patience {
            return false;
        }
        enable_and_hlt();
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
    let stopwatch = apic::Stopwatch::start();
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

/// How many vCPUs the machine has: CPUID leaf 1, EBX bits 23 to 16.
pub fn expected() -> usize {
    #[allow(unused_unsafe, reason = "safe since Rust 1.94, unsafe before")]
    // SAFETY: every x86_64 processor has CPUID.
    let leaf = unsafe { core::arch::x86_64::__cpuid(1) };
    let [_, _, count, _] = leaf.ebx.to_le_bytes();
    usize::from(count).clamp(1, VCPUS_MAX)
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
    if let Ok(target) = u8::try_from(index) {
        apic::send_ipi(target, WAKE_VECTOR);
    }
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
        flag::disable();
        let work = slot.load(Ordering::Acquire);
        if work.is_null() {
            enable_and_hlt();
            continue;
        }
        // SAFETY: only `start` stores here, and only this type.
        let work = unsafe { core::mem::transmute::<*mut (), Work>(work) };
        work(index);
        slot.store(core::ptr::null_mut(), Ordering::Release);
    }
}
