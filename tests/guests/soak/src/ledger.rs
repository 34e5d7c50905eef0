//! What was raised, what came, and what must have come.
//!
//! A *slot* is a vector of a function with an interrupt number of its own, the
//! same on each vCPU.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use pvmsi_guest_report::Soak;
use pvmsi_guest_runtime::interrupts::FIRST_DEVICE;
use pvmsi_guest_runtime::mmio::Register;
use pvmsi_guest_runtime::{report, vcpu};

use crate::VCPUS_MAX;
use crate::sync::{self, SYNC};

/// Interrupt numbers of devices on one vCPU.
pub(crate) const SLOTS: usize = 192;
/// Failures that are told one by one.
const TOLD: u64 = 10;

/// A vector and its account.
#[derive(Debug)]
pub(crate) struct Slot {
    /// Interrupts that each vCPU has taken, modulo 2^32.
    taken: [AtomicU32; VCPUS_MAX],
    /// In a burst: the device's count of events, as a handler saw it last.
    seen: AtomicU32,
    /// Where a handler reads that count; 0 outside of a burst, when the device may be out of reach.
    events_at: AtomicUsize,
    /// At the start of the round: events, messages and interrupts.
    base: [AtomicU32; 3],
    /// An event of the round came before something that drops events.
    pub(crate) excused: AtomicBool,
    /// The guest's mask bit.
    pub(crate) masked: AtomicBool,
    /// Interrupts taken when the masked vector had become quiet.
    pub(crate) quiet: AtomicU32,
    /// The host has handed an event over, to be delivered when the vector is unmasked.
    pub(crate) held: AtomicBool,
    /// The vCPU that the vector was sent to last.
    pub(crate) target: AtomicU8,
}

static LEDGER: [Slot; SLOTS] = [const {
    Slot {
        taken: [const { AtomicU32::new(0) }; VCPUS_MAX],
        seen: AtomicU32::new(0),
        events_at: AtomicUsize::new(0),
        base: [const { AtomicU32::new(0) }; 3],
        excused: AtomicBool::new(false),
        masked: AtomicBool::new(true),
        quiet: AtomicU32::new(0),
        held: AtomicBool::new(false),
        target: AtomicU8::new(0),
    }
}; SLOTS];

/// Figures of the run so far.
pub(crate) static FIGURES: Figures = Figures {
    rounds: AtomicU64::new(0),
    events: AtomicU64::new(0),
    interrupts: AtomicU64::new(0),
    merged: AtomicU64::new(0),
    dropped: AtomicU64::new(0),
    lost: AtomicU64::new(0),
    doubled: AtomicU64::new(0),
    while_masked: AtomicU64::new(0),
    operations: AtomicU64::new(0),
    mask_changes: AtomicU64::new(0),
};

/// As [`Soak`], to be counted by several vCPUs.
pub(crate) struct Figures {
    pub(crate) rounds: AtomicU64,
    events: AtomicU64,
    interrupts: AtomicU64,
    merged: AtomicU64,
    dropped: AtomicU64,
    lost: AtomicU64,
    doubled: AtomicU64,
    pub(crate) while_masked: AtomicU64,
    pub(crate) operations: AtomicU64,
    pub(crate) mask_changes: AtomicU64,
}

impl Figures {
    pub(crate) fn read(&self) -> Soak {
        let read = |figure: &AtomicU64| figure.load(Ordering::Acquire);
        Soak {
            rounds: read(&self.rounds),
            events: read(&self.events),
            interrupts: read(&self.interrupts),
            merged: read(&self.merged),
            dropped: read(&self.dropped),
            lost: read(&self.lost),
            doubled: read(&self.doubled),
            while_masked: read(&self.while_masked),
            operations: read(&self.operations),
            mask_changes: read(&self.mask_changes),
        }
    }
}

/// Counts up.
pub(crate) fn count(figure: &AtomicU64, by: u32) {
    figure.fetch_add(by.into(), Ordering::AcqRel);
}

/// How a round accounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Account {
    /// One interrupt for each event.
    Exact,
    /// Events of a vector may merge.
    Merging,
}

/// The slots from `first` on.
pub(crate) fn slots(first: usize) -> impl Iterator<Item = &'static Slot> {
    LEDGER.iter().skip(first)
}

/// The interrupt handler.
pub(crate) fn handle(number: u8) {
    let this = vcpu::index();
    if number == SYNC {
        sync::taken(this);
    }
    let Some(index) = number.checked_sub(FIRST_DEVICE).map(usize::from) else { return };
    let Some(slot) = LEDGER.get(index) else { return };
    if let Some(taken) = slot.taken.get(this) {
        taken.fetch_add(1, Ordering::AcqRel);
    }
    let address = slot.events_at.load(Ordering::Acquire);
    if address != 0 {
        // SAFETY: the conductor says that the device's counter can be read there.
        let events = unsafe { Register::<u32>::at(address) }.read();
        slot.seen.fetch_max(events, Ordering::AcqRel);
    }
}

impl Slot {
    /// Interrupts taken, on all vCPUs, modulo 2^32.
    pub(crate) fn taken(&self) -> u32 {
        self.taken.iter().fold(0, |sum, taken| sum.wrapping_add(taken.load(Ordering::Acquire)))
    }

    /// The device's count of events at the start of the round.
    pub(crate) fn events_before(&self) -> u32 {
        let [events, ..] = &self.base;
        events.load(Ordering::Acquire)
    }

    /// Opens the account of a round. All that came before is settled; an interrupt that has come since then counts in this round.
    pub(crate) fn open(&self, events: u32, sent: u32, events_at: usize) {
        let [base_events, base_sent, _] = &self.base;
        base_events.store(events, Ordering::Release);
        base_sent.store(sent, Ordering::Release);
        self.seen.store(events, Ordering::Release);
        self.excused.store(false, Ordering::Release);
        self.events_at.store(events_at, Ordering::Release);
    }

    /// Whether all that must come has come.
    pub(crate) fn is_complete(&self, account: Account, events: u32) -> bool {
        let raised = events.wrapping_sub(self.events_before());
        self.missing(account, events, raised, self.came()) == 0
    }

    fn came(&self) -> u32 {
        let [.., interrupts] = &self.base;
        self.taken().wrapping_sub(interrupts.load(Ordering::Acquire))
    }

    /// Closes the account: everything that may come has come. `name` is for the report.
    pub(crate) fn settle(&self, account: Account, events: u32, sent: u32, name: &str, vector: u16) {
        let [_, base_sent, interrupts] = &self.base;
        self.events_at.store(0, Ordering::Release);
        let raised = events.wrapping_sub(self.events_before());
        let messages = sent.wrapping_sub(base_sent.load(Ordering::Acquire));
        // Read once: an interrupt that comes now is the next round's.
        let taken = self.taken();
        let came = taken.wrapping_sub(interrupts.swap(taken, Ordering::AcqRel));
        let missing = self.missing(account, events, raised, came);
        // A message for each event at most, an interrupt for each message at most.
        let doubled = came.saturating_sub(messages.min(raised));
        let gone = raised.saturating_sub(came).saturating_sub(missing);
        let excused = self.excused.load(Ordering::Acquire);
        count(&FIGURES.events, raised);
        count(&FIGURES.interrupts, came);
        count(if excused { &FIGURES.dropped } else { &FIGURES.merged }, gone);
        count(&FIGURES.lost, missing);
        count(&FIGURES.doubled, doubled);
        let wrong = FIGURES.lost.load(Ordering::Acquire);
        let wrong = wrong.saturating_add(FIGURES.doubled.load(Ordering::Acquire));
        if (missing != 0 || doubled != 0) && wrong <= TOLD {
            report::failure(format_args!(
                "{name} round, slot of vector {vector}: {raised} events, {messages} messages, {came} interrupts, excused {excused}"
            ));
        }
    }

    fn missing(&self, account: Account, events: u32, raised: u32, came: u32) -> u32 {
        if raised == 0 || self.excused.load(Ordering::Acquire) {
            return 0;
        }
        match account {
            Account::Exact => raised.saturating_sub(came),
            Account::Merging => u32::from(self.seen.load(Ordering::Acquire) != events),
        }
    }
}
