//! Chapter 2: the call buffer.

use alloc::borrow::ToOwned;
use alloc::vec::Vec;
use core::cell::Cell;

use pvmsi_protocol::{
    CallError, CallId, Encode, GuestMessage, Header, Kind, Parameter, Sequence, Status,
};

use crate::host::call::{PAGE, configure_body, request, update_body};
use crate::host::machine::{ENABLE, Machine};
use crate::host::{Ability, HostFactory, HostOptions, Platform, RAM_BYTES, Ram};
use crate::suite::{Stop, Test, Verdict, equal, holds, there};

pub(super) const TESTS: &[Test] = &[
    Test::host("example-of-the-text", &["W-202", "W-203", "W-301", "W-303"], example),
    Test::host("every-call-is-answered-in-its-buffer", &["W-202", "W-203", "H-221"], answered),
    Test::host("read-once", &["H-207"], read_once),
    Test::host("nothing-outside-the-buffer", &["H-208"], nothing_outside),
    Test::host("nothing-after-the-return", &["H-208"], nothing_after),
    Test::host("body-before-header", &["H-209"], body_before_header),
    Test::host("no-call-buffer", &["H-210"], no_call_buffer),
    Test::host("buffer-too-long-or-beyond-ram", &["H-211"], bad_length),
    Test::host("header-refused-before-the-body", &["H-212"], header_refused),
    Test::host("answer-room", &["H-213"], answer_room),
];

const ADDRESS: u64 = (PAGE as u64) << 12;

fn example(factory: &dyn HostFactory) -> Verdict {
    // Its message is one for a local APIC, and the function is the first of the machine.
    let platform = Some(Platform::X86);
    let machine =
        Machine::enabled_with(factory, HostOptions { platform, ..HostOptions::default() })?;
    let head: [u8; 32] = [
        0x50, 0x4d, 0x53, 0x49, 1, 0, 0, 0, 4, 0, 0, 0, 8, 0, 0, 0, 0, 0x10, 0, 0, 0x0e, 0, 0, 0,
        0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0,
    ];
    let body = [1, 2, 0, 2, 1, 0x80, 0x80, 0x80, 0xf7, 0x0f, 0x41, 0, 0, 1];
    let (header, _) = machine.ring(PAGE, Header::from_bytes(&head), &body)?;
    equal("status", header.status, Status::SUCCESS)?;
    let states = machine.states()?;
    let seen: Vec<_> = states
        .iter()
        .take(3)
        .map(|state| (state.assigned, state.guest_message.map(|it| (it.address, it.data))))
        .collect();
    let first = Some((0xfee0_0000, 0x41));
    equal("vectors 0 to 2", seen, vec![(true, first), (true, None), (false, None)])?;
    equal("mask bits", (states[0].masked, states[1].masked), (false, true))
}

fn answered(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    for call in CallId::ALL {
        let body = body_of(&machine, call);
        for page in [PAGE, 0x20, 1, 0xf0] {
            let header = request(call, machine.function, body.len());
            let (answer, _) = machine.ring(page, header, &body)?;
            let what =
                format!("{} at page {page:#x} is answered when the ring returns", call.name());
            holds(&what, answer.status != Status::SENTINEL)?;
        }
    }
    Ok(())
}

/// A valid request of each call.
fn body_of(machine: &Machine, call: CallId) -> Vec<u8> {
    match call {
        CallId::Negotiate => vec![1, 0, 0],
        CallId::QueryVectors => vec![0, 8],
        CallId::Configure => {
            configure_body(Kind::MsiX, 8, Sequence::START, &machine.setups(8, false))
        }
        CallId::Update => update_body(&[(0, machine.message(5))]),
        CallId::QueryFunction | CallId::Release | CallId::Restore => Vec::new(),
    }
}

/// Another processor changes the request before each access of the host in turn. Whenever that is, the host must act on one request, and on a checked one.
fn read_once(factory: &dyn HostFactory) -> Verdict {
    for moment in 0..64 {
        let machine = Machine::enabled(factory)?;
        machine.configure(1)?;
        let message = machine.message(100);
        let good = update_body(&[(0, message)]);
        // As long as the good one, but no message of the platform; and one of another vector.
        let bad = GuestMessage { address: message.address ^ 0x10_0000, ..message };
        let bad = update_body(&[(0, bad)]);
        equal("length of the other request", bad.len(), good.len())?;
        let header = request(CallId::Update, machine.function, good.len());
        machine.put(PAGE, &header, &good);
        let accesses = Cell::new(0);
        let watched = machine.host.ring_watched(PAGE, &mut |ram: &dyn Ram| {
            if accesses.get() == moment {
                ram.write(ADDRESS + 32, &bad);
            }
            accesses.set(accesses.get() + 1);
        });
        if !watched {
            return Err(Stop::Skipped("the host cannot be watched".to_owned()));
        }
        if accesses.get() <= moment {
            break;
        }
        let (answer, _) = machine.checked_answer(PAGE, &header)?;
        let expected = if answer.status == Status::SUCCESS { 100 } else { 0 };
        let refused = answer.status == Status::PARAMETER;
        holds("success or a parameter error", expected == 100 || refused)?;
        let message = machine.states()?[0].guest_message;
        let what = format!("message in force, request changed before access {moment}");
        equal(&what, message, Some(machine.message(expected)))?;
        machine.arrives(0, expected)?;
    }
    Ok(())
}

fn nothing_outside(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    for call in CallId::ALL {
        let body = body_of(&machine, call);
        for length in (32..80).chain([4096, 5000, 8191]) {
            let mut before = vec![0xa5; 0x3000];
            machine.host.ram().write(ADDRESS - 0x1000, &before);
            let mut header = request(call, machine.function, body.len());
            header.buffer_length = length;
            machine.put(PAGE, &header, &body);
            machine.host.ram().read(ADDRESS - 0x1000, &mut before);
            machine.host.ring(PAGE);
            let mut after = vec![0; 0x3000];
            machine.host.ram().read(ADDRESS - 0x1000, &mut after);
            let end = 0x1000 + usize::try_from(length).unwrap_or(0);
            // A body that the buffer has no room for was put there by the guest.
            let what = format!("{} with a buffer of {length} bytes writes only there", call.name());
            holds(&what, after[..0x1000] == before[..0x1000] && after[end..] == before[end..])?;
        }
    }
    Ok(())
}

fn nothing_after(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    machine.configure(8)?;
    let mut pattern = vec![0x5a; 0x1_0000];
    machine.host.ram().write(ADDRESS, &pattern);
    machine.raise(0);
    machine.interrupts()?;
    machine.mask(1);
    machine.function_level_reset();
    if machine.can(Ability::Revoke) {
        machine.host.revoke();
        machine.host.allow();
    }
    machine.ring(0x20, request(CallId::QueryFunction, machine.function, 0), &[])?;
    machine.control(0);
    machine.host.ram().read(ADDRESS, &mut pattern);
    holds("a buffer that is not written later", pattern.iter().all(|&byte| byte == 0x5a))
}

fn body_before_header(factory: &dyn HostFactory) -> Verdict {
    for call in CallId::ALL {
        let machine = Machine::enabled(factory)?;
        let body = body_of(&machine, call);
        let header = request(call, machine.function, body.len());
        machine.put(PAGE, &header, &body);
        let early = Cell::new(None);
        let watched = machine.host.ring_watched(PAGE, &mut |ram: &dyn Ram| {
            let mut head = [0; 32];
            ram.read(ADDRESS, &mut head);
            if Header::from_bytes(&head).status != Status::SENTINEL && early.take().is_none() {
                let mut body = vec![0; 0x1000];
                ram.read(ADDRESS + 32, &mut body);
                early.set(Some(body));
            }
        });
        if !watched {
            return Err(Stop::Skipped("the host cannot be watched".to_owned()));
        }
        let (_, body) = machine.checked_answer(PAGE, &header)?;
        if let Some(early) = early.take() {
            let what = format!("the body of {} when its status was written", call.name());
            equal(&what, &early[..body.len().min(early.len())], &body[..])?;
        }
    }
    Ok(())
}

fn no_call_buffer(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    machine.configure(4)?;
    let before = machine.snapshot()?;
    for page in [0x100, 0xc_0000, u32::MAX] {
        machine.host.ring(page);
    }
    let good = request(CallId::Release, machine.function, 0);
    for header in [
        Header { magic: 0x494d_5350 ^ 1, ..good },
        Header { magic: 0, ..good },
        Header { buffer_length: 0, ..good },
        Header { buffer_length: 31, ..good },
    ] {
        let (answer, _) = machine.ring(PAGE, header, &[])?;
        equal("a buffer that is none", answer, header)?;
    }
    equal("the function", machine.snapshot()?, before)
}

fn bad_length(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    machine.configure(4)?;
    let before = machine.snapshot()?;
    let last = u32::try_from((RAM_BYTES >> 12) - 1).unwrap_or(0);
    let refusal = CallError::parameter(Parameter::BufferLength);
    for (page, length) in
        [(PAGE, 65537), (PAGE, 0x8000_0000), (PAGE, u32::MAX), (last, 4097), (last, 65536)]
    {
        let rest = u64::from(page + 1) << 12;
        let length_of_rest = usize::try_from((RAM_BYTES - rest).min(0x1_0000)).unwrap_or(0);
        let pattern = vec![0xa5; length_of_rest];
        machine.host.ram().write(rest, &pattern);
        let header =
            Header { buffer_length: length, ..request(CallId::Release, machine.function, 0) };
        let answer = machine.raw(page, header, &[])?;
        equal(&format!("a buffer of {length} bytes"), answer, Err(refusal))?;
        let mut after = vec![0; length_of_rest];
        machine.host.ram().read(rest, &mut after);
        holds("nothing written beyond the first page", after == pattern)?;
    }
    equal("the function", machine.snapshot()?, before)
}

fn header_refused(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    machine.configure(4)?;
    let before = machine.snapshot()?;
    let good = request(CallId::Release, machine.function, 0);
    for (header, parameter) in [
        (Header { reserved: 1, ..good }, Parameter::Header),
        (Header { reserved: u32::MAX, ..good }, Parameter::Header),
        (Header { buffer_length: 4096, body_length: 4065, ..good }, Parameter::BodyLength),
        (Header { body_length: 65536 - 31, ..good }, Parameter::BodyLength),
        (Header { body_length: u32::MAX, ..good }, Parameter::BodyLength),
    ] {
        let answer = machine.raw(PAGE, header, &[])?;
        equal(&format!("{header:?}"), answer, Err(CallError::parameter(parameter)))?;
    }
    equal("the function", machine.snapshot()?, before)
}

fn answer_room(factory: &dyn HostFactory) -> Verdict {
    let refused = Err(CallError::parameter(Parameter::AnswerRoom));
    let machine = Machine::enabled(factory)?;
    machine.configure(4)?;
    let before = machine.snapshot()?;
    let with = |call, buffer_length, body: &[u8]| {
        let header = Header { buffer_length, ..request(call, machine.function, body.len()) };
        machine.raw(PAGE, header, body)
    };
    // Too little for any answer, and for a list.
    let configure = configure_body(Kind::MsiX, 8, Sequence::START, &[]);
    equal("query-function, 3 bytes", with(CallId::QueryFunction, 35, &[])?.map(drop), refused)?;
    equal("configure, 10 bytes", with(CallId::Configure, 42, &configure)?.map(drop), refused)?;
    let query = pvmsi_protocol::QueryVectorsRequest { first: 0, count: 8 };
    let mut body = [0; 8];
    let used = query.encode(&mut body).unwrap_or(0);
    let body = there("a body", body.get(..used))?;
    equal("query-vectors, 4 bytes", with(CallId::QueryVectors, 36, body)?.map(drop), refused)?;
    equal("the function", machine.snapshot()?, before)?;
    // What the text says suffices.
    for (call, body, room) in [
        (CallId::QueryFunction, &[][..], 32),
        (CallId::Release, &[], 32),
        (CallId::Restore, &[], 32),
        (CallId::QueryVectors, body, 32 + 36),
        (CallId::Configure, &configure[..], 32 + 17 * 8),
    ] {
        let answer = with(call, 32 + room, body)?;
        holds(&format!("{} in {room} bytes of body: {answer:?}", call.name()), answer.is_ok())?;
    }
    machine.control(ENABLE);
    Ok(())
}
