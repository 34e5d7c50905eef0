//! Chapters 3, 7 and 9: answers, good ones and others.

use pvmsi_protocol::{CallError, CallId};

use super::{enabled, works_by_the_table};
use crate::guest::GuestFactory;
use crate::guest::good_host::Reply;
use crate::guest::machine::Scripted;
use crate::suite::{Test, Verdict, equal, holds};

pub(super) const TESTS: &[Test] = &[
    Test::guest("padded-numbers-are-taken-by-the-guest", &["W-302"], padded),
    Test::guest(
        "answers-that-cannot-be-decoded",
        &["W-302", "W-303", "W-304", "G-702", "G-703"],
        undecodable,
    ),
    Test::guest("unknown-statuses", &["G-702", "W-701"], unknown_status),
    Test::guest("a-grant-that-cannot-be", &["G-906", "G-703"], impossible_grant),
    Test::guest("noise-as-an-answer", &["G-906"], noise),
];

/// A machine whose `configure` answers so, and all else well.
fn configure_answers<'s>(reply: Reply) -> Verdict<Scripted<'s>> {
    Scripted::new(4, move |call, host| match call.id {
        CallId::Configure => reply.clone(),
        _ => host.answer(call),
    })
}

fn padded(factory: &dyn GuestFactory) -> Verdict {
    // Granted 2, mode direct, no reasons, generation 3, two vectors without a message, padded.
    let body = vec![
        0x82, 0x80, 0, 0x81, 0x80, 0x80, 0x80, 0, 0x80, 0, 0x83, 0x80, 0x80, 0x80, 0, 0x82, 0x80,
        0, 0, 0, 0, 0,
    ];
    let machine = configure_answers(Reply::Success(body))?;
    machine.drive(factory, |guest| {
        holds("a guest that starts", guest.start())?;
        equal("vectors enabled", guest.enable(2), Ok(2))?;
        equal("calls of release", machine.calls_of(CallId::Release).len(), 0)
    })
}

/// The guest cannot know whether vectors are assigned: it must release, and then go on without the service.
fn gives_up(factory: &dyn GuestFactory, machine: &Scripted<'_>, what: &str) -> Verdict {
    machine.drive(factory, |guest| {
        holds("a guest that starts", guest.start())?;
        let enabled = guest.enable(4);
        let released = !machine.calls_of(CallId::Release).is_empty();
        holds(&format!("the function is released after {what}"), released)?;
        if enabled.is_err() {
            equal("vectors enabled without the service", guest.enable_standard(4), Ok(4))?;
        }
        works_by_the_table(machine, guest)?;
        equal(&format!("delivered after {what}"), machine.delivered.borrow().len(), 0)
    })
}

fn undecodable(factory: &dyn GuestFactory) -> Verdict {
    for (what, body) in [
        ("an empty body", &[][..]),
        ("a body cut in a number", &[0x84]),
        ("a list cut in an item", &[4, 1, 0, 7, 4, 0, 1, 0, 1, 0, 1, 0]),
        ("a byte after the last", &[1, 1, 0, 7, 1, 0, 1, 0]),
        ("a boolean of 2", &[1, 1, 0, 7, 1, 0, 2]),
        ("an optional that starts with 2", &[1, 1, 0, 7, 1, 2, 0, 0, 0]),
        ("a table mode of 2", &[1, 2, 0, 7, 1, 0, 0]),
        ("a u16 of four bytes", &[0x81, 0x80, 0x80, 0, 1, 0, 7, 1, 0, 0]),
        // Cut to 16 bits it would be 1.
        ("a u16 too large", &[0x81, 0x80, 0x04, 1, 0, 7, 1, 0, 0]),
        ("fewer vectors than granted", &[2, 1, 0, 7, 1, 0, 0]),
        ("more vectors than granted", &[1, 1, 0, 7, 2, 0, 0, 0, 0]),
    ] {
        gives_up(factory, &configure_answers(Reply::Success(body.to_vec()))?, what)?;
    }
    gives_up(
        factory,
        &configure_answers(Reply::Raw(0x40, vec![0x80]))?,
        "a busy answer that is none",
    )
}

fn unknown_status(factory: &dyn GuestFactory) -> Verdict {
    for status in [1, 0x11, 0x41, 0x71, 0x80, 0xffff_fffe] {
        let reply = Reply::Raw(status, vec![4, 1, 0, 7, 4, 0, 1, 0, 1, 0, 1, 0, 1]);
        gives_up(factory, &configure_answers(reply)?, &format!("status {status:#x}"))?;
    }
    Ok(())
}

fn impossible_grant(factory: &dyn GuestFactory) -> Verdict {
    let none = vec![0, 1, 0, 7, 0];
    gives_up(factory, &configure_answers(Reply::Success(none))?, "a grant of none")?;
    let machine = Scripted::new(4, |call, host| match call.id {
        CallId::Configure => {
            host.pending = vec![0, 1, 2, 3, 4];
            host.configured(5)
        }
        _ => host.answer(call),
    })?;
    gives_up(factory, &machine, "a grant above the request")
}

/// Whatever the host writes: the guest ends, and what it does is still what a guest may do.
fn noise(factory: &dyn GuestFactory) -> Verdict {
    let mut random = 0x9e37_79b9_u32;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        random
    };
    let machine = Scripted::new(32, move |call, host| {
        if call.id == CallId::Negotiate {
            return host.answer(call);
        }
        let statuses = [0, 0, 0, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x99];
        let status = statuses[usize::try_from(next() % 11).unwrap_or(0)];
        let body = (0..next() % 120).map(|_| {
            let [low, high, ..] = next().to_le_bytes();
            if high % 2 == 0 { low & 3 } else { low }
        });
        let body = body.collect();
        match next() % 8 {
            0 => Reply::Error(CallError::Hardware),
            1 => Reply::Silent,
            _ => Reply::Raw(status, body),
        }
    })?;
    machine.drive(factory, |guest| {
        holds("a guest that starts", guest.start())?;
        for _ in 0..150 {
            let granted = guest.enable(32).unwrap_or(0);
            holds("no more vectors than requested", granted <= 32)?;
            for vector in 0..granted {
                let _ = guest.set_message(vector, super::message(vector.into()));
                let _ = guest.unmask(vector);
            }
            let _ = guest.after_reset(&|vector| Some(super::message(vector.into())));
            guest.disable();
        }
        holds("a bounded number of calls", machine.rings.get() < crate::guest::machine::RINGS_MAX)
    })?;
    let machine = Scripted::good(4)?;
    machine.drive(factory, |guest| enabled(&machine, guest, 4))
}
