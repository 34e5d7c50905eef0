//! Chapters 4 to 6: grants, pending events, messages, vector control.

use pvmsi_protocol::CallId;

use super::{enabled, message};
use crate::guest::GuestFactory;
use crate::guest::machine::{ENABLE, Scripted};
use crate::suite::{Test, Verdict, equal, holds, there};

pub(super) const TESTS: &[Test] = &[
    Test::guest("a-short-grant-is-all-there-is", &["H-440", "G-520"], short_grant),
    Test::guest("pending-events-are-delivered-once-on-unmask", &["G-445"], pending),
    Test::guest("enable-comes-before-configure", &["G-449"], enable_first),
    Test::guest("table-messages-stay-where-they-are", &["G-520"], no_foreign_messages),
    Test::guest("unknown-bits-of-vector-control-stay", &["G-521"], vector_control),
    Test::guest("a-message-that-is-named-again-is-called-again", &["G-622"], named_again),
];

fn short_grant(factory: &dyn GuestFactory) -> Verdict {
    let machine = Scripted::good(16)?;
    machine.host.borrow_mut().grant = 5;
    machine.drive(factory, |guest| {
        holds("a guest that starts", guest.start())?;
        match guest.enable(16) {
            Ok(granted) => equal("vectors enabled", granted, 5)?,
            // A guest may need all or none.
            Err(_) => return equal("assigned", machine.host.borrow().assigned, 0),
        }
        for vector in 0..5 {
            equal("set_message", guest.set_message(vector, message(1)), Ok(()))?;
            equal("unmask", guest.unmask(vector), Ok(()))?;
        }
        for vector in 5..16 {
            let _ = guest.set_message(vector, message(2));
            let _ = guest.unmask(vector);
            let what = format!("entry {vector}, which was not granted");
            equal(&what, machine.entry(vector), [0, 0, 0, 1])?;
        }
        let named = machine.calls_of(CallId::Update);
        let beyond = named.iter().flat_map(|call| call.messages()).any(|(vector, _)| vector >= 5);
        holds("no update of a vector that was not granted", !beyond)
    })
}

fn pending(factory: &dyn GuestFactory) -> Verdict {
    let machine = Scripted::good(64)?;
    machine.host.borrow_mut().pending = vec![0, 31, 32, 63];
    machine.drive(factory, |guest| {
        enabled(&machine, guest, 64)?;
        let delivered = || machine.delivered.borrow().clone();
        equal("delivered while masked", delivered(), vec![])?;
        for vector in 0..64 {
            equal("set_message", guest.set_message(vector, message(vector.into())), Ok(()))?;
            equal("mask", guest.mask(vector), Ok(()))?;
        }
        equal("delivered while masked", delivered(), vec![])?;
        for _ in 0..2 {
            for vector in 0..64 {
                equal("unmask", guest.unmask(vector), Ok(()))?;
                equal("mask", guest.mask(vector), Ok(()))?;
            }
        }
        equal("delivered", delivered(), vec![0, 31, 32, 63])
    })?;
    // What disable has dropped must not come later.
    let machine = Scripted::good(8)?;
    machine.host.borrow_mut().pending = vec![2];
    machine.drive(factory, |guest| {
        enabled(&machine, guest, 8)?;
        guest.disable();
        let dropped = machine.delivered.borrow().len();
        enabled(&machine, guest, 8)?;
        equal("unmask", guest.unmask(2), Ok(()))?;
        equal("delivered after disable", machine.delivered.borrow().len(), dropped)
    })
}

fn enable_first(factory: &dyn GuestFactory) -> Verdict {
    let machine = Scripted::good(8)?;
    machine.drive(factory, |guest| enabled(&machine, guest, 8))?;
    let control = there("a configure", machine.control_at_configure.get())?;
    equal("MSI-X Enable at configure", control & ENABLE, ENABLE)?;
    equal("Enable and Function Mask when enabled", machine.control(), ENABLE)
}

fn no_foreign_messages(factory: &dyn GuestFactory) -> Verdict {
    let machine = Scripted::good(8)?;
    machine.drive(factory, |guest| {
        enabled(&machine, guest, 8)?;
        for round in 0..3 {
            for vector in 0..8 {
                let message = message(round * 100 + u32::from(vector));
                equal("set_message", guest.set_message(vector, message), Ok(()))?;
                machine.check_table("after set_message");
                equal("unmask", guest.unmask(vector), Ok(()))?;
                machine.check_table("after unmask");
                equal("mask", guest.mask(vector), Ok(()))?;
                machine.check_table("after mask");
            }
        }
        guest.disable();
        Ok(())
    })?;
    // Each message went to the host.
    let updates = machine.calls_of(CallId::Update);
    let last: Vec<_> = updates.iter().flat_map(|call| call.messages()).collect();
    for vector in 0..8 {
        let seen = last.iter().rfind(|(named, _)| *named == vector).map(|(_, message)| *message);
        equal(&format!("vector {vector}"), seen, Some(message(200 + u32::from(vector))))?;
    }
    Ok(())
}

fn vector_control(factory: &dyn GuestFactory) -> Verdict {
    for service in [true, false] {
        let machine = Scripted::good(8)?;
        if !service {
            machine.take_offer_back();
        }
        machine.poke(2, 3, 0xabcd_0003);
        machine.drive(factory, |guest| {
            equal("start", guest.start(), service)?;
            equal("vectors enabled", guest.enable(4), Ok(4))?;
            let control = || machine.entry(2)[3];
            equal("vector control at first", control(), 0xabcd_0003)?;
            equal("set_message", guest.set_message(2, message(1)), Ok(()))?;
            equal("unmask", guest.unmask(2), Ok(()))?;
            equal("vector control when unmasked", control(), 0xabcd_0002)?;
            equal("set_message", guest.set_message(2, message(2)), Ok(()))?;
            equal("vector control after set_message", control(), 0xabcd_0002)?;
            equal("mask", guest.mask(2), Ok(()))?;
            equal("vector control when masked", control(), 0xabcd_0003)?;
            guest.disable();
            equal("other bits after disable", control() & !1, 0xabcd_0002)
        })?;
    }
    Ok(())
}

fn named_again(factory: &dyn GuestFactory) -> Verdict {
    let machine = Scripted::good(4)?;
    machine.drive(factory, |guest| {
        enabled(&machine, guest, 4)?;
        // The kernel has unmapped the event in its ITS and mapped it again.
        for _ in 0..3 {
            equal("set_message", guest.set_message(1, message(7)), Ok(()))?;
        }
        equal("updates", machine.calls_of(CallId::Update).len(), 3)
    })
}
