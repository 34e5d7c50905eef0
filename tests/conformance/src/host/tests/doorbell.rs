//! Chapter 2: doorbells, processors, machines.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use pvmsi_protocol::{CallError, CallId, FunctionId, Sequence, Status};

use super::discovery::{ARM64, CALL, INVALID};
use crate::host::call::{PAGE, configure_body, encoded, error_of, request, success, vector_states};
use crate::host::machine::Machine;
use crate::host::{HostFactory, HostOptions};
use crate::suite::{Test, Verdict, differ, equal, holds, there};

pub(super) const TESTS: &[Test] = &[
    Test::host("a-page-number-rings", &["W-220", "H-221"], page_number),
    Test::host("a-page-number-rings-by-smccc", &["W-220", "H-221"], smccc),
    Test::host("other-accesses-to-a-doorbell", &["H-222"], other_widths),
    Test::host("calls-from-several-processors", &["H-223"], several_processors),
    Test::host("functions-of-another-machine", &["H-224"], another_machine),
];

fn page_number(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::new(factory)?;
    let header = request(CallId::QueryFunction, machine.function, 0);
    machine.put(PAGE, &header, &[]);
    machine.put(0x30, &header, &[]);
    machine.host.doorbell_write(&0x30_u32.to_le_bytes());
    equal("the buffer that was not rung for", machine.answer(PAGE).0, header)?;
    let (answer, body) = machine.checked_answer(0x30, &header)?;
    equal("the buffer that was rung for", error_of(&answer, &body)?, None)
}

fn smccc(factory: &dyn HostFactory) -> Verdict {
    let machine =
        Machine::with(factory, HostOptions { platform: Some(ARM64), ..HostOptions::default() })?;
    let call = |x1| there("SMCCC calls", machine.host.smccc(CALL, x1));
    let header = request(CallId::QueryFunction, machine.function, 0);
    machine.put(PAGE, &header, &[]);
    equal("X0 to X3", call(PAGE.into())?, [0, 0, 0, 0])?;
    let (answer, body) = machine.checked_answer(PAGE, &header)?;
    equal("the call's error", error_of(&answer, &body)?, None)?;
    for x1 in [0x40, 0x100, u64::from(u32::MAX), 1 << 32 | u64::from(PAGE)] {
        equal(&format!("X0 to X3 for {x1:#x}, no buffer"), call(x1)?, [INVALID, 0, 0, 0])?;
    }
    // An error is an answer.
    let foreign = request(CallId::QueryFunction, FunctionId(0x1234_5678), 0);
    machine.put(PAGE, &foreign, &[]);
    equal("X0 to X3 of a call that fails", call(PAGE.into())?, [0, 0, 0, 0])
}

fn other_widths(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    machine.configure(4)?;
    let before = machine.snapshot()?;
    let header = request(CallId::Release, machine.function, 0);
    machine.put(PAGE, &header, &[]);
    let page = u64::from(PAGE).to_le_bytes();
    for width in [1, 2, 8] {
        machine.host.doorbell_write(&page[..width]);
        machine.host.doorbell_read(&mut vec![0; width]);
    }
    machine.host.doorbell_read(&mut [0; 4]);
    equal("the buffer after accesses that do not ring", machine.answer(PAGE).0, header)?;
    equal("the function", machine.snapshot()?, before)
}

/// Two processors configure by turns, in two ways; a third looks, and must never see a mixture.
fn several_processors(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    let configure = |page: u32, count: u16, offset: u16| -> Verdict {
        let setups: Vec<_> = (0..count)
            .map(|at| pvmsi_protocol::VectorSetup {
                message: Some(machine.message(at + offset)),
                masked: false,
            })
            .collect();
        let body = configure_body(pvmsi_protocol::Kind::MsiX, count, Sequence::START, &setups);
        for _ in 0..50 {
            let header = request(CallId::Configure, machine.function, body.len());
            success("configure", machine.raw(page, header, &body)?)?;
        }
        Ok(())
    };
    let look = |running: &AtomicUsize| -> Verdict {
        let body = encoded(&pvmsi_protocol::QueryVectorsRequest { first: 0, count: 8 });
        while running.load(Ordering::SeqCst) != 0 {
            let header = request(CallId::QueryVectors, machine.function, body.len());
            let answer = success("query-vectors", machine.raw(0x40, header, &body)?)?;
            let (_, states) = vector_states(&answer)?;
            let seen: Vec<_> = states.iter().map(|state| state.guest_message).collect();
            let way = |count: u16, offset: u16| -> Vec<_> {
                let given = (0..count).map(|at| Some(machine.message(at + offset)));
                given.chain((count..8).map(|_| None)).collect()
            };
            let whole = [way(0, 0), way(4, 100), way(8, 200)].contains(&seen);
            holds(&format!("one configure's vectors, not a mixture: {seen:x?}"), whole)?;
        }
        Ok(())
    };
    let running = AtomicUsize::new(2);
    let configure = |page, count, offset| {
        let configured = configure(page, count, offset);
        running.fetch_sub(1, Ordering::SeqCst);
        configured
    };
    factory.at_once(&[&|| look(&running), &|| configure(0x20, 4, 100), &|| configure(0x30, 8, 200)])
}

fn another_machine(factory: &dyn HostFactory) -> Verdict {
    let mine = Machine::enabled(factory)?;
    let other = HostOptions { function: FunctionId(0x1_0010), ..HostOptions::default() };
    let theirs = Machine::enabled_with(factory, other)?;
    mine.configure(4)?;
    theirs.configure(4)?;
    let before = theirs.snapshot()?;
    differ("addresses of the functions", mine.function, theirs.function)?;
    for call in CallId::ALL.into_iter().filter(|call| *call != CallId::Negotiate) {
        let body: &[u8] = match call {
            CallId::QueryVectors => &[0, 1],
            CallId::Configure => &[1, 2, 0, 0],
            CallId::Update => &[0],
            _ => &[],
        };
        let header = request(call, theirs.function, body.len());
        let (answer, body) = mine.ring(PAGE, header, body)?;
        equal("an answer", answer.status == Status::SENTINEL, false)?;
        let error = error_of(&answer, &body)?;
        equal(call.name(), error, Some(CallError::NoSuchFunction))?;
    }
    equal("the other machine's function", theirs.snapshot()?, before)
}
