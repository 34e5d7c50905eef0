//! Chapter 8: a guest that is stopped, saved, and continued on another host.

use pvmsi_protocol::{Generation, Reasons, TableMode};

use crate::host::machine::{ENABLE, FUNCTION_MASK, Machine};
use crate::host::{HostFactory, HostOptions, Policy};
use crate::suite::{Stop, Test, Verdict, differ, equal, holds};

pub(super) const TESTS: &[Test] = &[
    Test::host("a-guest-that-goes-on-elsewhere", &["H-810"], assigned),
    Test::host("held-events-go-along", &["H-810", "H-513", "H-514"], held),
    Test::host("the-standard-table-goes-along", &["H-810"], default_state),
];

fn move_elsewhere(machine: &mut Machine) -> Verdict {
    if machine.host.move_elsewhere() {
        Ok(())
    } else {
        Err(Stop::Skipped("the host cannot continue a guest elsewhere".into()))
    }
}

fn assigned(factory: &dyn HostFactory) -> Verdict {
    type Ask = fn(&Machine) -> Verdict<Generation>;
    let asks: [(&str, Ask); 2] = [
        ("restore", |machine| Ok(machine.restore()?.generation)),
        ("configure", |machine| {
            machine.configure(8)?;
            Ok(machine.query()?.generation)
        }),
    ];
    for (what, ask) in asks {
        let mut machine = Machine::enabled(factory)?;
        machine.configure_direct()?;
        machine.mask(3);
        let before = machine.query()?;
        move_elsewhere(&mut machine)?;

        let query = machine.query()?;
        equal("assigned", query.assigned, 8)?;
        differ("generation", query.generation, before.generation)?;
        equal("reasons", query.reasons, Reasons::MIGRATED)?;
        machine.mapped("mapping after the move", false)?;
        for (vector, state) in (0..8).zip(machine.states()?) {
            equal("guest message", state.guest_message, Some(machine.message(vector)))?;
            equal("mask bit", state.masked, vector == 3)?;
        }
        machine.arrives(0, 0)?;
        machine.stays_away("masked before", 3)?;
        machine.unmask(3);
        machine.arrived("once unmasked", &[3])?;
        equal("mode before the guest asks", machine.query()?.mode, TableMode::Trapped)?;

        let asked = ask(&machine)?;
        equal(&format!("mode after {what}"), machine.query()?.mode, TableMode::Direct)?;
        differ(&format!("generation after {what}"), asked, query.generation)?;
        for (vector, state) in (0..8).zip(machine.states()?) {
            let [low, high, data, _] = machine.host.table_entry(vector);
            let own = state.table_message.map(|message| (message.address, message.data));
            let found = (u64::from(high) << 32 | u64::from(low), data);
            equal(&format!("table message of the new host after {what}"), own, Some(found))?;
            machine.arrives(vector, vector)?;
        }
    }
    Ok(())
}

fn held(factory: &dyn HostFactory) -> Verdict {
    for policy in [Policy::Direct, Policy::Trapped] {
        let options = HostOptions { policy, ..HostOptions::default() };
        let mut machine = Machine::enabled_with(factory, options)?;
        machine.configure(8)?;
        machine.mask(2);
        machine.stays_away("masked", 2)?;
        machine.control(ENABLE | FUNCTION_MASK);
        machine.stays_away("Function Mask", 5)?;
        move_elsewhere(&mut machine)?;
        machine.quiet("after the move")?;
        equal("Message Control", machine.read_control(), ENABLE | FUNCTION_MASK)?;
        holds("pending", machine.pending(2))?;
        machine.control(ENABLE);
        machine.arrived("Function Mask clear", &[5])?;
        machine.restore()?;
        machine.unmask(2);
        machine.arrived("unmasked", &[2])?;
        machine.arrives(2, 2)?;
    }
    Ok(())
}

fn default_state(factory: &dyn HostFactory) -> Verdict {
    let mut machine = Machine::enabled(factory)?;
    for vector in 0..8 {
        machine.program(vector, machine.message(vector));
    }
    machine.mask(1);
    machine.stays_away("masked", 1)?;
    let before = machine.entries();
    move_elsewhere(&mut machine)?;
    equal("entries", machine.entries(), before)?;
    equal("reasons", machine.query()?.reasons, Reasons::NOT_ASSIGNED)?;
    machine.arrives(0, 0)?;
    machine.unmask(1);
    machine.arrived("unmasked", &[1])
}
