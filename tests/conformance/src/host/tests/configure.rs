//! Chapter 4: `configure`.

use alloc::vec::Vec;

use pvmsi_protocol::{
    CallError, CallId, GuestMessage, Kind, Parameter, Reasons, Sequence, TableMode, VectorSetup,
};

use crate::host::call::{Configured, configure_body, success};
use crate::host::machine::{ENABLE, FUNCTION_MASK, Machine, message_words};
use crate::host::{HostFactory, HostOptions, Policy};
use crate::suite::{Stop, Test, Verdict, differ, equal, holds, there};

pub(super) const TESTS: &[Test] = &[
    Test::host("configure-assigns-what-it-says", &["H-440"], assigns),
    Test::host("configure-takes-mask-bits", &["H-440", "H-513"], mask_bits),
    Test::host("a-short-grant-assigns-the-first-vectors", &["H-440"], short_grant),
    Test::host("no-vector-to-be-had", &["H-441"], no_vector),
    Test::host("no-vector-for-a-function-that-is-denied", &["H-441"], denied),
    Test::host("configure-refuses", &["H-442", "H-402"], refuses),
    Test::host("configure-again", &["H-443"], again),
    Test::host("configure-again-loses-no-event", &["H-443"], again_with_events),
    Test::host("pending-events-are-reported-once", &["H-444", "H-513"], pending),
    Test::host("busy-comes-to-an-end", &["H-446"], busy),
    Test::host("sequences-that-continue-nothing", &["H-447"], sequences),
    Test::host("a-new-configure-drops-an-unfinished-one", &["H-447"], starts_anew),
];

fn assigns(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    let setups = machine.setups(2, false);
    let answer = machine.configure_with(5, &setups)?;
    equal("granted", answer.granted, 5)?;
    for (vector, answer) in (0..).zip(&answer.vectors) {
        let entry = machine.entry(vector);
        equal(&format!("mask bit of vector {vector}"), entry[3], u32::from(vector >= 2))?;
        let table = there("a table message of a decoded table", answer.table_message)?;
        let words = message_words(GuestMessage { address: table.address, data: table.data });
        equal(&format!("entry {vector}"), entry[..3].to_vec(), words.to_vec())?;
    }
    let states = machine.states()?;
    let assigned: Vec<_> = states.iter().map(|state| state.assigned).collect();
    equal("assigned", assigned, vec![true, true, true, true, true, false, false, false])?;
    machine.arrives(0, 0)?;
    machine.arrives(1, 1)?;
    machine.stays_away("beyond the list, so masked", 3)?;
    machine.unmask(3);
    machine.quiet("and without a message")?;
    machine.update(&[(3, 33)])?;
    machine.arrived("after its first message", &[33])
}

fn mask_bits(factory: &dyn HostFactory) -> Verdict {
    for policy in [Policy::Direct, Policy::Trapped] {
        let machine =
            Machine::enabled_with(factory, HostOptions { policy, ..HostOptions::default() })?;
        let mut setups = machine.setups(4, false);
        setups[1].masked = true;
        setups[3].masked = true;
        machine.configure_with(4, &setups)?;
        for vector in 0..4 {
            equal("mask bit", machine.masked(vector), vector % 2 == 1)?;
            machine.raise(vector);
        }
        machine.arrived("of the unmasked", &[0, 2])?;
        machine.unmask(1);
        machine.unmask(3);
        machine.arrived("of the others, once unmasked", &[1, 3])?;
    }
    Ok(())
}

fn short_grant(factory: &dyn HostFactory) -> Verdict {
    for options in [
        HostOptions { vectors: 16, routes: Some(5), ..HostOptions::default() },
        HostOptions { vectors: 16, quota: Some(5), ..HostOptions::default() },
    ] {
        let machine = Machine::enabled_with(factory, options)?;
        let answer = machine.configure(16)?;
        let granted = answer.granted;
        holds(&format!("at most 5 vectors granted, not {granted}"), granted <= 5)?;
        equal("vectors answered", answer.vectors.len(), granted.into())?;
        equal("assigned", machine.query()?.assigned, granted)?;
        for vector in 0..granted {
            machine.arrives(vector, vector)?;
        }
        let states = machine.states()?;
        let beyond = states.iter().skip(granted.into());
        let none = beyond.clone().all(|state| !state.assigned && state.guest_message.is_none());
        holds("no vector beyond the grant is assigned", none)?;
        for vector in granted..16 {
            machine.stays_away("beyond the grant", vector)?;
        }
    }
    Ok(())
}

fn no_vector(factory: &dyn HostFactory) -> Verdict {
    let options = HostOptions { routes: Some(0), ..HostOptions::default() };
    fails(factory, options, CallError::NoResources)?;
    let options = HostOptions { quota: Some(0), ..HostOptions::default() };
    fails(factory, options, CallError::Denied)
}

fn denied(factory: &dyn HostFactory) -> Verdict {
    let options = HostOptions { policy: Policy::Denied, ..HostOptions::default() };
    fails(factory, options, CallError::Denied)
}

fn fails(factory: &dyn HostFactory, options: HostOptions, error: CallError) -> Verdict {
    let machine = Machine::enabled_with(factory, options)?;
    let before = machine.snapshot()?;
    let answer = machine.try_configure(4, Sequence::START, &machine.setups(4, false))?;
    equal("configure", answer.map(|answer| answer.granted), Err(error))?;
    equal("the function", machine.snapshot()?, before)
}

fn refuses(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    machine.configure(4)?;
    machine.mask(2);
    let before = machine.snapshot()?;
    let bad = GuestMessage { address: 0xfed0_0000, data: 0x41 };
    let setup = |message| VectorSetup { message, masked: false };
    let good = [setup(None); 2];
    let mixed = [setup(Some(machine.message(9))), setup(Some(bad))];
    let count = CallError::parameter(Parameter::Count);
    for (what, kind, requested, setups, error) in [
        ("kind MSI", Kind::Msi, 1, &good[..1], CallError::parameter(Parameter::Kind)),
        ("count 0", Kind::MsiX, 0, &[][..], count),
        ("count above the table", Kind::MsiX, 9, &[], count),
        ("count far above the table", Kind::MsiX, u16::MAX, &[], count),
        ("count below the list", Kind::MsiX, 1, &good, count),
        ("a bad message", Kind::MsiX, 4, &mixed, CallError::vector(Parameter::Message, 1)),
    ] {
        let body = configure_body(kind, requested, Sequence::START, setups);
        let answer = machine.call(CallId::Configure, &body)?;
        // A count that needs more room than the buffer has is wrong in two ways.
        let room = CallError::parameter(Parameter::AnswerRoom);
        let two = requested > 8 && answer == Err(room);
        holds(&format!("{what}: {error:?}, seen {answer:?}"), answer == Err(error) || two)?;
        equal(&format!("the function after {what}"), machine.snapshot()?, before.clone())?;
        machine.arrives(1, 1)?;
    }
    Ok(())
}

fn again(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    let mut generation = machine.query()?.generation;
    for (round, count) in (0..).zip([2, 8, 3, 8, 1]) {
        let setups: Vec<_> = (0..count)
            .map(|vector| VectorSetup {
                message: Some(machine.message(100 * round + vector)),
                masked: false,
            })
            .collect();
        let answer = machine.configure_with(count, &setups)?;
        equal("granted", answer.granted, count)?;
        machine.routes_up_to(8)?;
        differ("generation", answer.generation, generation)?;
        generation = answer.generation;
        // Events of vectors that were not assigned have waited for it.
        machine.interrupts()?;
        for vector in 0..8 {
            if vector < count {
                machine.arrives(vector, 100 * round + vector)?;
            } else {
                machine.stays_away("not assigned any more", vector)?;
            }
        }
    }
    Ok(())
}

fn again_with_events(factory: &dyn HostFactory) -> Verdict {
    for policy in [Policy::Direct, Policy::Trapped] {
        let machine =
            Machine::enabled_with(factory, HostOptions { policy, ..HostOptions::default() })?;
        let setups = machine.setups(4, true);
        machine.configure_with(4, &setups)?;
        machine.raise(1);
        machine.raise(2);
        machine.quiet("masked")?;
        // 1 is unmasked by the new assignment, 2 stays masked: reported, or pending in the function.
        let mut setups = machine.setups(6, true);
        setups[1].masked = false;
        let answer = machine.configure_with(6, &setups)?;
        machine.arrived("of the vector that the call unmasks", &[1])?;
        let reported = answer.pending();
        machine.unmask(2);
        let arrived = machine.interrupts()?;
        let once = [&reported[..], &arrived[..]].concat();
        equal("vectors reported or delivered", once, vec![2])?;
    }
    Ok(())
}

fn pending(factory: &dyn HostFactory) -> Verdict {
    for policy in [Policy::Direct, Policy::Trapped] {
        let machine =
            Machine::enabled_with(factory, HostOptions { policy, ..HostOptions::default() })?;
        for vector in 0..4 {
            machine.program(vector, machine.message(vector));
            machine.mask(vector);
        }
        machine.raise(1);
        machine.raise(2);
        machine.quiet("masked in the standard table")?;
        holds("pending bits", machine.pending(1) && machine.pending(2) && !machine.pending(3))?;
        let mut setups = machine.setups(4, true);
        setups[2].masked = false;
        let answer = machine.configure_with(4, &setups)?;
        machine.arrived("of the vector that the call unmasks", &[2])?;
        // The event is reported, or it waits in the function for its mask bit; never both.
        let reported = answer.pending();
        machine.unmask(1);
        let arrived = machine.interrupts()?;
        equal("vectors reported or delivered", [reported, arrived].concat(), vec![1])?;
        machine.mask(1);
        let again = machine.configure_with(4, &setups)?;
        equal("reported by the next configure", again.pending(), vec![])?;
        machine.unmask(1);
        machine.quiet("after the next configure")?;
        machine.arrives(1, 1)?;
    }
    Ok(())
}

/// Repeats until it is not busy any more; the answer, and how often it was asked.
fn finish(machine: &Machine, requested: u16, setups: &[VectorSetup]) -> Verdict<(Configured, u16)> {
    let mut sequence = Sequence::START;
    for calls in 1..=requested + 64 {
        match machine.try_configure(requested, sequence, setups)? {
            Err(CallError::Busy(busy)) => {
                holds("a sequence other than 0", busy.sequence != Sequence::START)?;
                equal("assigned while busy", machine.query()?.assigned, 0)?;
                sequence = busy.sequence;
            }
            answer => return Ok((success("configure", answer)?, calls)),
        }
    }
    Err(Stop::Failed(format!("busy after {requested} + 64 repetitions")))
}

fn busy(factory: &dyn HostFactory) -> Verdict {
    for (vectors, bound) in [(10, 4), (64, 1), (300, 16)] {
        let options =
            HostOptions { vectors, vectors_per_call: Some(bound), ..HostOptions::default() };
        let machine = Machine::enabled_with(factory, options)?;
        let setups = machine.setups(vectors, false);
        let (answer, calls) = finish(&machine, vectors, &setups)?;
        holds(&format!("busy at least once ({calls} calls)"), calls > 1)?;
        equal("granted", answer.granted, vectors)?;
        equal("mode", answer.mode, TableMode::Direct)?;
        machine.arrives(vectors - 1, vectors - 1)?;
    }
    Ok(())
}

fn sequences(factory: &dyn HostFactory) -> Verdict {
    let refused = Some(CallError::parameter(Parameter::Sequence));
    let idle = Machine::enabled(factory)?;
    for sequence in [1, 7, u32::MAX] {
        let answer = idle.try_configure(4, Sequence(sequence), &[])?;
        equal("a sequence that continues nothing", answer.err(), refused)?;
    }
    let options = HostOptions { vectors_per_call: Some(2), ..HostOptions::default() };
    let machine = Machine::enabled_with(factory, options)?;
    let setups = machine.setups(8, false);
    let sequence = begin(&machine, 8, &setups)?;
    let mut other = setups.clone();
    other[3].masked = true;
    for (what, requested, sequence, setups) in [
        ("another count", 7, sequence, &setups[..7]),
        ("another mask bit", 8, sequence, &other),
        ("a shorter list", 8, sequence, &setups[..7]),
        ("another sequence", 8, Sequence(sequence.0.wrapping_add(77)), &setups),
    ] {
        let answer = machine.try_configure(requested, sequence, setups)?;
        equal(what, answer.err(), refused)?;
    }
    machine.release()?;
    let late = machine.try_configure(8, sequence, &setups)?;
    equal("a sequence from before release", late.err(), refused)
}

fn begin(machine: &Machine, requested: u16, setups: &[VectorSetup]) -> Verdict<Sequence> {
    match machine.try_configure(requested, Sequence::START, setups)? {
        Err(CallError::Busy(busy)) => Ok(busy.sequence),
        other => Err(Stop::Failed(format!("expected busy, seen {other:?}"))),
    }
}

fn starts_anew(factory: &dyn HostFactory) -> Verdict {
    let options = HostOptions { vectors_per_call: Some(2), ..HostOptions::default() };
    let machine = Machine::enabled_with(factory, options)?;
    machine.control(ENABLE | FUNCTION_MASK);
    let setups = machine.setups(8, false);
    let old = begin(&machine, 8, &setups)?;
    // Small enough to be done at once.
    let answer = machine.configure(1)?;
    equal("granted", (answer.granted, answer.reasons), (1, Reasons::empty()))?;
    let late = machine.try_configure(8, old, &setups)?;
    let refused = CallError::parameter(Parameter::Sequence);
    equal("a sequence from before sequence 0", late.err(), Some(refused))?;
    equal("assigned", machine.query()?.assigned, 1)
}
