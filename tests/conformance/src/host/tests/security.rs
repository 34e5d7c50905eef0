//! Chapter 9: isolation, and what a hostile guest can write.

use pvmsi_protocol::{Reasons, TableMode};

use crate::host::machine::Machine;
use crate::host::{Ability, HostFactory, HostOptions, Isolation, Policy};
use crate::suite::{Test, Verdict, equal, holds};

pub(super) const TESTS: &[Test] = &[
    Test::host("direct-only-with-isolation", &["H-901"], isolation),
    Test::host("unknown-isolation-is-none", &["H-902"], unknown),
    Test::host("foreign-messages-go-nowhere", &["H-901"], foreign),
    Test::host("the-layout-is-fixed", &["H-905"], layout),
];

fn mode(
    factory: &dyn HostFactory,
    isolation: Isolation,
    allow_unisolated: bool,
) -> Verdict<(TableMode, Reasons)> {
    let options = HostOptions { isolation, allow_unisolated, ..HostOptions::default() };
    let machine = Machine::enabled_with(factory, options)?;
    let answer = machine.configure(4)?;
    let direct = answer.mode == TableMode::Direct;
    machine.mapped("mapped", direct)?;
    machine.arrives(0, 0)?;
    Ok((answer.mode, answer.reasons))
}

const REFUSED: (TableMode, Reasons) = (TableMode::Trapped, Reasons::NO_ISOLATION);
const GRANTED: (TableMode, Reasons) = (TableMode::Direct, Reasons::empty());

fn isolation(factory: &dyn HostFactory) -> Verdict {
    equal("confined", mode(factory, Isolation::Confined, false)?, GRANTED)?;
    equal("not confined", mode(factory, Isolation::Open, false)?, REFUSED)?;
    equal("overridden by name", mode(factory, Isolation::Open, true)?, GRANTED)?;
    let options = HostOptions {
        isolation: Isolation::Open,
        allow_unisolated: true,
        policy: Policy::Trapped,
        ..HostOptions::default()
    };
    let machine = Machine::enabled_with(factory, options)?;
    equal(
        "an override of isolation is none of policy",
        machine.configure(4)?.reasons,
        Reasons::POLICY,
    )
}

fn unknown(factory: &dyn HostFactory) -> Verdict {
    equal("unknown", mode(factory, Isolation::Unknown, false)?, REFUSED)
}

fn foreign(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    machine.configure_direct()?;
    machine.write_message(0, machine.message(50));
    machine.raise(0);
    machine.quiet("a guest message in a direct table")?;
    if machine.can(Ability::ForeignMessages) {
        holds("blocked", machine.host.foreign_messages() >= 1)?;
    }
    machine.arrives(1, 1)?;
    machine.restore()?;
    machine.unmask(0);
    machine.interrupts()?;
    machine.arrives(0, 0)
}

fn layout(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    let capability = || {
        let mut bytes = [0; 12];
        machine.host.config_read(machine.at.msix, &mut bytes);
        bytes[3] &= 0x3f;
        bytes
    };
    let before = capability();
    // Size, offsets and BAR indicators are read-only.
    for offset in [4, 8] {
        machine.host.config_write(machine.at.msix + offset, &[0xff; 4]);
    }
    machine.host.config_write(machine.at.msix + 2, &[0x00]);
    equal("the capability", capability(), before)?;
    machine.configure_direct()?;
    equal("the most vectors", machine.query()?.msix_vectors, 8)?;
    for vector in 0..8 {
        machine.arrives(vector, vector)?;
    }
    Ok(())
}
