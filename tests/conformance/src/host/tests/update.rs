//! Chapter 4: `update`, `release` and `restore`.

use alloc::vec::Vec;

use pvmsi_protocol::{CallError, GuestMessage, Parameter, Reasons, Sequence, TableMode};

use crate::host::machine::{ENABLE, FUNCTION_MASK, Machine, POWER_ON};
use crate::host::{Ability, HostFactory, HostOptions, Policy};
use crate::suite::{Test, Verdict, differ, equal, holds};

pub(super) const TESTS: &[Test] = &[
    Test::host("update-refuses", &["H-450", "H-402"], refuses),
    Test::host("update-moves-the-next-event", &["H-451"], moves),
    Test::host("update-of-a-vector-with-events-on-their-way", &["H-451"], events_on_their_way),
    Test::host("update-leaves-the-table-alone", &["H-452"], leaves_the_table_alone),
    Test::host("a-first-message-releases-events", &["H-453", "H-513"], first_message),
    Test::host("a-first-message-does-not-unmask", &["H-453", "H-514"], first_message_masked),
    Test::host("release-is-power-on", &["H-460", "H-530"], release),
    Test::host("release-never-fails", &["H-460"], release_never_fails),
    Test::host("release-while-configure-is-unfinished", &["H-460"], release_unfinished),
    Test::host("restore-puts-messages-back", &["H-470", "G-803"], restore),
    Test::host("restore-of-nothing", &["H-470"], restore_of_nothing),
];

/// Both policies on both platforms.
fn machines(factory: &dyn HostFactory) -> Verdict<Vec<Machine>> {
    let mut machines = Vec::new();
    for platform in factory.platforms() {
        for policy in [Policy::Direct, Policy::Trapped] {
            let options =
                HostOptions { platform: Some(platform), policy, ..HostOptions::default() };
            machines.push(Machine::enabled_with(factory, options)?);
        }
    }
    Ok(machines)
}

fn refuses(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    let (good, bad) = (machine.message(50), GuestMessage { address: 0x1000, data: 0x41 });
    let none = machine.try_update(&[(0, good)])?;
    let vector = |vector| CallError::vector(Parameter::Vector, vector);
    equal("before configure", none, Err(vector(0)))?;
    machine.configure(4)?;
    let before = machine.snapshot()?;
    for (what, updates, error) in [
        ("an empty list", &[][..], CallError::parameter(Parameter::Count)),
        ("not assigned", &[(0, good), (4, good)], vector(4)),
        ("not in the table", &[(0, good), (8, good)], vector(8)),
        ("no index", &[(1, good), (u16::MAX, good)], vector(u16::MAX)),
        (
            "twice",
            &[(1, good), (2, good), (1, good)],
            CallError::vector(Parameter::DuplicateVector, 1),
        ),
        ("a bad message", &[(0, good), (3, bad)], CallError::vector(Parameter::Message, 3)),
    ] {
        equal(what, machine.try_update(updates)?, Err(error))?;
        equal(&format!("the function after {what}"), machine.snapshot()?, before.clone())?;
        for vector in 0..4 {
            machine.arrives(vector, vector)?;
        }
    }
    Ok(())
}

fn moves(factory: &dyn HostFactory) -> Verdict {
    for machine in machines(factory)? {
        machine.configure(4)?;
        machine.raise(2);
        machine.arrived("before the update", &[2])?;
        machine.update(&[(2, 50), (0, 60)])?;
        machine.quiet("by the update itself")?;
        machine.arrives(2, 50)?;
        machine.arrives(0, 60)?;
        machine.arrives(1, 1)?;
        machine.update(&[(2, 2)])?;
        machine.arrives(2, 2)?;
    }
    Ok(())
}

fn events_on_their_way(factory: &dyn HostFactory) -> Verdict {
    for machine in machines(factory)? {
        machine.configure(4)?;
        for round in 0..20 {
            machine.raise(1);
            machine.update(&[(1, 100 + round)])?;
            machine.raise(1);
            let arrived = machine.interrupts()?;
            let last = if round == 0 { 1 } else { 99 + round };
            // An event that was under way may still be seen as one with the next.
            let once = arrived == [100 + round]
                || arrived == [last.min(100 + round), last.max(100 + round)];
            holds(&format!("an event before and one after update {round}: {arrived:?}"), once)?;
        }
    }
    Ok(())
}

fn leaves_the_table_alone(factory: &dyn HostFactory) -> Verdict {
    for machine in machines(factory)? {
        machine.configure(4)?;
        machine.mask(1);
        let (entries, mode) = (machine.entries(), machine.query()?.mode);
        machine.update(&[(0, 70), (1, 71)])?;
        equal("entries", machine.entries(), entries)?;
        equal("mode", machine.query()?.mode, mode)?;
        machine.stays_away("still masked", 1)?;
        machine.unmask(1);
        machine.arrived("of the new message", &[71])?;
    }
    Ok(())
}

fn first_message(factory: &dyn HostFactory) -> Verdict {
    for machine in machines(factory)? {
        machine.control(ENABLE | FUNCTION_MASK);
        machine.configure_with(4, &[])?;
        machine.control(ENABLE);
        machine.unmask(0);
        machine.stays_away("without a message", 0)?;
        machine.unmask(1);
        machine.update(&[(0, 40)])?;
        machine.arrived("of the event that was held", &[40])?;
        machine.update(&[(0, 41), (1, 42)])?;
        machine.quiet("by the next update")?;
        machine.arrives(1, 42)?;
    }
    Ok(())
}

fn first_message_masked(factory: &dyn HostFactory) -> Verdict {
    for machine in machines(factory)? {
        let mut setups = machine.setups(2, false);
        for setup in &mut setups {
            setup.message = None;
        }
        machine.configure_with(2, &setups)?;
        machine.raise(0);
        machine.raise(1);
        machine.mask(0);
        machine.update(&[(0, 40)])?;
        machine.quiet("masked meanwhile")?;
        holds("the mask bit", machine.masked(0))?;
        machine.control(ENABLE | FUNCTION_MASK);
        machine.update(&[(1, 41)])?;
        machine.quiet("under Function Mask")?;
        machine.control(ENABLE);
        machine.arrived("when Function Mask clears", &[41])?;
        machine.unmask(0);
        machine.arrived("when it is unmasked", &[40])?;
    }
    Ok(())
}

fn release(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    machine.configure_direct()?;
    let before = machine.query()?.generation;
    let generation = machine.release()?;
    differ("generation", generation, before)?;
    let query = machine.query()?;
    equal("assigned and mode", (query.assigned, query.mode), (0, TableMode::Trapped))?;
    holds("reason not-assigned", query.reasons.contains(Reasons::NOT_ASSIGNED))?;
    machine.mapped("mapped", false)?;
    machine.routes_up_to(0)?;
    equal("entries", machine.entries(), vec![POWER_ON; 8])?;
    let none = machine.states()?.iter().all(|state| !state.assigned && state.masked);
    holds("no vector is assigned", none)?;
    machine.stays_away("after release", 0)?;
    machine.program(1, machine.message(9));
    machine.arrives(1, 9)
}

fn release_never_fails(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::new(factory)?;
    machine.release()?;
    machine.control(ENABLE);
    machine.program(1, machine.message(9));
    machine.release()?;
    machine.arrives(1, 9)?;
    machine.configure(8)?;
    machine.decoding(false);
    machine.release()?;
    machine.decoding(true);
    machine.power_state(3);
    machine.release()?;
    machine.power_state(0);
    for policy in [Policy::Denied, Policy::Trapped] {
        Machine::with(factory, HostOptions { policy, ..HostOptions::default() })?.release()?;
    }
    Ok(())
}

fn release_unfinished(factory: &dyn HostFactory) -> Verdict {
    let options = HostOptions { vectors_per_call: Some(2), ..HostOptions::default() };
    let machine = Machine::enabled_with(factory, options)?;
    let busy = machine.try_configure(8, Sequence::START, &[])?;
    holds(&format!("busy: {busy:?}"), matches!(busy, Err(CallError::Busy(_))))?;
    machine.release()?;
    machine.release().map(drop)
}

fn restore(factory: &dyn HostFactory) -> Verdict {
    for machine in machines(factory)? {
        machine.configure(4)?;
        let messages: Vec<_> = machine.entries().iter().map(|entry| entry[..3].to_vec()).collect();
        machine.host.reset_unseen();
        let answer = machine.restore()?;
        equal("generation", machine.query()?.generation, answer.generation)?;
        let after: Vec<_> = machine.entries().iter().map(|entry| entry[..3].to_vec()).collect();
        equal("table messages", &after[..4], &messages[..4])?;
        for vector in 0..4 {
            let [.., control] = machine.host.table_entry(vector);
            // What the host shows of a trapped table is its own.
            if answer.mode == TableMode::Direct {
                if machine.can(Ability::Table) {
                    let masked = control & 1 != 0;
                    equal("mask bit as the function has it", machine.masked(vector), masked)?;
                }
                holds("set by the reset", machine.masked(vector))?;
            }
            machine.unmask(vector);
            machine.arrives(vector, vector)?;
        }
    }
    Ok(())
}

fn restore_of_nothing(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    machine.program(1, machine.message(1));
    let before = machine.snapshot()?;
    let answer = machine.restore()?;
    equal("mode", answer.mode, TableMode::Trapped)?;
    holds("reason not-assigned", answer.reasons.contains(Reasons::NOT_ASSIGNED))?;
    equal("the function", machine.snapshot()?, before)?;
    machine.arrives(1, 1)
}
