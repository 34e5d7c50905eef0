//! Chapter 5: where the assignment ends.

use pvmsi_protocol::{CallError, CallId, Reasons, TableMode};

use crate::host::machine::{ENABLE, FUNCTION_MASK, Machine, POWER_ON};
use crate::host::{Ability, HostFactory, HostOptions};
use crate::suite::{Test, Verdict, equal, holds};

pub(super) const TESTS: &[Test] = &[
    Test::host("clearing-enable-ends-the-assignment", &["H-530"], clearing_enable),
    Test::host("a-removed-function-is-gone", &["H-530", "H-401"], removed),
    Test::host("a-second-kernel-finds-the-default-state", &["H-812", "H-530"], second_kernel),
    Test::host("machine-reset-ends-the-assignment", &["H-805", "H-530"], machine_reset),
    Test::host("what-is-given-back", &["H-903"], given_back),
    Test::host("the-operators-bound", &["H-903", "H-440"], quota),
];

/// The default state, in which the standard table works.
pub(super) fn is_default(machine: &Machine) -> Verdict {
    let query = machine.query()?;
    equal("assigned and mode", (query.assigned, query.mode), (0, TableMode::Trapped))?;
    holds("reason not-assigned", query.reasons.contains(Reasons::NOT_ASSIGNED))?;
    machine.mapped("mapped", false)?;
    machine.routes_up_to(0)?;
    let entry = machine.entry(1);
    equal("an entry", entry, POWER_ON)?;
    machine.control(ENABLE);
    machine.stays_away("not programmed", 1)?;
    machine.program(1, machine.message(17));
    machine.interrupts()?;
    machine.arrives(1, 17)
}

fn clearing_enable(factory: &dyn HostFactory) -> Verdict {
    for bits in [0, FUNCTION_MASK] {
        let machine = Machine::enabled(factory)?;
        machine.configure_direct()?;
        machine.control(bits);
        is_default(&machine)?;
        // Also where it was clear when the vectors were assigned.
        let machine = Machine::new(factory)?;
        machine.configure(4)?;
        machine.control(bits);
        is_default(&machine)?;
        machine.control(0);
        machine.control(ENABLE);
        machine.configure_direct()?;
    }
    Ok(())
}

fn removed(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    machine.needs(Ability::Remove)?;
    machine.configure_direct()?;
    machine.host.remove();
    for call in [CallId::QueryFunction, CallId::Release, CallId::Restore] {
        equal(call.name(), machine.call(call, &[])?, Err(CallError::NoSuchFunction))?;
    }
    machine.mapped_at("mapped", machine.bar + machine.at.table, false)?;
    machine.routes_up_to(0)?;
    machine.stays_away("removed", 0)
}

fn second_kernel(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    machine.configure_direct()?;
    machine.mask(2);
    machine.raise(2);
    // Enumeration of a kernel that has never heard of the protocol.
    machine.decoding(false);
    machine.control(0);
    machine.decoding(true);
    is_default(&machine)
}

fn machine_reset(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    machine.needs(Ability::MachineReset)?;
    machine.configure_direct()?;
    machine.mask(2);
    machine.raise(2);
    machine.host.reset_machine();
    equal("memory decoding", machine.decodes(), false)?;
    equal("Enable and Function Mask", machine.read_control(), 0)?;
    machine.mapped_at("mapped", machine.bar + machine.at.table, false)?;
    machine.power_on();
    is_default(&machine)?;
    machine.quiet("events from before the reset")?;
    machine.configure_direct().map(drop)
}

fn given_back(factory: &dyn HostFactory) -> Verdict {
    let options = HostOptions { routes: Some(8), ..HostOptions::default() };
    let machine = Machine::enabled_with(factory, options)?;
    machine.needs(Ability::MachineReset)?;
    type Act = fn(&Machine) -> Verdict;
    let ends: [Act; 3] = [
        |m| m.release().map(drop),
        |m| {
            m.control(0);
            m.control(ENABLE);
            Ok(())
        },
        |m| {
            m.host.reset_machine();
            m.power_on();
            m.control(ENABLE);
            Ok(())
        },
    ];
    let first = machine.configure(8)?.granted;
    machine.release()?;
    for _ in 0..3 {
        for end in ends {
            equal("granted again", machine.configure(8)?.granted, first)?;
            machine.routes_up_to(8)?;
            end(&machine)?;
            machine.routes_up_to(0)?;
        }
    }
    Ok(())
}

fn quota(factory: &dyn HostFactory) -> Verdict {
    let options = HostOptions { quota: Some(3), ..HostOptions::default() };
    let machine = Machine::enabled_with(factory, options)?;
    equal("most vectors", machine.query()?.msix_vectors, 3)?;
    holds("at most 3 vectors granted", machine.configure(8)?.granted <= 3)?;
    machine.routes_up_to(3)
}
