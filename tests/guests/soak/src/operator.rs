//! Everything that a driver does beside masking, at random.

use core::sync::atomic::Ordering;

use pvmsi_guest::{CallError, VectorIndex};
use pvmsi_guest_client::ServiceClient;

use crate::conductor::Round;
use crate::ledger::{FIGURES, count};
use crate::subject::{self, Subject};
use crate::sync::synchronise;
use crate::worker::MASKER;
use crate::{random, worker};

/// How long a function stays in a state that it shall leave again, at most: turns of a loop.
const DWELL: u32 = 300;

#[derive(Clone, Copy, Debug)]
enum Operation {
    Update,
    Query,
    Restore,
    Configure,
    FunctionMask,
    Decoding,
    Power,
    BarMove,
    Release,
    Disable,
    Reset,
    ResetUnseen,
}

/// Keep events and the function's pages.
const GENTLE: [Operation; 5] = [
    Operation::Update,
    Operation::Query,
    Operation::Restore,
    Operation::Configure,
    Operation::FunctionMask,
];
/// Keep events; the pages go and come back.
const PAGES: [Operation; 3] = [Operation::Decoding, Operation::Power, Operation::BarMove];
/// Drop events that have not been delivered.
const DROPPING: [Operation; 4] =
    [Operation::Release, Operation::Disable, Operation::Reset, Operation::ResetUnseen];

/// Operates on this vCPU's share of the functions until the round ends.
pub(crate) fn work(
    client: &mut ServiceClient,
    vcpu: usize,
    round: Round,
) -> Result<(), &'static str> {
    let operators = subject::all().count().min(worker::vcpus().saturating_sub(MASKER + 1)).max(1);
    let this = vcpu.saturating_sub(MASKER + 1);
    while worker::go_on() {
        for (index, subject) in subject::all().enumerate() {
            if index.checked_rem(operators) != Some(this) {
                continue;
            }
            let operation = choose(round);
            operate(client, subject, operation)?;
            count(&FIGURES.operations, 1);
        }
        if this >= operators {
            // More vCPUs than functions: they only take interrupts.
            return Ok(());
        }
    }
    Ok(())
}

fn choose(round: Round) -> Operation {
    let operations = || {
        GENTLE
            .into_iter()
            .chain(PAGES.into_iter().filter(|_| round != Round::Burst))
            .chain(DROPPING.into_iter().filter(|_| round == Round::Reset))
    };
    let number = random::with(|rng| rng.usize(..operations().count()));
    operations().nth(number).unwrap_or(Operation::Query)
}

fn operate(
    client: &mut ServiceClient,
    subject: &Subject,
    operation: Operation,
) -> Result<(), &'static str> {
    let target = || random::with(|rng| rng.u8(..u8::try_from(worker::vcpus()).unwrap_or(1)));
    match operation {
        Operation::Update => {
            let (first, count) = random::with(|rng| (rng.u16(..subject.vectors), rng.u16(1..=8)));
            let first = first.checked_rem(subject.assigned()).unwrap_or(0);
            return named("update", subject.update(client, first, count, target()));
        }
        Operation::Query => {
            let answer = named("query-function", client.query_function(subject.id()))?;
            if answer.assigned != subject.assigned() {
                return Err("query-function tells of another number of vectors");
            }
            let last = VectorIndex(subject.assigned().saturating_sub(1));
            let query = client.query_vectors(subject.id(), last, 1, |_, _| {});
            return named("query-vectors", query).map(drop);
        }
        Operation::Restore => return named("restore", client.restore(subject.id())).map(drop),
        _ => {}
    }
    let locked = subject.lock();
    let configure = |client: &mut ServiceClient| {
        let active = subject.active.load(Ordering::Acquire);
        let count = random::with(|rng| rng.u16(active..=subject.vectors));
        named("configure", locked.configure(client, count, target))
    };
    match operation {
        Operation::Configure => configure(client)?,
        Operation::FunctionMask => {
            let mut result = Ok(());
            locked.toggle_function_mask(|| result = stays_quiet(subject));
            result?;
        }
        Operation::Decoding => again(|| locked.toggle_decoding(dwell)),
        Operation::Power => again(|| locked.toggle_power(dwell)),
        Operation::BarMove => again(|| locked.move_bar()),
        Operation::Release => {
            named("release", locked.release(client))?;
            configure(client)?;
            locked.excuse();
        }
        Operation::Disable => {
            locked.toggle_enable();
            configure(client)?;
            locked.excuse();
        }
        Operation::Reset => {
            locked.reset();
            locked.excuse();
        }
        Operation::ResetUnseen => {
            locked.reset_unseen(client)?;
            locked.excuse();
        }
        Operation::Update | Operation::Query | Operation::Restore => {}
    }
    Ok(())
}

/// No vector of the function interrupts while Function Mask is set.
fn stays_quiet(subject: &Subject) -> Result<(), &'static str> {
    synchronise()?;
    let before = subject.taken();
    dwell();
    synchronise()?;
    count(&FIGURES.while_masked, subject.taken().wrapping_sub(before));
    Ok(())
}

/// A few times: each makes the table trapped and direct again.
fn again(act: impl Fn()) {
    for _ in 0..random::with(|rng| rng.u32(1..=4)) {
        act();
    }
}

fn dwell() {
    for _ in 0..random::with(|rng| rng.u32(..DWELL)) {
        core::hint::spin_loop();
    }
}

/// Names the call that has failed.
fn named<T>(call: &'static str, result: Result<T, CallError>) -> Result<T, &'static str> {
    result.map_err(|_| call)
}
