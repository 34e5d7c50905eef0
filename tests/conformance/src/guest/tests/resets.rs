//! Chapter 8: what a guest does after a reset.

use pvmsi_protocol::{CallError, CallId};

use super::{enabled, message};
use crate::guest::GuestFactory;
use crate::guest::good_host::Reply;
use crate::guest::machine::{ENABLE, FUNCTION_MASK, Scripted};
use crate::suite::{Test, Verdict, equal, holds};

pub(super) const TESTS: &[Test] = &[
    Test::guest("messages-and-masks-after-a-reset", &["G-803", "G-804"], after_reset),
    Test::guest("old-table-messages-are-dropped", &["G-811"], dropped),
    Test::guest("a-host-that-has-given-the-vectors-up", &["G-703", "G-803"], given_up),
];

fn after_reset(factory: &dyn GuestFactory) -> Verdict {
    let machine = Scripted::good(8)?;
    machine.drive(factory, |guest| {
        enabled(&machine, guest, 4)?;
        for vector in 0..4 {
            equal("set_message", guest.set_message(vector, message(vector.into())), Ok(()))?;
        }
        equal("unmask", guest.unmask(1), Ok(()))?;
        equal("unmask", guest.unmask(3), Ok(()))?;
        machine.reset_table();
        let give = |vector: u16| Some(message(vector.into()));
        equal("after_reset", guest.after_reset(&give), Ok(()))?;
        let host = machine.host.borrow();
        for vector in 0..4 {
            let [.., data, control] = machine.entry(vector);
            equal(&format!("data in entry {vector}"), data, host.table_message(vector).data)?;
            equal(&format!("mask bit of entry {vector}"), control & 1, u32::from(vector % 2 == 0))?;
        }
        equal("an entry that is nobody's", machine.entry(5), [0, 0, 0, 1])?;
        equal("Enable and Function Mask", machine.control(), ENABLE)
    })
}

fn dropped(factory: &dyn GuestFactory) -> Verdict {
    let machine = Scripted::good(4)?;
    machine.drive(factory, |guest| {
        enabled(&machine, guest, 4)?;
        {
            // As after a move to another host: other table messages, another generation.
            let mut host = machine.host.borrow_mut();
            host.series += 1;
            host.generation += 10;
        }
        machine.reset_table();
        let give = |vector: u16| Some(message(vector.into()));
        equal("after_reset", guest.after_reset(&give), Ok(()))?;
        machine.check_table("after a reset with another generation");
        let (entry, host) = (machine.entry(2), machine.host.borrow());
        equal("data in entry 2", entry[2], host.table_message(2).data)
    })
}

fn given_up(factory: &dyn GuestFactory) -> Verdict {
    let give = |vector: u16| Some(message(vector.into()));
    // Somebody has released the vectors; the host is another one, without the service.
    let machine = Scripted::good(4)?;
    machine.drive(factory, |guest| {
        enabled(&machine, guest, 4)?;
        equal("unmask", guest.unmask(1), Ok(()))?;
        machine.host.borrow_mut().assigned = 0;
        machine.reset_table();
        if guest.after_reset(&give).is_err() {
            // A guest may leave it to its driver to start anew.
            guest.disable();
            return equal("vectors enabled again", guest.enable(4), Ok(4));
        }
        equal("entry 1", machine.entry(1), [0xfee0_1000, 0x12, 1, 0])
    })?;
    let mut configured = false;
    let machine = Scripted::new(4, move |call, host| {
        let reply = if configured { Reply::Silent } else { host.answer(call) };
        configured |= call.id == CallId::Configure;
        reply
    })?;
    machine.drive(factory, |guest| {
        enabled(&machine, guest, 4)?;
        machine.host.borrow_mut().assigned = 0;
        machine.reset_table();
        let result = guest.after_reset(&give);
        holds("works, or says that it does not", result.is_err() || machine.entry(1)[2] == 1)
    })?;
    let machine = Scripted::new(4, |call, host| match call.id {
        CallId::Restore => Reply::Error(CallError::Hardware),
        _ => host.answer(call),
    })?;
    machine.drive(factory, |guest| {
        enabled(&machine, guest, 4)?;
        equal("unmask", guest.unmask(1), Ok(()))?;
        machine.reset_table();
        if guest.after_reset(&give).is_err() {
            // Nothing may fire without a message.
            let quiet = machine.control() != ENABLE || machine.masked(1);
            let bits = machine.control() & (ENABLE | FUNCTION_MASK);
            holds(&format!("no delivery while restore fails ({bits:#x})"), quiet)?;
        }
        Ok(())
    })
}
