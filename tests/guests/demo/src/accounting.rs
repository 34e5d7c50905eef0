//! Which interrupts came, and whether each had a reason.
//!
//! Interrupt numbers are fewer than vectors, so a run looks at a *window* of
//! consecutive vectors at a time; within a window each vector has an interrupt
//! number of its own, and every interrupt can be told. Only the window's
//! vectors have events then.
//!
//! The handler runs on vCPU 0 alone; other vCPUs read what it counts.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use pvmsi_guest_runtime::interrupts::{FIRST_DEVICE, FIRST_OWN};
use pvmsi_guest_runtime::mmio::Register;

use crate::device::VECTORS;

/// The masker sends this to vCPU 0 to learn that all device interrupts before it have been handled: it is below all of theirs, so they come first.
pub(crate) const SYNC: u8 = FIRST_OWN;

/// Messages that may be behind an interrupt that has not come yet, at the time of another of the
/// same vector: one pending at the vCPU, one held or under way on the host, one counted but not
/// sent yet. Credit beyond that is for messages that have merged, and is forgotten: an interrupt
/// too many shall not live on it.
const CREDIT_MAX: u32 = 3;

/// One vector of the window.
#[derive(Debug)]
struct Slot {
    /// Interrupts taken.
    taken: AtomicU32,
    /// EVENTS of the vector, as the handler saw it last.
    seen: AtomicU32,
    /// SENT of the vector, as the handler saw it last.
    sent: AtomicU32,
    /// Messages that may still become an interrupt.
    credit: AtomicU32,
}

static SLOTS: [Slot; VECTORS as usize] = [const {
    Slot {
        taken: AtomicU32::new(0),
        seen: AtomicU32::new(0),
        sent: AtomicU32::new(0),
        credit: AtomicU32::new(0),
    }
}; VECTORS as usize];

/// Guest physical address of EVENTS of the window's first vector.
static EVENTS: AtomicUsize = AtomicUsize::new(0);
/// The same of SENT.
static SENT: AtomicUsize = AtomicUsize::new(0);
/// Vectors in the window.
static LENGTH: AtomicUsize = AtomicUsize::new(0);
/// Interrupts without a message behind them.
static SPURIOUS: AtomicU32 = AtomicU32::new(0);
/// What the handler knew when it took the first of them: see [`first_spurious`].
static FIRST_SPURIOUS: [AtomicU32; 4] = [const { AtomicU32::new(0) }; 4];
/// [`SYNC`] interrupts taken.
static SYNCS: AtomicU32 = AtomicU32::new(0);

/// Starts a window. No interrupt of the function may be under way.
pub(crate) fn open(events: usize, sent: usize, length: u16) {
    EVENTS.store(events, Ordering::Relaxed);
    SENT.store(sent, Ordering::Relaxed);
    LENGTH.store(usize::from(length), Ordering::Relaxed);
    for (index, slot) in SLOTS.iter().enumerate() {
        let inside = index < usize::from(length);
        let now = |base: usize| if inside { counter(base, index).read() } else { 0 };
        slot.taken.store(0, Ordering::Relaxed);
        slot.seen.store(now(events), Ordering::Relaxed);
        slot.sent.store(now(sent), Ordering::Relaxed);
        slot.credit.store(0, Ordering::Release);
    }
}

/// Writes off events that no interrupt has told of, so that a later interrupt cannot make up for them. Returns [`seen`] from which to count. On vCPU 0, with interrupts off, while the device has nothing to do.
pub(crate) fn write_off() -> u32 {
    let events = EVENTS.load(Ordering::Relaxed);
    for (index, slot) in SLOTS.iter().take(LENGTH.load(Ordering::Relaxed)).enumerate() {
        slot.seen.store(counter(events, index).read(), Ordering::Relaxed);
    }
    seen()
}

/// Whether the handler has seen every event that the window's vectors had.
pub(crate) fn is_complete() -> bool {
    let events = EVENTS.load(Ordering::Relaxed);
    let mut slots = SLOTS.iter().take(LENGTH.load(Ordering::Relaxed)).enumerate();
    slots.all(|(index, slot)| slot.seen.load(Ordering::Relaxed) == counter(events, index).read())
}

/// EVENTS as the handler saw it, of all vectors of the window together, modulo 2^32.
pub(crate) fn seen() -> u32 {
    let slots = SLOTS.iter().take(LENGTH.load(Ordering::Relaxed));
    slots.fold(0, |sum, slot| sum.wrapping_add(slot.seen.load(Ordering::Relaxed)))
}

/// Interrupts taken of one vector of the window.
pub(crate) fn taken(index: u16) -> u32 {
    SLOTS.get(usize::from(index)).map_or(0, |slot| slot.taken.load(Ordering::Acquire))
}

/// Interrupts without a message behind them, since the guest started.
pub(crate) fn spurious() -> u32 {
    SPURIOUS.load(Ordering::Relaxed)
}

/// For a report of the first of them: its vector in the window, the window's length, messages that its vector had sent, interrupts of it taken.
pub(crate) fn first_spurious() -> [u32; 4] {
    [0, 1, 2, 3].map(|index: usize| {
        FIRST_SPURIOUS.get(index).map_or(0, |known| known.load(Ordering::Relaxed))
    })
}

/// [`SYNC`] interrupts taken, since the guest started, modulo 2^32.
pub(crate) fn syncs() -> u32 {
    SYNCS.load(Ordering::Acquire)
}

/// The interrupt handler.
pub(crate) fn handle(number: u8) {
    let Some(index) = number.checked_sub(FIRST_DEVICE).map(usize::from) else {
        if number == SYNC {
            count(&SYNCS);
        }
        return;
    };
    let Some(slot) = SLOTS.get(index) else { return };
    count(&slot.taken);
    if index >= LENGTH.load(Ordering::Relaxed) {
        spurious_interrupt(index, 0, slot);
        return;
    }
    let sent = counter(SENT.load(Ordering::Relaxed), index).read();
    let fresh = sent.wrapping_sub(slot.sent.load(Ordering::Relaxed));
    let credit = slot.credit.load(Ordering::Relaxed).wrapping_add(fresh);
    match credit.checked_sub(1) {
        None => spurious_interrupt(index, sent, slot),
        Some(credit) => slot.credit.store(credit.min(CREDIT_MAX), Ordering::Relaxed),
    }
    slot.sent.store(sent, Ordering::Relaxed);
    let events = counter(EVENTS.load(Ordering::Relaxed), index).read();
    slot.seen.store(events, Ordering::Relaxed);
}

#[cold]
fn spurious_interrupt(index: usize, sent: u32, slot: &Slot) {
    count(&SPURIOUS);
    if SPURIOUS.load(Ordering::Relaxed) == 1 {
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let known = [
            number(index),
            number(LENGTH.load(Ordering::Relaxed)),
            sent,
            slot.taken.load(Ordering::Relaxed),
        ];
        for (place, value) in FIRST_SPURIOUS.iter().zip(known) {
            place.store(value, Ordering::Relaxed);
        }
    }
}

/// Counts up what only the handler changes.
fn count(counter: &AtomicU32) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
}

fn counter(base: usize, index: usize) -> Register<u32> {
    // SAFETY: `open` got the addresses of counters of a software function, and
    // the index is inside the window.
    unsafe { Register::at(base.wrapping_add(index.wrapping_mul(4))) }
}
