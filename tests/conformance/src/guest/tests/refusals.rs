//! Chapter 7: going on without the service.

use pvmsi_protocol::{CallError, CallId, Parameter};

use super::works_by_the_table;
use crate::guest::GuestFactory;
use crate::guest::good_host::Reply;
use crate::guest::machine::Scripted;
use crate::suite::{Test, Verdict, equal, holds};

pub(super) const TESTS: &[Test] = &[
    Test::guest("a-refusal-means-the-standard-table", &["G-703", "W-701"], refusal),
    Test::guest("an-error-does-not-mean-no-interrupts", &["G-703", "W-701"], error),
    Test::guest("an-update-that-fails-leaves-the-table-alone", &["G-520", "G-703"], update),
];

/// A machine whose `configure` fails so, and all else well.
fn configure_fails<'s>(error: CallError) -> Verdict<Scripted<'s>> {
    Scripted::new(16, move |call, host| match call.id {
        CallId::Configure => Reply::Error(error),
        _ => host.answer(call),
    })
}

fn refusal(factory: &dyn GuestFactory) -> Verdict {
    for error in [
        CallError::NotSupported,
        CallError::NoSuchFunction,
        CallError::NoResources,
        CallError::Denied,
    ] {
        let machine = configure_fails(error)?;
        machine.drive(factory, |guest| {
            holds("a guest that starts", guest.start())?;
            equal(&format!("vectors enabled after {error}"), guest.enable(4), Ok(4))?;
            works_by_the_table(&machine, guest)?;
            guest.disable();
            Ok(())
        })?;
    }
    Ok(())
}

fn error(factory: &dyn GuestFactory) -> Verdict {
    for error in [
        CallError::Hardware,
        CallError::parameter(Parameter::Kind),
        CallError::vector(Parameter::Message, 3),
    ] {
        let machine = configure_fails(error)?;
        machine.drive(factory, |guest| {
            holds("a guest that starts", guest.start())?;
            if guest.enable(4).is_err() {
                equal("vectors enabled without the service", guest.enable_standard(4), Ok(4))?;
            }
            works_by_the_table(&machine, guest)
        })?;
    }
    Ok(())
}

fn update(factory: &dyn GuestFactory) -> Verdict {
    let machine = Scripted::new(4, |call, host| match call.id {
        CallId::Update => Reply::Error(CallError::Hardware),
        _ => host.answer(call),
    })?;
    machine.drive(factory, |guest| {
        super::enabled(&machine, guest, 4)?;
        let failed = guest.set_message(1, super::message(9)).is_err();
        holds("a failed update is an error of set_message", failed)?;
        machine.check_table("after an update that failed");
        equal("assigned", machine.host.borrow().assigned, 4)
    })
}
