//! Chapter 4: a `configure` that is answered busy.

use pvmsi_protocol::{Busy, CallError, CallId, Sequence};

use super::works_by_the_table;
use crate::guest::GuestFactory;
use crate::guest::call::{Body, Call};
use crate::guest::good_host::Reply;
use crate::guest::machine::{RINGS_MAX, Scripted};
use crate::suite::{Test, Verdict, equal, holds, there};

pub(super) const TESTS: &[Test] = &[
    Test::guest("busy-is-repeated-identically", &["G-448"], repeated),
    Test::guest("busy-is-not-repeated-for-ever", &["G-448", "G-906"], for_ever),
    Test::guest("waits-are-bounded", &["G-906"], waits),
];

fn busy(sequence: u32, delay_us: u32) -> Reply {
    Reply::Error(CallError::Busy(Busy { sequence: Sequence(sequence), delay_us }))
}

/// The sequence of a `configure`, and the call without it.
fn taken_apart(call: &Call) -> Option<(u32, Call)> {
    match &call.body {
        Body::Configure { kind, requested, sequence, vectors } => {
            let (kind, requested, vectors) = (*kind, *requested, vectors.clone());
            let body = Body::Configure { kind, requested, sequence: Sequence::START, vectors };
            // A longer number is a longer body.
            let header = pvmsi_protocol::Header { body_length: 0, ..call.header };
            Some((sequence.0, Call { header, id: call.id, body }))
        }
        _ => None,
    }
}

fn repeated(factory: &dyn GuestFactory) -> Verdict {
    let mut times = 0;
    let machine = Scripted::new(32, move |call, host| match call.id {
        CallId::Configure if times < 5 => {
            times += 1;
            busy(times * 1000, 50)
        }
        _ => host.answer(call),
    })?;
    machine.drive(factory, |guest| {
        holds("a guest that starts", guest.start())?;
        equal("vectors enabled", guest.enable(32), Ok(32))
    })?;
    let calls = machine.calls_of(CallId::Configure);
    let (sequences, calls): (Vec<_>, Vec<_>) = calls.iter().filter_map(taken_apart).unzip();
    equal("sequences", sequences, vec![0, 1000, 2000, 3000, 4000, 5000])?;
    let first = there("configure", calls.first())?;
    for call in &calls {
        equal("a repetition, but for its sequence", call, first)?;
    }
    holds("a wait between repetitions", machine.waited_us.get() >= 5 * 50)
}

/// Busy for ever: the guest must come to an end, with the function released.
fn comes_to_an_end(factory: &dyn GuestFactory, delay_us: u32) -> Verdict<u64> {
    let mut times = 0;
    let machine = Scripted::new(16, move |call, host| match call.id {
        CallId::Configure => {
            times += 1;
            busy(times, delay_us)
        }
        _ => host.answer(call),
    })?;
    machine.drive(factory, |guest| {
        holds("a guest that starts", guest.start())?;
        let enabled = guest.enable(16);
        holds("a bounded number of repetitions", machine.rings.get() < RINGS_MAX)?;
        let last = machine.calls.borrow().last().map(|call| call.id);
        equal("the last call", last, Some(CallId::Release))?;
        if enabled.is_err() {
            equal("vectors enabled without the service", guest.enable_standard(16), Ok(16))?;
        }
        works_by_the_table(&machine, guest)
    })?;
    Ok(machine.waited_us.get())
}

fn for_ever(factory: &dyn GuestFactory) -> Verdict {
    comes_to_an_end(factory, 0)?;
    comes_to_an_end(factory, 100).map(drop)
}

fn waits(factory: &dyn GuestFactory) -> Verdict {
    // More than an hour for each: a hint that no guest may follow for ever.
    let waited = comes_to_an_end(factory, u32::MAX)?;
    holds(&format!("less than a minute of waiting: {waited} us"), waited < 60_000_000)
}
