//! Chapter 5: when the table is direct, and what the guest sees in both modes.

use alloc::vec::Vec;

use pvmsi_protocol::{Reasons, TableMode};

use crate::host::machine::{ENABLE, FUNCTION_MASK, Machine};
use crate::host::{Ability, HostFactory, HostOptions, Isolation, Policy};
use crate::suite::{Test, Verdict, differ, equal, holds};

pub(super) const TESTS: &[Test] = &[
    Test::host("each-reason-keeps-the-table-trapped", &["W-501", "H-502", "H-420"], reasons),
    Test::host("pages-that-cannot-be-mapped", &["H-502"], not_mappable),
    Test::host("a-table-that-cannot-be-read", &["H-524", "H-502"], unreadable),
    Test::host("a-table-that-the-host-takes-back", &["H-502", "H-420"], taken_back),
    Test::host("direct-without-a-reason", &["H-502", "H-511"], direct),
    Test::host("the-generation-changes", &["H-504"], generation),
    Test::host("the-generation-tells-of-a-table-taken-back", &["H-504"], generation_revoked),
    Test::host("same-contents-in-both-modes", &["H-510"], same_contents),
    Test::host("other-bits-of-vector-control", &["H-518"], other_bits),
    Test::host("no-exit-while-direct", &["H-511"], no_exit),
    Test::host("pending-bits-that-cannot-be-mapped", &["H-502", "H-511"], pending_not_mappable),
    Test::host("writes-to-a-trapped-table", &["H-512"], trapped_writes),
    Test::host("accesses-of-any-width-and-alignment", &["H-516", "H-905"], any_access),
    Test::host("enable-and-function-mask-read-back", &["H-531"], read_back),
    Test::host("no-mapping-without-an-answer", &["H-532", "H-806"], no_mapping),
    Test::host("a-bar-that-moves", &["H-532", "H-806"], moving_bar),
];

fn reasons(factory: &dyn HostFactory) -> Verdict {
    let default = HostOptions::default();
    for (options, reason) in [
        (HostOptions { policy: Policy::Trapped, ..default }, Reasons::POLICY),
        (HostOptions { isolation: Isolation::Open, ..default }, Reasons::NO_ISOLATION),
    ] {
        trapped_for(factory, options, reason)?;
    }
    come_and_go(
        factory,
        &[
            (|m| m.decoding(false), |m| m.decoding(true), Reasons::DECODING_OFF),
            (|m| m.power_state(3), |m| m.power_state(0), Reasons::POWER_STATE),
        ],
    )?;
    let machine = Machine::new(factory)?;
    holds("reason not-assigned", machine.query()?.reasons.contains(Reasons::NOT_ASSIGNED))?;
    let answer = machine.configure(4)?;
    equal("reasons without MSI-X Enable", answer.reasons, Reasons::MSIX_DISABLED)?;
    machine.control(ENABLE);
    equal("reasons with it", machine.query()?.reasons, Reasons::empty())
}

fn not_mappable(factory: &dyn HostFactory) -> Verdict {
    let options = HostOptions { mappable: false, ..HostOptions::default() };
    trapped_for(factory, options, Reasons::NOT_MAPPABLE)
}

/// Each in turn, with the function's vectors assigned.
fn unreadable(factory: &dyn HostFactory) -> Verdict {
    let steps: [(&str, Act); 4] = [
        ("configure", |_| ()),
        ("another configure", |m| drop(m.configure(4))),
        ("a function level reset", |m| {
            m.function_level_reset();
            m.power_on();
            m.control(ENABLE);
        }),
        ("D3hot", |m| {
            m.power_state(3);
            m.power_state(0);
        }),
    ];
    let machine =
        Machine::enabled_with(factory, HostOptions { readable: false, ..HostOptions::default() })?;
    machine.configure(4)?;
    for (what, step) in steps {
        step(&machine);
        let query = machine.query()?;
        let state = (query.mode, query.reasons);
        equal(
            &format!("mode and reasons after {what}"),
            state,
            (TableMode::Trapped, Reasons::UNREADABLE),
        )?;
        for state in machine.states()? {
            equal("table message", state.table_message, None)?;
        }
        machine.mask(3);
        machine.raise(3);
        for vector in 0..3 {
            machine.arrives(vector, vector)?;
        }
        machine.unmask(3);
        machine.arrived("once unmasked", &[3])?;
    }
    Ok(())
}

fn taken_back(factory: &dyn HostFactory) -> Verdict {
    Machine::new(factory)?.needs(Ability::Revoke)?;
    come_and_go(
        factory,
        &[
            (|m| m.host.revoke(), |m| m.host.allow(), Reasons::HOST_REVOKED),
            // An event of a masked vector that came while the table was trapped.
            (
                |m| {
                    m.host.revoke();
                    m.mask(1);
                    m.raise(1);
                    m.host.interrupts();
                    m.host.allow();
                },
                |m| m.unmask(1),
                Reasons::HELD_EVENT,
            ),
        ],
    )
}

fn trapped_for(factory: &dyn HostFactory, options: HostOptions, reason: Reasons) -> Verdict {
    let machine = Machine::enabled_with(factory, options)?;
    let answer = machine.configure(4)?;
    equal("mode and reasons", (answer.mode, answer.reasons), (TableMode::Trapped, reason))?;
    works_trapped(&machine)
}

type Act = fn(&Machine);

/// What keeps the table trapped, what ends that, and the reason meanwhile.
fn come_and_go(factory: &dyn HostFactory, steps: &[(Act, Act, Reasons)]) -> Verdict {
    for &(cause, cure, reason) in steps {
        let machine = Machine::enabled(factory)?;
        machine.configure_direct()?;
        cause(&machine);
        let query = machine.query()?;
        equal("mode and reasons", (query.mode, query.reasons), (TableMode::Trapped, reason))?;
        machine.mapped("mapped", false)?;
        cure(&machine);
        equal("reasons afterwards", machine.query()?.reasons, Reasons::empty())?;
        machine.mapped("mapped afterwards", true)?;
    }
    Ok(())
}

fn works_trapped(machine: &Machine) -> Verdict {
    machine.mapped("mapped", false)?;
    machine.arrives(0, 0)?;
    machine.mask(0);
    machine.stays_away("masked", 0)?;
    machine.unmask(0);
    machine.arrived("once unmasked", &[0])
}

fn direct(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    let answer = machine.configure_direct()?;
    equal("reasons", answer.reasons, Reasons::empty())?;
    machine.control(ENABLE | FUNCTION_MASK);
    machine.mapped("mapped under Function Mask", true)?;
    let masked = Machine::new(factory)?;
    masked.control(ENABLE | FUNCTION_MASK);
    masked.configure_direct().map(drop)
}

type Change = (&'static str, fn(&Machine) -> Verdict);

fn generation(factory: &dyn HostFactory) -> Verdict {
    changes(
        &Machine::enabled(factory)?,
        &[
            ("configure", |m| m.configure(8).map(drop)),
            ("configure with fewer", |m| m.configure(3).map(drop)),
            ("decoding off", |m| {
                m.decoding(false);
                Ok(())
            }),
            ("decoding on", |m| {
                m.decoding(true);
                Ok(())
            }),
            ("release", |m| m.release().map(drop)),
            ("configure after release", |m| m.configure(8).map(drop)),
        ],
    )
}

fn generation_revoked(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    machine.needs(Ability::Revoke)?;
    machine.configure_direct()?;
    changes(
        &machine,
        &[
            ("revoke", |m| {
                m.host.revoke();
                Ok(())
            }),
            ("allow", |m| {
                m.host.allow();
                Ok(())
            }),
        ],
    )
}

fn changes(machine: &Machine, changes: &[Change]) -> Verdict {
    let mut seen = machine.query()?.generation;
    for (what, act) in changes {
        act(machine)?;
        let now = machine.query()?.generation;
        differ(&format!("generation after {what}"), now, seen)?;
        seen = now;
    }
    Ok(())
}

fn same_contents(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    machine.needs(Ability::Revoke)?;
    machine.configure_direct()?;
    machine.mask(1);
    machine.mask(5);
    machine.raise(5);
    let contents = || (machine.entries(), (0..8).map(|v| machine.pending(v)).collect::<Vec<_>>());
    let direct = contents();
    machine.host.revoke();
    machine.mapped("mapped", false)?;
    equal("entries and pending bits, trapped", contents(), direct.clone())?;
    machine.unmask(5);
    machine.arrived("of the unmasked vector", &[5])?;
    machine.host.allow();
    machine.mapped("mapped", true)?;
    let (mut entries, mut pending) = direct;
    entries[5][3] = 0;
    pending[5] = false;
    equal("entries and pending bits, direct again", contents(), (entries, pending))
}

/// A function may keep none of the bits: then it is none of them in both modes.
fn other_bits(factory: &dyn HostFactory) -> Verdict {
    const BITS: [u32; 2] = [0xabcd_00fe, 0x1234_5600];
    let machine = Machine::enabled(factory)?;
    machine.needs(Ability::Revoke)?;
    machine.configure_direct()?;
    let control = |value| machine.store(machine.entry_at(1, 3), value);
    let kept = BITS.map(|bits| {
        control(bits);
        machine.entry(1)[3]
    });
    holds(&format!("none or all of the bits, not {kept:x?}"), kept == BITS || kept == [0, 0])?;
    let [first, second] = kept;
    machine.host.revoke();
    machine.mapped("mapped", false)?;
    equal("vector control, trapped", machine.entry(1)[3], second)?;
    control(BITS[0] | 1);
    equal("vector control that was written", machine.entry(1)[3], first | 1)?;
    machine.stays_away("masked", 1)?;
    control(BITS[0]);
    machine.arrived("of the unmasked vector", &[1])?;
    machine.host.allow();
    machine.mapped("mapped", true)?;
    equal("vector control, direct again", machine.entry(1)[3], first)?;
    machine.arrives(1, 1)?;
    machine.release()?;
    equal("vector control, by default", machine.entry(1)[3] & !1, first)
}

fn no_exit(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    machine.needs(Ability::Counts)?;
    machine.configure_direct()?;
    let cost = machine.cost(|| {
        for vector in 0..8 {
            machine.mask(vector);
            machine.entry(vector);
            machine.pending(vector);
            machine.unmask(vector);
            machine.arrives(vector, vector)?;
        }
        // A register that shares the table's page.
        machine.load(0);
        Ok(())
    })?;
    equal("exits", cost.exits, 0)?;
    equal("routing updates and set-ups", (cost.routing_updates, cost.interrupt_setups), (0, 0))?;
    machine.host.revoke();
    let cost = machine.cost(|| {
        machine.mask(0);
        Ok(())
    })?;
    holds("an exit for an access to a trapped table", cost.exits > 0)
}

fn pending_not_mappable(factory: &dyn HostFactory) -> Verdict {
    let options = HostOptions { pending_mappable: false, ..HostOptions::default() };
    let machine = Machine::enabled_with(factory, options)?;
    machine.configure_direct()?;
    machine.mapped_at("pending bits mapped", machine.bar + machine.at.pending, false)?;
    let bits = || (0..8).filter(|&vector| machine.pending(vector)).collect::<Vec<_>>();
    equal("pending bits", bits(), vec![])?;
    for vector in [5, 2] {
        machine.mask(vector);
        machine.stays_away("masked", vector)?;
    }
    equal("pending bits of masked vectors", bits(), vec![2, 5])?;
    // Whoever writes there changes nothing.
    machine.store(machine.at.pending, 0);
    equal("pending bits after a store", bits(), vec![2, 5])?;
    machine.unmask(5);
    machine.arrived("of the unmasked vector", &[5])?;
    equal("pending bits left", bits(), vec![2])?;
    machine.unmask(2);
    machine.arrived("of the other one", &[2])?;
    if machine.can(Ability::Counts) {
        let table = machine.cost(|| {
            machine.mask(0);
            machine.entry(0);
            machine.unmask(0);
            Ok(())
        })?;
        equal("exits on the table", table.exits, 0)?;
    }
    Ok(())
}

fn trapped_writes(factory: &dyn HostFactory) -> Verdict {
    let options = HostOptions { policy: Policy::Trapped, ..HostOptions::default() };
    let machine = Machine::enabled_with(factory, options)?;
    machine.configure(4)?;
    let before = machine.entries();
    let real = machine.host.table_entry(2);
    machine.write_message(2, machine.message(99));
    machine.host.mmio_write(machine.bar + machine.entry_at(2, 0), &[0xff; 8]);
    equal("entries", machine.entries(), before)?;
    if machine.can(Ability::Table) {
        equal("the function's own entry", machine.host.table_entry(2), real)?;
    }
    machine.arrives(2, 2)?;
    // Address, data and mask bit in two stores of 8 bytes: the mask bit counts.
    machine.host.mmio_write(machine.bar + machine.entry_at(2, 2), &[0x77, 0, 0, 0, 1, 0, 0, 0]);
    holds("masked by a store of 8 bytes", machine.masked(2))?;
    machine.stays_away("masked", 2)?;
    machine.unmask(2);
    machine.arrived("once unmasked", &[2])
}

fn any_access(factory: &dyn HostFactory) -> Verdict {
    for policy in [Policy::Trapped, Policy::Direct] {
        let machine =
            Machine::enabled_with(factory, HostOptions { policy, ..HostOptions::default() })?;
        machine.configure(6)?;
        let others = |machine: &Machine| -> Vec<_> {
            [0, 1, 2, 4, 5].map(|vector| machine.entry(vector)).to_vec()
        };
        let before = others(&machine);
        for width in [1, 2, 3, 4, 8] {
            for offset in 0..=16 - width {
                let address = machine.bar + machine.entry_at(3, 0) + offset;
                let mut data = vec![0; usize::try_from(width).unwrap_or(0)];
                machine.host.mmio_read(address, &mut data);
                data.fill(0xff);
                machine.host.mmio_write(address, &data);
                let what = format!("other entries after {width} bytes at {offset} of entry 3");
                equal(&what, others(&machine), before.clone())?;
            }
        }
        // What lies beyond the last entry is no entry.
        machine.store(machine.entry_at(8, 3), 0);
        machine.store(machine.entry_at(8, 0), 0x1234);
        equal("entries after a store beyond the table", others(&machine), before)?;
        for vector in [0, 1, 2, 4, 5] {
            machine.arrives(vector, vector)?;
        }
        machine.release()?;
    }
    Ok(())
}

fn read_back(factory: &dyn HostFactory) -> Verdict {
    let all = [0, ENABLE, ENABLE | FUNCTION_MASK, FUNCTION_MASK];
    let machine = Machine::new(factory)?;
    for bits in all {
        machine.control(bits);
        equal("default state", machine.read_control(), bits)?;
    }
    for policy in [Policy::Direct, Policy::Trapped] {
        let options = HostOptions { policy, ..HostOptions::default() };
        let machine = Machine::enabled_with(factory, options)?;
        machine.configure(8)?;
        for bits in [ENABLE | FUNCTION_MASK, ENABLE] {
            machine.control(bits);
            equal(&format!("assigned, {policy:?}"), machine.read_control(), bits)?;
        }
        for bits in all {
            machine.control(bits);
            equal("released", machine.read_control(), bits)?;
        }
    }
    Ok(())
}

fn no_mapping(factory: &dyn HostFactory) -> Verdict {
    type Act = fn(&Machine);
    let machine = Machine::enabled(factory)?;
    machine.configure_direct()?;
    machine.mask(1);
    let states: [(&str, Act, Act); 3] = [
        ("memory decoding off", |m| m.decoding(false), |m| m.decoding(true)),
        ("D3hot", |m| m.power_state(3), |m| m.power_state(0)),
        ("D1", |m| m.power_state(1), |m| m.power_state(0)),
    ];
    for (what, stop, start) in states {
        stop(&machine);
        for offset in [0, machine.at.table, machine.at.pending, 0x4000] {
            machine.mapped_at(&format!("mapped with {what}"), machine.bar + offset, false)?;
        }
        let mut data = [0; 4];
        machine.host.mmio_read(machine.bar + machine.at.table, &mut data);
        equal(&format!("load with {what}"), data, [0xff; 4])?;
        equal(&format!("assigned with {what}"), machine.query()?.assigned, 8)?;
        start(&machine);
        machine.mapped(&format!("mapped after {what}"), true)?;
        // Power states below D0 may cost a function its mask bits.
        machine.unmask(0);
        machine.mask(1);
        machine.arrives(0, 0)?;
        machine.stays_away("masked", 1)?;
        machine.unmask(1);
        machine.arrived("once unmasked", &[1])?;
        machine.mask(1);
    }
    Ok(())
}

fn moving_bar(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    let (here, elsewhere) = (machine.bar, machine.bar + 0x1000_0000);
    machine.configure_direct()?;
    machine.place_bar(elsewhere);
    let table = machine.at.table;
    machine.mapped_at("mapped where it was", here + table, false)?;
    machine.mapped_at("mapped where it is", elsewhere + table, true)?;
    equal("assigned", machine.query()?.assigned, 8)?;
    machine.arrives(3, 3)?;
    machine.place_bar(here);
    machine.mapped("mapped where it is again", true)?;
    machine.mapped_at("mapped where it is no more", elsewhere + table, false)
}
