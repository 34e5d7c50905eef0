//! Chapter 5: no event is lost, delivered twice, or delivered while masked.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::host::machine::{ENABLE, FUNCTION_MASK, Machine};
use crate::host::{Ability, HostFactory, HostOptions, Policy};
use crate::suite::{Test, Verdict, equal, holds};

pub(super) const TESTS: &[Test] = &[
    Test::host("events-cross-both-switches-once", &["H-503", "H-513"], switches),
    Test::host("masks-toggle-while-the-mode-changes", &["H-503", "H-904"], toggling),
    Test::host("a-masked-vector-does-not-fire", &["H-513"], masked),
    Test::host("function-mask-holds-everything", &["H-514"], function_mask),
    Test::host("vectors-beyond-the-grant-do-not-fire", &["H-515", "H-904"], beyond_the_grant),
    Test::host(
        "the-standard-table-works-as-ever",
        &["H-505", "H-513", "H-514", "H-812"],
        standard_table,
    ),
    Test::host("without-service-as-ever", &["H-505", "H-812"], standard_table_without_service),
    Test::host("a-guest-that-unmasks-last", &["H-505", "H-506"], unmasks_last),
    Test::host("the-function-follows-enable", &["H-506", "H-530", "H-801", "H-802"], enable),
];

/// Looks at interrupts that are still to come, on a busy machine.
const PATIENCE: u32 = 100_000;

fn switches(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    machine.needs(Ability::Revoke)?;
    machine.configure_direct()?;
    machine.mask(0);
    machine.raise(0);
    machine.raise(1);
    machine.host.revoke();
    machine.arrived("across the switch to trapped", &[1])?;
    holds("pending", machine.pending(0))?;
    machine.raise(0);
    machine.quiet("still masked")?;
    machine.unmask(0);
    machine.arrived("two events of one masked vector are one", &[0])?;
    machine.mask(2);
    machine.raise(2);
    machine.raise(3);
    machine.host.allow();
    machine.arrived("across the switch to direct", &[3])?;
    machine.unmask(2);
    machine.arrived("once unmasked", &[2])?;
    machine.mapped("mapped", true)?;
    machine.quiet("nothing twice")
}

/// One processor masks and unmasks, the device raises, the host switches. An event at a time: each must arrive once, and never while masked.
fn toggling(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    machine.needs(Ability::Revoke)?;
    machine.configure(2)?;
    let running = AtomicBool::new(true);
    let switch = || -> Verdict {
        while running.load(Ordering::SeqCst) {
            machine.host.revoke();
            machine.host.allow();
        }
        Ok(())
    };
    let raise = || -> Verdict {
        for round in 0..300 {
            machine.mask(0);
            // What was under way when the mask was set may still arrive.
            machine.load(machine.entry_at(0, 3));
            equal(&format!("interrupts before round {round}"), machine.interrupts()?, vec![])?;
            machine.raise(0);
            equal(&format!("masked, round {round}"), machine.interrupts()?, vec![])?;
            machine.unmask(0);
            // The host may be in the middle of a switch, and its thread may have to wait.
            let mut arrived = machine.interrupts()?;
            for _ in 0..PATIENCE {
                if !arrived.is_empty() {
                    break;
                }
                core::hint::spin_loop();
                arrived = machine.interrupts()?;
            }
            equal(&format!("unmasked, round {round}"), arrived, vec![0])?;
        }
        Ok(())
    };
    let raise = || {
        let raised = raise();
        running.store(false, Ordering::SeqCst);
        raised
    };
    factory.at_once(&[&raise, &switch])?;
    machine.unmask(0);
    machine.arrives(0, 0)
}

fn masked(factory: &dyn HostFactory) -> Verdict {
    for policy in [Policy::Direct, Policy::Trapped] {
        let machine =
            Machine::enabled_with(factory, HostOptions { policy, ..HostOptions::default() })?;
        machine.configure(4)?;
        for round in 0..3 {
            machine.mask(2);
            for _ in 0..=round {
                machine.stays_away("masked", 2)?;
            }
            holds("pending bit", machine.pending(2))?;
            machine.arrives(1, 1)?;
            machine.unmask(2);
            machine.arrived("one event once unmasked", &[2])?;
            holds("no pending bit", !machine.pending(2))?;
            machine.mask(2);
            machine.unmask(2);
            machine.quiet("nothing was left")?;
        }
    }
    Ok(())
}

fn function_mask(factory: &dyn HostFactory) -> Verdict {
    for policy in [Policy::Direct, Policy::Trapped] {
        let machine =
            Machine::enabled_with(factory, HostOptions { policy, ..HostOptions::default() })?;
        machine.configure(4)?;
        machine.control(ENABLE | FUNCTION_MASK);
        machine.raise(0);
        machine.raise(1);
        machine.raise(2);
        machine.raise(2);
        machine.quiet("under Function Mask")?;
        machine.mask(1);
        machine.control(ENABLE);
        machine.arrived("when Function Mask clears", &[0, 2])?;
        machine.control(ENABLE | FUNCTION_MASK);
        machine.unmask(1);
        machine.quiet("unmasked, but under Function Mask")?;
        machine.control(ENABLE);
        machine.arrived("when Function Mask clears again", &[1])?;
        machine.quiet("nothing twice")?;
    }
    Ok(())
}

fn beyond_the_grant(factory: &dyn HostFactory) -> Verdict {
    for policy in [Policy::Direct, Policy::Trapped] {
        let machine =
            Machine::enabled_with(factory, HostOptions { policy, ..HostOptions::default() })?;
        machine.configure(3)?;
        for vector in 3..8 {
            machine.stays_away("not assigned", vector)?;
            // A hostile guest copies an entry of its own, and unmasks.
            for word in 0..3 {
                let value = machine.load(machine.entry_at(2, word));
                machine.store(machine.entry_at(vector, word), value);
            }
            machine.interrupts()?;
        }
        machine.configure(3)?;
        for vector in 3..8 {
            machine.write_message(vector, machine.message(vector));
            machine.unmask(vector);
            machine.stays_away("unmasked with a guest message", vector)?;
        }
        for vector in 0..3 {
            machine.arrives(vector, vector)?;
        }
    }
    Ok(())
}

fn standard_table(factory: &dyn HostFactory) -> Verdict {
    for policy in [Policy::Denied, Policy::Trapped, Policy::Direct] {
        standard_table_with(factory, policy)?;
    }
    Ok(())
}

fn standard_table_without_service(factory: &dyn HostFactory) -> Verdict {
    standard_table_with(factory, Policy::Off)
}

fn standard_table_with(factory: &dyn HostFactory, policy: Policy) -> Verdict {
    let machine = Machine::enabled_with(factory, HostOptions { policy, ..HostOptions::default() })?;
    machine.program(3, machine.message(3));
    machine.arrives(3, 3)?;
    machine.mask(3);
    machine.stays_away("masked", 3)?;
    holds("pending bit", machine.pending(3))?;
    machine.unmask(3);
    machine.arrived("once unmasked", &[3])?;
    machine.control(ENABLE | FUNCTION_MASK);
    machine.stays_away("under Function Mask", 3)?;
    machine.control(ENABLE);
    machine.arrived("when Function Mask clears", &[3])?;
    machine.program(3, machine.message(77));
    machine.arrives(3, 77)?;
    machine.mapped("mapped", false)
}

/// Linux enables MSI-X with all vectors masked, lets the driver start the function, and unmasks last.
fn unmasks_last(factory: &dyn HostFactory) -> Verdict {
    for policy in [Policy::Denied, Policy::Trapped, Policy::Direct] {
        let machine = Machine::with(factory, HostOptions { policy, ..HostOptions::default() })?;
        machine.needs(Ability::Start)?;
        machine.control(ENABLE | FUNCTION_MASK);
        (0..machine.vectors).for_each(|vector| machine.mask(vector));
        machine.control(ENABLE);
        holds("enabled in the function when it is started", machine.host.start())?;
        machine.stays_away("not unmasked yet", 5)?;
        holds("pending bit", machine.pending(5))?;
        machine.program(3, machine.message(3));
        machine.arrives(3, 3)?;
        machine.program(5, machine.message(5));
        machine.arrived("what came before the first unmasking", &[5])?;
        machine.quiet("once")?;
    }
    Ok(())
}

fn enable(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::new(factory)?;
    machine.needs(Ability::Start)?;
    let found = |when: &str, expected: bool| {
        equal(&format!("MSI-X Enable in the function, {when}"), machine.host.start(), expected)
    };
    found("at power-on", false)?;
    machine.control(ENABLE | FUNCTION_MASK);
    found("under Function Mask", true)?;
    machine.control(0);
    found("disabled again", false)?;
    machine.control(ENABLE);
    machine.configure(4)?;
    found("assigned", true)?;
    machine.function_level_reset();
    found("assigned and reset", true)?;
    machine.release()?;
    found("released", true)?;
    machine.program(1, machine.message(1));
    machine.arrives(1, 1)?;
    machine.mask(1);
    found("all masked again", true)?;
    machine.function_level_reset();
    found("reset in the default state", false)?;
    machine.control(ENABLE);
    machine.configure(4)?;
    machine.control(0);
    found("disabled while assigned", false)?;
    machine.control(ENABLE);
    found("in the end", true)?;
    machine.program(2, machine.message(2));
    machine.arrives(2, 2)
}
