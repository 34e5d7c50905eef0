//! Chapter 8: resets, power states, and functions that lose their table.

use pvmsi_protocol::{Reasons, TableMode};

use crate::host::machine::{ENABLE, FUNCTION_MASK, Machine, POWER_ON};
use crate::host::{Ability, HostFactory, HostOptions, Policy};
use crate::suite::{Stop, Test, Verdict, equal, holds, there};

pub(super) const TESTS: &[Test] = &[
    Test::host("a-function-level-reset-leaves-vectors-assigned", &["H-801"], assigned),
    Test::host("a-bus-reset-leaves-vectors-assigned", &["H-801"], assigned_bus),
    Test::host("a-function-level-reset-in-the-default-state", &["H-802"], default_state),
    Test::host("a-bus-reset-in-the-default-state", &["H-802"], default_state_bus),
    Test::host("a-table-lost-meanwhile-comes-back", &["H-806"], lost_meanwhile),
    Test::host("a-function-that-fails-is-let-go", &["H-807", "H-808"], fails),
    Test::host("a-table-changed-by-others-is-put-right", &["H-808"], changed_by_others),
    Test::host("a-guest-that-restores-its-function", &["H-813", "H-505"], restored_by_guest),
    Test::host("restore-of-a-function-without-enable", &["H-471"], restore_enable),
    Test::host("messages-written-back-by-the-guest", &["G-803", "H-470"], written_back),
    Test::host("messages-written-back-while-trapped", &["H-519", "G-803"], written_back_trapped),
];

type Reset = fn(&Machine) -> Verdict;

fn function_level(machine: &Machine) -> Verdict {
    machine.function_level_reset();
    Ok(())
}

fn bus(machine: &Machine) -> Verdict {
    machine.needs(Ability::BusReset)?;
    machine.host.reset_function();
    Ok(())
}

fn assigned(factory: &dyn HostFactory) -> Verdict {
    stays_assigned(factory, function_level)
}

fn assigned_bus(factory: &dyn HostFactory) -> Verdict {
    stays_assigned(factory, bus)
}

fn default_state(factory: &dyn HostFactory) -> Verdict {
    is_reset(factory, function_level)
}

fn default_state_bus(factory: &dyn HostFactory) -> Verdict {
    is_reset(factory, bus)
}

fn stays_assigned(factory: &dyn HostFactory, reset: Reset) -> Verdict {
    for policy in [Policy::Direct, Policy::Trapped] {
        let machine =
            Machine::enabled_with(factory, HostOptions { policy, ..HostOptions::default() })?;
        machine.configure(8)?;
        // One of two is masked, so that both mask bits have to come back.
        for vector in (1..8).step_by(2) {
            machine.mask(vector);
        }
        let before = machine.entries();
        let mode = machine.query()?.mode;
        reset(&machine)?;
        // A reset clears configuration space: what a kernel restores.
        machine.power_on();
        machine.control(ENABLE);
        let query = machine.query()?;
        equal("assigned after the reset", query.assigned, 8)?;
        equal("mode after the reset", query.mode, mode)?;
        for vector in 0..8 {
            let what = format!("entry {vector} after the reset, mask bit included");
            equal(&what, machine.entry(vector), before[usize::from(vector)])?;
            if vector % 2 == 0 {
                machine.arrives(vector, vector)?;
                continue;
            }
            machine.stays_away("masked before the reset", vector)?;
            machine.unmask(vector);
            machine.arrived("once unmasked", &[vector])?;
        }
    }
    Ok(())
}

fn is_reset(factory: &dyn HostFactory, reset: Reset) -> Verdict {
    let machine = Machine::enabled(factory)?;
    machine.program(0, machine.message(0));
    machine.program(3, machine.message(3));
    machine.mask(3);
    machine.raise(3);
    reset(&machine)?;
    equal("Message Control after the reset", machine.read_control(), 0)?;
    machine.power_on();
    equal("entries after the reset", machine.entries(), vec![POWER_ON; 8])?;
    machine.control(ENABLE);
    machine.stays_away("nothing programmed", 0)?;
    machine.program(1, machine.message(1));
    machine.interrupts()?;
    machine.arrives(1, 1)
}

fn lost_meanwhile(factory: &dyn HostFactory) -> Verdict {
    type Act = fn(&Machine);
    let losses: [(&str, Act, Act); 3] = [
        ("D3hot", |m| m.power_state(3), |m| m.power_state(0)),
        (
            "a reset with memory decoding off",
            |m| {
                m.decoding(false);
                m.function_level_reset();
            },
            |m| m.power_on(),
        ),
        (
            "D3hot and a configure there",
            |m| {
                m.power_state(3);
                let _ = m.configure(8);
            },
            |m| m.power_state(0),
        ),
    ];
    for (what, stop, start) in losses {
        let machine = Machine::enabled(factory)?;
        machine.needs(Ability::TableLoss)?;
        machine.configure_direct()?;
        stop(&machine);
        equal(&format!("mode with {what}"), machine.query()?.mode, TableMode::Trapped)?;
        // The function has lost its table: some do in D3hot.
        machine.host.reset_unseen();
        start(&machine);
        machine.control(ENABLE);
        let query = machine.query()?;
        equal(&format!("reasons after {what}"), query.reasons, Reasons::empty())?;
        equal(&format!("assigned after {what}"), query.assigned, 8)?;
        for vector in 0..8 {
            machine.unmask(vector);
            machine.arrives(vector, vector)?;
        }
    }
    Ok(())
}

fn written_back(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    machine.configure_direct()?;
    let before = machine.entries();
    machine.host.reset_unseen();
    holds("masked by the reset", machine.masked(2))?;
    for word in 0..3 {
        machine.store(machine.entry_at(2, word), before[2][usize::try_from(word).unwrap_or(0)]);
    }
    machine.unmask(2);
    machine.arrives(2, 2)?;
    if machine.can(Ability::ForeignMessages) {
        equal("foreign messages", machine.host.foreign_messages(), 0)?;
    }
    Ok(())
}

fn written_back_trapped(factory: &dyn HostFactory) -> Verdict {
    let options = HostOptions { policy: Policy::Trapped, ..HostOptions::default() };
    let machine = Machine::enabled_with(factory, options)?;
    machine.configure(8)?;
    machine.mask(5);
    let before = machine.entries();
    machine.host.reset_unseen();
    // As a kernel does that restores MSI-X, and knows nothing of `restore`.
    machine.control(ENABLE | FUNCTION_MASK);
    for (vector, entry) in (0..).zip(&before) {
        machine.mask(vector);
        for (word, &value) in (0..3).zip(entry) {
            machine.store(machine.entry_at(vector, word), value);
        }
        if vector != 5 {
            machine.unmask(vector);
        }
    }
    machine.control(ENABLE);
    equal("entries", machine.entries(), before)?;
    for vector in [0, 1, 2, 3, 4, 6, 7] {
        machine.arrives(vector, vector)?;
    }
    machine.stays_away("masked before the reset", 5)?;
    machine.unmask(5);
    machine.arrived("once unmasked", &[5])?;
    // Something else, over a table that has lost nothing.
    machine.write_message(2, machine.message(99));
    machine.arrives(2, 2)?;
    if machine.can(Ability::ForeignMessages) {
        equal("foreign messages", machine.host.foreign_messages(), 0)?;
    }
    Ok(())
}

fn unseen(machine: &Machine) -> bool {
    machine.host.reset_unseen();
    true
}

fn unseen_with_enable(machine: &Machine) -> bool {
    machine.host.reset_unseen_with_enable()
}

/// The masked vector of eight waits until it is unmasked, and then each of them arrives.
fn all_work(machine: &Machine, masked: u16) -> Verdict {
    machine.stays_away("masked", masked)?;
    machine.unmask(masked);
    machine.arrived("once unmasked", &[masked])?;
    (0..8).try_for_each(|vector| machine.arrives(vector, vector))
}

/// As Linux does: Enable with Function Mask, each entry anew, Function Mask clear.
fn restored_by_guest(factory: &dyn HostFactory) -> Verdict {
    for reset in [unseen, unseen_with_enable] {
        let machine = Machine::enabled(factory)?;
        (0..8).for_each(|vector| machine.program(vector, machine.message(vector)));
        machine.arrives(3, 3)?;
        if !reset(&machine) {
            continue;
        }
        machine.control(ENABLE | FUNCTION_MASK);
        (0..8).for_each(|vector| machine.program(vector, machine.message(vector)));
        machine.mask(5);
        machine.raise(4);
        machine.quiet("under Function Mask")?;
        machine.control(ENABLE);
        machine.arrived("once Function Mask is clear", &[4])?;
        all_work(&machine, 5)?;
    }
    Ok(())
}

fn restore_enable(factory: &dyn HostFactory) -> Verdict {
    for policy in [Policy::Direct, Policy::Trapped] {
        let machine =
            Machine::enabled_with(factory, HostOptions { policy, ..HostOptions::default() })?;
        machine.configure(8)?;
        let before = machine.query()?;
        if !unseen_with_enable(&machine) {
            return Err(Stop::Skipped("nothing here clears the function's own Enable".into()));
        }
        machine.control(ENABLE | FUNCTION_MASK);
        let answer = machine.restore()?;
        equal("mode", answer.mode, before.mode)?;
        holds("another generation", answer.generation != before.generation)?;
        let after = machine.entries();
        for (vector, state) in (0_u16..).zip(machine.states()?) {
            let message = there("a table message", state.table_message)?;
            let [low, high, data, _] = after[usize::from(vector)];
            let read = (u64::from(high) << 32 | u64::from(low), data);
            equal("table message", read, (message.address, message.data))?;
        }
        for vector in 0..8 {
            if vector == 5 { machine.mask(vector) } else { machine.unmask(vector) }
        }
        machine.control(ENABLE);
        all_work(&machine, 5)?;
    }
    Ok(())
}

fn fails(factory: &dyn HostFactory) -> Verdict {
    for policy in [Policy::Direct, Policy::Trapped] {
        let machine =
            Machine::enabled_with(factory, HostOptions { policy, ..HostOptions::default() })?;
        machine.needs(Ability::Failure)?;
        machine.configure(8)?;
        machine.mask(3);
        let (before, query) = (machine.entries(), machine.query()?);
        machine.host.fail();
        let failed = machine.query()?;
        equal("mode of a function that has failed", failed.mode, TableMode::Trapped)?;
        holds("host-revoked is said", failed.reasons.contains(Reasons::HOST_REVOKED))?;
        equal("assigned", failed.assigned, 8)?;
        machine.mapped("a page of a function that has failed", false)?;
        equal("a read of its table", machine.load(machine.entry_at(3, 3)), u32::MAX)?;
        machine.unmask(3);
        machine.host.reset_unseen();
        machine.host.recover();
        let recovered = machine.query()?;
        equal("mode when it has recovered", recovered.mode, query.mode)?;
        equal("assigned when it has recovered", recovered.assigned, 8)?;
        holds("another generation", recovered.generation != query.generation)?;
        equal("entries, mask bits included", machine.entries(), before)?;
        machine.stays_away("masked before it failed", 3)?;
        machine.unmask(3);
        machine.arrived("once unmasked", &[3])?;
        machine.arrives(2, 2)?;
    }
    Ok(())
}

fn changed_by_others(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    machine.needs(Ability::Failure)?;
    machine.configure_direct()?;
    let (before, query) = (machine.entries(), machine.query()?);
    machine.host.reset_unseen();
    machine.host.recover();
    let recovered = machine.query()?;
    equal("mode", recovered.mode, TableMode::Direct)?;
    holds("another generation", recovered.generation != query.generation)?;
    for vector in 0..8 {
        machine.unmask(vector);
        machine.arrives(vector, vector)?;
    }
    equal("entries", machine.entries(), before)
}
