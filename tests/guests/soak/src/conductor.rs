//! Rounds: opened, filled with events, and settled, on vCPU 0.

use core::sync::atomic::Ordering;

use pvmsi_guest::VectorIndex;
use pvmsi_guest_report::Event;
use pvmsi_guest_runtime::{interrupts, println, report, timer};

use crate::ledger::{Account, FIGURES, Slot, count};
use crate::subject::{self, Subject};
use crate::sync::{PATIENCE, synchronise, wait};
use crate::{random, worker};
use pvmsi_software::registers::{EVENTS, SENT, of_vector};

/// How long a late interrupt is waited for, in milliseconds.
const QUIET_TIME: u32 = 5000;
/// How long an event is waited for that may have been dropped, in milliseconds.
const AFTERMATH: u32 = 20;
/// The longest time between two events of a function, in nanoseconds.
const PACE_MAX: u32 = 400_000;
/// Milliseconds between two lines about how it stands.
const PROGRESS: u32 = 5000;
/// A run ends here at the latest: something is badly wrong.
const FAILURES_MAX: u64 = 1000;

/// What may happen in a round: see the table in `main.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    /// No operation at all: the platform gets to know every message.
    Warm,
    Exact,
    Burst,
    Reset,
}

impl Round {
    pub(crate) fn from_number(number: u8) -> Self {
        [Self::Exact, Self::Burst, Self::Reset]
            .into_iter()
            .find(|&round| round as u8 == number)
            .unwrap_or(Self::Warm)
    }

    fn random() -> Self {
        match random::with(|rng| rng.u8(..4)) {
            0 | 1 => Self::Exact,
            2 => Self::Burst,
            _ => Self::Reset,
        }
    }

    fn account(self) -> Account {
        if self == Self::Burst { Account::Merging } else { Account::Exact }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Warm => "warm-up",
            Self::Exact => "exact",
            Self::Burst => "burst",
            Self::Reset => "reset",
        }
    }
}

pub(crate) struct Conductor {
    vcpus: usize,
    ticks: u32,
}

impl Conductor {
    pub(crate) fn new(vcpus: usize, seconds: u64) -> Self {
        worker::set_vcpus(vcpus);
        let ticks = seconds.saturating_mul(u64::from(1000 / timer::TICK_MS));
        Self { vcpus, ticks: u32::try_from(ticks).unwrap_or(u32::MAX / 2) }
    }

    /// Runs rounds until the time is over.
    pub(crate) fn run(&self) {
        let start = interrupts::ticks();
        let mut told = start;
        report::send(&Event::Soak(FIGURES.read()));
        let targets = u8::try_from(self.vcpus).unwrap_or(1);
        let mut good = (0..targets).all(|target| self.round(Round::Warm, Some(target)));
        while good && interrupts::ticks().wrapping_sub(start) < self.ticks {
            good = self.round(Round::random(), None);
            if interrupts::ticks().wrapping_sub(told) >= PROGRESS / timer::TICK_MS {
                told = interrupts::ticks();
                progress(told.wrapping_sub(start));
                report::send(&Event::Soak(FIGURES.read()));
            }
        }
        progress(interrupts::ticks().wrapping_sub(start));
        report::send(&Event::Soak(FIGURES.read()));
    }

    /// One round; false when the run cannot go on. `target`: all interrupts go to this vCPU.
    fn round(&self, round: Round, target: Option<u8>) -> bool {
        for subject in subject::all() {
            if let Err(error) = self.open(subject, round, target) {
                report::failure(format_args!("{}: {error}", subject.id()));
                return false;
            }
        }
        if round != Round::Warm {
            worker::start(self.vcpus, round);
        }
        for subject in subject::all() {
            let (pace, times) = random::with(|rng| (rng.u32(..PACE_MAX), rng.u32(2..=8)));
            let active = subject.active.load(Ordering::Acquire);
            let times = if round == Round::Burst { times } else { 1 };
            let locked = subject.lock();
            locked.ask(active, u32::from(active).saturating_mul(times), pace);
        }
        let mut good = self.devices_are_done();
        if !good {
            report::failure(format_args!("{round:?} round: a device does not come to its end"));
        }
        worker::stop();
        if !wait(PATIENCE, || worker::are_idle(self.vcpus)) {
            report::failure(format_args!("{round:?} round: a vCPU does not come to its end"));
            good = false;
        }
        good && self.close(round)
    }

    /// Waits until the devices have raised all events that they were asked for.
    fn devices_are_done(&self) -> bool {
        (0..PATIENCE / timer::TICK_MS).any(|_| {
            wait(timer::TICK_MS, || false);
            subject::all().all(|subject| subject.lock().is_done())
        })
    }

    /// All is settled from before. Configures anew and opens the accounts.
    fn open(
        &self,
        subject: &Subject,
        round: Round,
        target: Option<u8>,
    ) -> Result<(), &'static str> {
        let locked = subject.lock();
        let active = match round {
            Round::Warm => subject.vectors,
            _ => random::with(|rng| rng.u16(1..=subject.vectors)),
        };
        subject.active.store(active, Ordering::Release);
        for (_, slot) in subject.slots() {
            slot.masked.store(false, Ordering::Release);
        }
        let targets = u8::try_from(self.vcpus).unwrap_or(1);
        let target = || target.unwrap_or_else(|| random::with(|rng| rng.u8(..targets)));
        worker::with_client(|client| locked.configure(client, active, target))
            .ok_or("no client")?
            .map_err(|_| "configure failed")?;
        for (vector, slot) in subject.slots() {
            let counter = of_vector(EVENTS, vector);
            let events_at = if round == Round::Burst { locked.address(counter) } else { 0 };
            slot.open(locked.counter(EVENTS, vector), locked.counter(SENT, vector), events_at);
        }
        Ok(())
    }

    /// Waits for what must come, and a little for what must not, and settles.
    fn close(&self, round: Round) -> bool {
        let account = round.account();
        let complete = wait(QUIET_TIME, || {
            subject::all().all(|subject| {
                // Nobody else has it now.
                let locked = subject.lock();
                let complete = |(vector, slot): (u16, &Slot)| {
                    slot.is_complete(account, locked.counter(EVENTS, vector))
                };
                locked.is_empty() && subject.slots().all(complete)
            })
        });
        if !complete {
            subject::all().for_each(|subject| describe(subject, account));
        }
        if round == Round::Reset {
            wait(AFTERMATH, || false);
        }
        // A handler may have seen an event whose own interrupt was still under way.
        if let Err(error) = synchronise() {
            report::failure(format_args!("{round:?} round: {error}"));
            return false;
        }
        for subject in subject::all() {
            let locked = subject.lock();
            for (vector, slot) in subject.slots() {
                let [events, sent] = [EVENTS, SENT].map(|kind| locked.counter(kind, vector));
                slot.settle(account, events, sent, round.name(), vector);
            }
        }
        count(&FIGURES.rounds, 1);
        let figures = FIGURES.read();
        figures.lost.saturating_add(figures.doubled) < FAILURES_MAX
    }
}

/// How vectors stand whose interrupts are missing: what the host says, and what the table holds.
fn describe(subject: &Subject, account: Account) {
    let locked = subject.lock();
    for (vector, slot) in subject.slots() {
        if slot.is_complete(account, locked.counter(EVENTS, vector)) && locked.is_empty() {
            continue;
        }
        let mut state = None;
        let answer = worker::with_client(|client| {
            let _ = client.query_vectors(subject.id(), VectorIndex(vector), 1, |_, found| {
                state = Some(found);
            });
            client.query_function(subject.id())
        });
        println!(
            "guest: {} vector {vector}: sent to vCPU {}, table {:x?}, host {state:x?}, {answer:x?}",
            subject.id(),
            slot.target.load(Ordering::Acquire),
            locked.entry(vector),
        );
    }
}

fn progress(ticks: u32) {
    let figures = FIGURES.read();
    println!(
        "guest: soak {:>5} s: {} rounds, {} operations, {} mask changes, {} events, {} interrupts, {} lost, {} doubled, {} while masked",
        ticks / (1000 / timer::TICK_MS),
        figures.rounds,
        figures.operations,
        figures.mask_changes,
        figures.events,
        figures.interrupts,
        figures.lost,
        figures.doubled,
        figures.while_masked,
    );
}
