//! Chapters 1 and 2: whether to call at all, how, and what was agreed.

use pvmsi_protocol::{CallId, Encode, Features, Limits, NegotiateAnswer, Version};

use super::{enabled, message, works_by_the_table};
use crate::guest::GuestFactory;
use crate::guest::good_host::Reply;
use crate::guest::machine::{ENABLE, Scripted};
use crate::suite::{Test, Verdict, equal, holds, there};

pub(super) const TESTS: &[Test] = &[
    Test::guest("a-life", &["W-202", "W-203", "W-220", "W-301", "G-201", "G-204", "G-132"], life),
    Test::guest("the-block-may-be-at-any-base", &["G-111", "W-101"], any_base),
    Test::guest("no-block-no-call", &["G-105", "G-111"], no_block),
    Test::guest("blocks-that-are-not-to-be-used", &["G-106", "G-105"], foreign_blocks),
    Test::guest("unknown-features-and-leaves", &["G-107", "W-102"], unknown_features),
    Test::guest("negotiate-comes-first", &["G-132"], negotiate_first),
    Test::guest("versions-that-cannot-be-used", &["W-130", "G-132"], versions),
    Test::guest("limits-are-kept", &["G-132", "G-201"], limits),
    Test::guest("nobody-answers", &["G-204"], nobody_answers),
    Test::guest("another-processor-reads-the-request", &["G-205", "G-206"], another_processor),
];

fn life(factory: &dyn GuestFactory) -> Verdict {
    let machine = Scripted::good(64)?;
    machine.drive(factory, |guest| {
        enabled(&machine, guest, 64)?;
        for vector in 0..64 {
            equal("set_message", guest.set_message(vector, message(vector.into())), Ok(()))?;
            equal("unmask", guest.unmask(vector), Ok(()))?;
            holds("an unmasked entry", !machine.masked(vector))?;
        }
        equal("mask", guest.mask(3), Ok(()))?;
        holds("a masked entry", machine.masked(3))?;
        guest.disable();
        equal("MSI-X Enable", machine.control() & ENABLE, 0)?;
        equal("vectors enabled again", guest.enable(2), Ok(2))?;
        guest.disable();
        Ok(())
    })
}

fn any_base(factory: &dyn GuestFactory) -> Verdict {
    for base in [0x4000_0000, 0x4000_0100, 0x4000_4200, 0x4000_fe00, 0x4000_ff00] {
        let machine = Scripted::good(4)?;
        machine.offer_at(base);
        machine.drive(factory, |guest| {
            holds(&format!("the block at {base:#x} is found"), guest.start())
        })?;
    }
    Ok(())
}

/// A guest that does not start must not ring, and must use the standard table.
fn stays_silent(factory: &dyn GuestFactory, machine: &Scripted<'_>, what: &str) -> Verdict {
    machine.drive(factory, |guest| {
        equal(&format!("start with {what}"), guest.start(), false)?;
        equal("vectors enabled", guest.enable(4), Ok(4))?;
        works_by_the_table(machine, guest)?;
        guest.disable();
        equal(&format!("calls with {what}"), machine.rings.get(), 0)
    })
}

fn no_block(factory: &dyn GuestFactory) -> Verdict {
    let machine = Scripted::good(4)?;
    machine.take_offer_back();
    stays_silent(factory, &machine, "no block")
}

fn foreign_blocks(factory: &dyn GuestFactory) -> Verdict {
    const BASE: u32 = 0x4000_0100;
    for (what, leaf, words) in [
        ("another signature", BASE, [BASE + 3, 0x4d2d_5650, 0x4953, 1]),
        ("a signature in another order", BASE, [BASE + 3, 0x4953, 0x4d2d_5650, 0]),
        ("a highest leaf of base + 2", BASE, [BASE + 2, 0x4d2d_5650, 0x4953, 0]),
        ("a highest leaf of 0", BASE, [0, 0x4d2d_5650, 0x4953, 0]),
        ("major version 2", BASE + 1, [2 << 16, 1, 0, 0]),
        ("major version 0", BASE + 1, [5, 1, 0, 0]),
    ] {
        let machine = Scripted::good(4)?;
        machine.put_leaf(leaf, words);
        stays_silent(factory, &machine, what)?;
    }
    Ok(())
}

fn unknown_features(factory: &dyn GuestFactory) -> Verdict {
    const BASE: u32 = 0x4000_0100;
    let machine = Scripted::good(4)?;
    machine.put_leaf(BASE, [BASE + 9, 0x4d2d_5650, 0x4953, 0]);
    machine.put_leaf(BASE + 1, [1 << 16 | 7, 0xffff_ffff, 0x1234, 0x5678]);
    machine.put_leaf(BASE + 4, [0xffff_ffff; 4]);
    machine.drive(factory, |guest| enabled(&machine, guest, 4))?;
    let calls = machine.calls_of(CallId::Negotiate);
    let call = there("negotiate", calls.first())?;
    match &call.body {
        crate::guest::call::Body::Negotiate(request) => {
            holds("only features that exist", Features::all().contains(request.features))
        }
        other => holds(&format!("negotiate, not {other:?}"), false),
    }
}

fn negotiate_first(factory: &dyn GuestFactory) -> Verdict {
    let machine = Scripted::good(4)?;
    machine.drive(factory, |guest| enabled(&machine, guest, 4))?;
    let calls: Vec<_> = machine.calls.borrow().iter().map(|call| call.id).collect();
    equal("the first call", calls.first(), Some(&CallId::Negotiate))
}

fn versions(factory: &dyn GuestFactory) -> Verdict {
    // Minors above the requested one, another major: nobody could use these.
    for (major, minor) in [(1, 1), (1, u16::MAX), (2, 0), (0, 0)] {
        let machine = Scripted::new(4, move |call, host| match call.id {
            CallId::Negotiate => {
                let answer = NegotiateAnswer {
                    version: Version { major, minor },
                    features: Features::empty(),
                    limits: host.limits,
                };
                let mut body = vec![0; 32];
                let used = answer.encode(&mut body).unwrap_or(0);
                body.truncate(used);
                Reply::Success(body)
            }
            _ => host.answer(call),
        })?;
        machine.drive(factory, |guest| {
            equal(&format!("start with version {major}.{minor}"), guest.start(), false)?;
            equal("vectors enabled", guest.enable(4), Ok(4))?;
            equal("calls but negotiate", machine.calls.borrow().len(), 1)?;
            works_by_the_table(&machine, guest)
        })?;
    }
    Ok(())
}

fn limits(factory: &dyn GuestFactory) -> Verdict {
    let machine = Scripted::good(64)?;
    machine.host.borrow_mut().limits = Limits { buffer_bytes: 4096, vectors: 16 };
    machine.offer_at(0x4000_0100);
    // Every ring is held against the limits.
    machine.drive(factory, |guest| {
        holds("a guest that starts", guest.start())?;
        if let Ok(granted) = guest.enable(64) {
            let assigned = machine.host.borrow().assigned;
            holds("no more vectors than the limit, or none by the service", assigned <= 16)?;
            holds("no more vectors than assigned", assigned == 0 || granted <= assigned)?;
        }
        Ok(())
    })
}

fn nobody_answers(factory: &dyn GuestFactory) -> Verdict {
    let machine = Scripted::new(4, |_, _| Reply::Silent)?;
    machine.drive(factory, |guest| {
        equal("start", guest.start(), false)?;
        equal("vectors enabled", guest.enable(4), Ok(4))?;
        works_by_the_table(&machine, guest)
    })?;
    // A host that falls silent later.
    let machine = Scripted::new(4, |call, host| match call.id {
        CallId::Negotiate => host.answer(call),
        _ => Reply::Silent,
    })?;
    machine.drive(factory, |guest| {
        holds("a guest that starts", guest.start())?;
        equal("vectors enabled", guest.enable(4), Ok(4))?;
        works_by_the_table(&machine, guest)
    })
}

fn another_processor(factory: &dyn GuestFactory) -> Verdict {
    let machine = Scripted::good(32)?;
    machine.read_elsewhere.set(true);
    machine.drive(factory, |guest| {
        enabled(&machine, guest, 32)?;
        for vector in 0..32 {
            equal("set_message", guest.set_message(vector, message(vector.into())), Ok(()))?;
        }
        Ok(())
    })?;
    // What was answered is what the guest has read: all 32 were granted, and each call succeeded.
    equal("updates", machine.calls_of(CallId::Update).len(), 32)
}
