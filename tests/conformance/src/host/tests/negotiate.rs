//! Chapter 4: rules for all calls, and `negotiate`.

use alloc::borrow::ToOwned;
use alloc::vec::Vec;

use pvmsi_protocol::{
    CallError, CallId, Features, FunctionId, Header, NegotiateAnswer, NegotiateRequest, Sequence,
    Version,
};

use crate::host::call::{PAGE, encoded, request, success};
use crate::host::machine::Machine;
use crate::host::{HostFactory, HostOptions};
use crate::suite::{Stop, Test, Verdict, equal, holds};

pub(super) const TESTS: &[Test] = &[
    Test::host("unknown-calls-and-functions", &["H-401"], unknown),
    Test::host("a-refused-step-changes-nothing", &["H-402"], refused_step),
    Test::host("only-configure-is-busy", &["H-403"], only_configure_is_busy),
    Test::host("any-order-of-calls", &["H-404"], any_order),
    Test::host("any-order-of-calls-of-a-busy-host", &["H-404"], any_order_busy),
    Test::host("negotiate-agrees", &["H-410", "W-130"], agrees),
    Test::host("negotiate-changes-nothing", &["H-411"], changes_nothing),
];

fn unknown(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    machine.configure(4)?;
    let before = machine.snapshot()?;
    for call in [0, 8, 9, 99, u32::MAX] {
        let header = Header { call, ..request(CallId::Release, machine.function, 0) };
        equal("unknown call", machine.raw(PAGE, header, &[])?, Err(CallError::NotSupported))?;
    }
    for function in [0, 9, 0xf8, 0x1_0008, u32::MAX] {
        let header = request(CallId::Release, FunctionId(function), 0);
        let answer = machine.raw(PAGE, header, &[])?;
        equal("unknown function", answer, Err(CallError::NoSuchFunction))?;
    }
    equal("the function", machine.snapshot()?, before)
}

/// Lets each step of a call be refused in turn.
fn refused_step(factory: &dyn HostFactory) -> Verdict {
    type Step = fn(&Machine) -> Verdict<Result<(), CallError>>;
    let grow: Step = |m| Ok(m.try_configure(6, Sequence::START, &m.setups(6, false))?.map(drop));
    let shrink: Step = |m| Ok(m.try_configure(2, Sequence::START, &m.setups(2, true))?.map(drop));
    let update: Step = |m| Ok(m.try_update(&[(0, m.message(50)), (3, m.message(51))])?.map(drop));
    for (what, assigned, act) in [
        ("first configure", 0, grow),
        ("grow", 4, grow),
        ("shrink", 6, shrink),
        ("update", 4, update),
    ] {
        for step in 1..64 {
            let machine = Machine::enabled(factory)?;
            if assigned > 0 {
                machine.configure(assigned)?;
            }
            let before = machine.snapshot()?;
            if !machine.host.refuse_step(step) {
                return Err(Stop::Skipped("the host cannot be made to fail".to_owned()));
            }
            let answer = act(&machine)?;
            let through = machine.host.refusal_is_due();
            machine.host.refuse_step(0);
            if through {
                break;
            }
            if answer.is_err() {
                equal(&format!("the function, {what}, step {step}"), machine.snapshot()?, before)?;
                for vector in 0..assigned {
                    machine.arrives(vector, vector)?;
                }
            }
        }
    }
    Ok(())
}

fn only_configure_is_busy(factory: &dyn HostFactory) -> Verdict {
    let options = HostOptions { vectors: 64, vectors_per_call: Some(1), ..HostOptions::default() };
    let machine = Machine::enabled_with(factory, options)?;
    let first = machine.try_configure(64, Sequence::START, &[])?;
    holds(&format!("busy: {first:?}"), matches!(first, Err(CallError::Busy(_))))?;
    machine.query()?;
    machine.states()?;
    machine.restore()?;
    equal("assigned", machine.query()?.assigned, 0)?;
    machine.release()?;
    machine.configure_with(1, &[])?;
    machine.update(&[(0, 7)]).map(drop)
}

fn any_order(factory: &dyn HostFactory) -> Verdict {
    hostile(factory, HostOptions::default())
}

fn any_order_busy(factory: &dyn HostFactory) -> Verdict {
    let options = HostOptions { vectors: 16, vectors_per_call: Some(5), ..HostOptions::default() };
    hostile(factory, options)
}

/// Calls with numbers that a hostile guest could choose, in an order that is none.
fn hostile(factory: &dyn HostFactory, options: HostOptions) -> Verdict {
    let vectors = options.vectors;
    let machine = Machine::enabled_with(factory, options)?;
    let mut random = Random(0x9e37_79b9);
    for _ in 0..3000 {
        let call = random.next() % 9;
        let body: Vec<u8> = (0..random.next() % 24).map(|_| random.byte()).collect();
        let header = Header { call, ..request(CallId::Release, machine.function, body.len()) };
        // Any answer will do, as long as it is one.
        let _ = machine.raw(PAGE, header, &body)?;
        match random.next() % 16 {
            0 => machine.control(if random.next().is_multiple_of(2) { 0 } else { 0x8000 }),
            1 => machine.raise(u16::from(random.byte()) % vectors),
            2 => machine.unmask(u16::from(random.byte()) % vectors),
            3 => machine.function_level_reset(),
            _ => {}
        }
        machine.routes_up_to(vectors.into())?;
    }
    machine.control(0);
    machine.control(0x8000);
    machine.host.interrupts();
    let setups = machine.setups(vectors, false);
    let mut answer = machine.try_configure(vectors, Sequence::START, &setups)?;
    for _ in 0..16 {
        let Err(CallError::Busy(busy)) = answer else { break };
        answer = machine.try_configure(vectors, busy.sequence, &setups)?;
    }
    success("configure after all that", answer)?;
    // Events of before may have waited for it.
    machine.interrupts()?;
    machine.arrives(vectors - 1, vectors - 1)
}

fn negotiate(
    machine: &Machine,
    version: Version,
    features: Features,
) -> Verdict<Result<NegotiateAnswer, CallError>> {
    let body = encoded(&NegotiateRequest { version, features });
    // Neither function nor version of the header count.
    let header = Header {
        version: Version { major: 0x4711, minor: 9 },
        ..request(CallId::Negotiate, FunctionId(0xffff_fff0), body.len())
    };
    Ok(match machine.raw(PAGE, header, &body)? {
        Ok(body) => {
            let answer = NegotiateAnswer::decode(&body);
            Ok(answer.map_err(|error| Stop::Failed(format!("answer of negotiate: {error}")))?)
        }
        Err(error) => Err(error),
    })
}

fn agrees(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::new(factory)?;
    for minor in [0, 1, 7, u16::MAX] {
        let version = Version { major: 1, minor };
        let answer = success("negotiate", negotiate(&machine, version, Features::all())?)?;
        equal("major", answer.version.major, 1)?;
        holds("a minor of at most the requested one", answer.version.minor <= minor)?;
        let known = Features::all().contains(answer.features);
        holds("features that were requested", known)?;
        let limits = answer.limits;
        holds("a largest buffer", (4096..=65536).contains(&limits.buffer_bytes))?;
        holds("most vectors", (1..=2048).contains(&limits.vectors))?;
    }
    let none = success("negotiate", negotiate(&machine, Version::V1_0, Features::empty())?)?;
    equal("features when none are requested", none.features, Features::empty())?;
    let future = Features::from_bits_retain(0xffff_fff8);
    let answer = success("negotiate", negotiate(&machine, Version::V1_0, future)?)?;
    equal("features that this host cannot know", answer.features, Features::empty())?;
    for major in [0, 2, 99, u16::MAX] {
        let answer = negotiate(&machine, Version { major, minor: 0 }, Features::all())?;
        equal(&format!("major {major}"), answer, Err(CallError::NotSupported))?;
    }
    Ok(())
}

fn changes_nothing(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::new(factory)?;
    success("before all", negotiate(&machine, Version::V1_0, Features::all())?)?;
    machine.control(0x8000);
    machine.configure(4)?;
    let before = machine.snapshot()?;
    success("in between", negotiate(&machine, Version::V1_0, Features::empty())?)?;
    let _ = negotiate(&machine, Version { major: 9, minor: 9 }, Features::empty())?;
    equal("the function", machine.snapshot()?, before)?;
    machine.arrives(3, 3)
}

/// Numbers that are the same in every run.
struct Random(u32);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0
    }

    /// Small ones more often: they are lengths and numbers of variants.
    fn byte(&mut self) -> u8 {
        let [low, high, ..] = self.next().to_le_bytes();
        if high % 4 == 0 { low } else { low & 7 }
    }
}
