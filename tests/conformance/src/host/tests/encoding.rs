//! Chapters 3 and 7: how bodies are encoded, and how errors are.

use pvmsi_protocol::{
    CallError, CallId, ConfigureRequest, FunctionId, Kind, Parameter, Sequence, Status, VectorSetup,
};

use crate::host::call::{PAGE, bytes, configure_body, request};
use crate::host::machine::Machine;
use crate::host::{HostFactory, HostOptions, Policy};
use crate::suite::{Test, Verdict, equal, holds};

pub(super) const TESTS: &[Test] = &[
    Test::host("numbers-are-short-in-answers", &["W-301"], short_numbers),
    Test::host("numbers-padded-with-zeros-are-taken", &["W-302"], padded),
    Test::host("numbers-too-long-or-too-large-are-refused", &["W-302"], too_long),
    Test::host("values-outside-their-type-are-refused", &["W-303"], outside_their_type),
    Test::host("bodies-too-short-or-too-long-are-refused", &["W-304"], wrong_length),
    Test::host("each-error-has-its-status", &["W-701"], statuses),
    Test::host("errors-of-a-host-at-its-limits", &["W-701"], statuses_at_limits),
    Test::host("several-things-wrong", &["H-704"], several_things_wrong),
];

/// Answers are compared with their shortest encoding wherever they are read; here all calls are made once, with numbers of every length.
fn short_numbers(factory: &dyn HostFactory) -> Verdict {
    let machine =
        Machine::enabled_with(factory, HostOptions { vectors: 300, ..HostOptions::default() })?;
    machine.configure(300)?;
    machine.update(&[(299, 4000)])?;
    equal("vectors described", machine.states()?.len(), 300)?;
    machine.query()?;
    machine.restore()?;
    machine.release().map(drop)
}

fn padded(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    // Kind 1 as u32 in five bytes, 2 vectors as u16 in three, sequence 0 in five, an empty list in two.
    let body = [0x81, 0x80, 0x80, 0x80, 0, 0x82, 0x80, 0, 0x80, 0x80, 0x80, 0x80, 0, 0x80, 0];
    let answer = machine.call(CallId::Configure, &body)?;
    holds(&format!("success: {answer:?}"), answer.is_ok())?;
    equal("assigned", machine.query()?.assigned, 2)
}

fn refused(machine: &Machine, call: CallId, body: &[u8]) -> Verdict {
    let answer = machine.call(call, body)?;
    let error = Err(CallError::parameter(Parameter::Body));
    equal(&format!("{} with body {body:02x?}", call.name()), answer, error)
}

fn too_long(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    machine.configure(4)?;
    let before = machine.snapshot()?;
    for body in [
        &[1, 0x82, 0x80, 0x80, 0, 0, 0][..],
        &[1, 0xff, 0xff, 0x04, 0, 0],
        &[0x81, 0x80, 0x80, 0x80, 0x80, 0, 2, 0, 0],
        &[1, 2, 0xff, 0xff, 0xff, 0xff, 0x10, 0],
        &[1, 2, 0, 0x80, 0x80, 0x80, 0],
        // An address of eleven bytes, and one whose tenth byte is too large.
        &[1, 2, 0, 1, 1, 0x80, 0x80, 0x80, 0xf7, 0x8f, 0x80, 0x80, 0x80, 0x80, 0x80, 0, 0x41, 0],
        &[1, 2, 0, 1, 1, 0x80, 0x80, 0x80, 0xf7, 0x8f, 0x80, 0x80, 0x80, 0x80, 0x02, 0x41, 0],
    ] {
        refused(&machine, CallId::Configure, body)?;
    }
    refused(&machine, CallId::QueryVectors, &[0, 0x80, 0x80, 0x80, 1])?;
    equal("the function", machine.snapshot()?, before)
}

fn outside_their_type(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    machine.configure(4)?;
    let before = machine.snapshot()?;
    for body in [
        // Kind 2; a boolean of 2; an optional that starts with 2.
        &[2, 2, 0, 0][..],
        &[1, 2, 0, 1, 0, 2],
        &[1, 2, 0, 1, 2, 0x80, 0x80, 0x80, 0xf7, 0x0f, 0x41, 0],
    ] {
        refused(&machine, CallId::Configure, body)?;
    }
    equal("the function", machine.snapshot()?, before)
}

fn wrong_length(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    machine.configure(4)?;
    let before = machine.snapshot()?;
    let setups = machine.setups(3, true);
    let whole = configure_body(Kind::MsiX, 3, Sequence::START, &setups);
    for length in 0..whole.len() {
        refused(&machine, CallId::Configure, &whole[..length])?;
    }
    let mut longer = whole;
    longer.push(0);
    refused(&machine, CallId::Configure, &longer)?;
    for call in [CallId::QueryFunction, CallId::Release, CallId::Restore] {
        refused(&machine, call, &[0])?;
    }
    refused(&machine, CallId::QueryVectors, &[0])?;
    refused(&machine, CallId::QueryVectors, &[0, 1, 0])?;
    refused(&machine, CallId::Update, &[])?;
    refused(&machine, CallId::Update, &[0, 0])?;
    equal("the function", machine.snapshot()?, before)
}

/// The status of an answer, and how long its body is.
fn status(
    machine: &Machine,
    call: u32,
    function: FunctionId,
    body: &[u8],
) -> Verdict<(Status, usize)> {
    let header = request(CallId::Configure, function, body.len());
    let header = pvmsi_protocol::Header { call, ..header };
    machine.ring(PAGE, header, body).map(|(answer, body)| (answer.status, body.len()))
}

fn statuses(factory: &dyn HostFactory) -> Verdict {
    let good = configure_body(Kind::MsiX, 4, Sequence::START, &[]);
    let configure = CallId::Configure.number();
    let machine = Machine::enabled(factory)?;
    let own = machine.function;
    equal("unknown call", status(&machine, 99, own, &[])?, (Status::NOT_SUPPORTED, 0))?;
    let foreign = FunctionId(0x4711);
    let seen = status(&machine, configure, foreign, &good)?;
    equal("foreign function", seen, (Status::NO_SUCH_FUNCTION, 0))?;
    let seen = status(&machine, configure, own, &[1, 0, 0, 0])?;
    equal("count of 0", seen, (Status::PARAMETER, 2))?;
    let options = HostOptions { policy: Policy::Denied, ..HostOptions::default() };
    let denied = Machine::enabled_with(factory, options)?;
    let seen = status(&denied, configure, denied.function, &good)?;
    equal("denied", seen, (Status::DENIED, 0))
}

fn statuses_at_limits(factory: &dyn HostFactory) -> Verdict {
    let good = configure_body(Kind::MsiX, 4, Sequence::START, &[]);
    let configure = CallId::Configure.number();
    let options = HostOptions { vectors_per_call: Some(1), ..HostOptions::default() };
    let busy = Machine::enabled_with(factory, options)?;
    equal("busy", status(&busy, configure, busy.function, &good)?.0, Status::BUSY)?;
    let options = HostOptions { routes: Some(0), ..HostOptions::default() };
    let none = Machine::enabled_with(factory, options)?;
    let seen = status(&none, configure, none.function, &good)?;
    equal("no routes", seen, (Status::NO_RESOURCES, 0))
}

fn several_things_wrong(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    machine.configure(4)?;
    let before = machine.snapshot()?;
    let bad = pvmsi_protocol::GuestMessage { address: 1, data: 0 };
    let setups = [VectorSetup { message: Some(bad), masked: true }; 3];
    let encode = |buffer: &mut [u8]| {
        ConfigureRequest::encode(Kind::Msi, 0, Sequence(9), setups.into_iter(), buffer)
    };
    let body = bytes(encode);
    let answer = machine.call(CallId::Configure, &body)?;
    let wrong = [Parameter::Kind, Parameter::Count, Parameter::Message, Parameter::Sequence];
    let one =
        matches!(answer, Err(CallError::Parameter(error)) if wrong.contains(&error.parameter));
    holds(&format!("one of the things that are wrong: {answer:?}"), one)?;
    equal("the function", machine.snapshot()?, before)
}
