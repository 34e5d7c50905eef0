//! Every operation, with every one of its calls through the seams failing: once, and from there on.
//!
//! Exhaustive, not sampled: an operation runs again and again, with its first
//! call failing, its second, and so on, until it comes through untouched. Then
//! the same with the kernel refusing everything from that call on. The run
//! without a failure says what must come out in the end.
//!
//! | | after a failure | after the next operation that works |
//! |---|---|---|
//! | a call that answers an error | all is as before the call; interrupts arrive | |
//! | a call that succeeds all the same | the table may be trapped for `NOT_MAPPABLE`; interrupts arrive | |
//! | any other operation | no page is shown that the function does not answer on, no table is direct that must not be | as without the failure: no event is lost, doubled or let through while masked |
//! | a call that answers an error, and everything refused from there on | what the guest sees is as before the call, but for a table that stays trapped | |
//! | all else with everything refused | pages as above | a guest that starts anew finds all in order |
//!
//! The one exception is the kernel refusing to take pages out of the guest's memory map for good: they
//! stay where they are, and what would make the function stop to answer on them is not done.

#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::panic)]

mod fixture;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use fixture::faults::{self, Plan};
use fixture::*;
use pvmsi_hypervisor::{Platform, Policy, View};
use pvmsi_protocol::{
    CallError, CallId, FunctionId, GuestMessage, Reasons, Sequence, TableMode, VectorSetup,
};

const VECTORS: u16 = 6;
/// How many vectors one call does: a `configure` of all is busy on the way, also one that grows.
const BOUND: u16 = 3;
const ROUTES: u16 = 100;
const ITS: u64 = 0x0809_0040;
const TAKE_OUT: &str = "take pages out";
/// What leaves an operation undone, so that the guest has to repeat it: a short grant is one.
const AGAIN: [&str; 4] = ["config write", "reset", TAKE_OUT, "route allocation"];

/// What an operation runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setting {
    Direct,
    Trapped,
    /// Trapped, and the host may change messages by itself.
    NotIsolated,
    /// An attach binds; direct.
    Arm64,
}

const SETTINGS: [Setting; 4] =
    [Setting::Direct, Setting::Trapped, Setting::NotIsolated, Setting::Arm64];

/// An operation, and the state that it finds.
struct Operation {
    name: &'static str,
    prepare: fn(&Guest, Setting),
    act: fn(&Guest, Setting) -> Result<(), CallError>,
    /// Events that are raised before: of vectors that are masked by then.
    waiting: &'static [u16],
}

fn its_message(vector: u16) -> GuestMessage {
    GuestMessage { address: ITS, data: u32::from(vector) }
}

fn message_in(setting: Setting, vector: u16) -> GuestMessage {
    if setting == Setting::Arm64 { its_message(vector) } else { message(vector) }
}

/// Even vectors are unmasked.
fn setups(setting: Setting, count: u16) -> Vec<VectorSetup> {
    let setup = |v| VectorSetup { message: Some(message_in(setting, v)), masked: v % 2 == 1 };
    (0..count).map(setup).collect()
}

fn configure(guest: &Guest, setting: Setting, count: u16) -> Result<(), CallError> {
    let setups = setups(setting, count);
    let mut sequence = Sequence::START;
    loop {
        match guest.configure_with(count, sequence, &setups) {
            Err(CallError::Busy(busy)) => sequence = busy.sequence,
            other => break other.map(drop),
        }
    }
}

fn assign(guest: &Guest, setting: Setting) {
    configure(guest, setting, VECTORS).unwrap();
}

fn program_all(guest: &Guest, setting: Setting) {
    for vector in 0..VECTORS {
        guest.program(vector, message_in(setting, vector));
        if vector % 2 == 1 {
            guest.mask(vector);
        }
    }
}

fn assign_and_revoke(guest: &Guest, setting: Setting) {
    assign(guest, setting);
    guest.function.revoke().unwrap();
}

const OPERATIONS: &[Operation] = &[
    Operation {
        name: "configure, the first",
        prepare: |_, _| {},
        act: |guest, setting| configure(guest, setting, VECTORS),
        waiting: &[],
    },
    Operation {
        name: "configure, over a programmed table",
        prepare: program_all,
        act: |guest, setting| configure(guest, setting, VECTORS),
        waiting: &[],
    },
    Operation {
        name: "configure that grows",
        prepare: |guest, setting| configure(guest, setting, 2).unwrap(),
        act: |guest, setting| configure(guest, setting, VECTORS),
        waiting: &[],
    },
    Operation {
        name: "configure that shrinks",
        prepare: assign,
        act: |guest, setting| configure(guest, setting, 2),
        waiting: &[],
    },
    Operation {
        name: "configure, the same again",
        prepare: assign,
        act: |guest, setting| configure(guest, setting, VECTORS),
        waiting: &[],
    },
    Operation {
        name: "update",
        prepare: assign,
        act: |guest, setting| {
            guest.update(&[(0, message_in(setting, 100)), (3, message_in(setting, 103))])
        },
        waiting: &[3],
    },
    Operation {
        name: "query",
        prepare: assign,
        act: |guest, _| {
            guest.call(CallId::QueryFunction, &[])?;
            guest.query_vectors(0, VECTORS).map(drop)
        },
        waiting: &[1],
    },
    Operation {
        name: "release",
        prepare: assign,
        act: |guest, _| guest.call(CallId::Release, &[]).map(drop),
        waiting: &[],
    },
    Operation {
        name: "restore",
        prepare: assign,
        act: |guest, _| guest.call(CallId::Restore, &[]).map(drop),
        waiting: &[],
    },
    Operation {
        name: "legacy table: the first vector unmasked",
        prepare: |guest, setting| {
            let GuestMessage { address, data } = message_in(setting, 0);
            guest.store(Guest::entry(0, 0), address as u32);
            guest.store(Guest::entry(0, 2), data);
        },
        act: |guest, _| {
            guest.unmask(0);
            Ok(())
        },
        waiting: &[],
    },
    Operation {
        name: "legacy table: mask",
        prepare: program_all,
        act: |guest, _| {
            guest.mask(2);
            Ok(())
        },
        waiting: &[1],
    },
    Operation {
        name: "legacy table: unmask",
        prepare: program_all,
        act: |guest, _| {
            guest.unmask(1);
            Ok(())
        },
        waiting: &[1, 3],
    },
    Operation {
        name: "legacy table: message",
        prepare: program_all,
        act: |guest, setting| {
            guest.store(Guest::entry(2, 2), message_in(setting, 102).data);
            Ok(())
        },
        waiting: &[1],
    },
    Operation {
        name: "assigned, trapped table: mask",
        prepare: assign_and_revoke,
        act: |guest, _| {
            guest.mask(2);
            Ok(())
        },
        waiting: &[1],
    },
    Operation {
        name: "assigned, trapped table: unmask",
        prepare: assign_and_revoke,
        act: |guest, _| {
            guest.unmask(1);
            Ok(())
        },
        waiting: &[1, 3],
    },
    Operation {
        name: "unmask of the vector that held the table back",
        prepare: |guest, setting| {
            assign_and_revoke(guest, setting);
            guest.raise(1);
            guest.function.allow().unwrap();
        },
        act: |guest, _| {
            guest.unmask(1);
            Ok(())
        },
        waiting: &[1],
    },
    Operation {
        name: "MSI-X disabled, assigned",
        prepare: assign,
        act: |guest, _| {
            guest.control(0);
            Ok(())
        },
        waiting: &[],
    },
    Operation {
        name: "MSI-X disabled, legacy",
        prepare: program_all,
        act: |guest, _| {
            guest.control(0);
            Ok(())
        },
        waiting: &[],
    },
    Operation {
        name: "MSI-X disabled, nothing set up",
        prepare: |_, _| {},
        act: |guest, _| {
            guest.control(0);
            Ok(())
        },
        waiting: &[],
    },
    Operation {
        name: "MSI-X enabled, all vectors masked",
        prepare: |guest, _| guest.control(0),
        act: |guest, _| {
            guest.control(ENABLE);
            Ok(())
        },
        waiting: &[],
    },
    Operation {
        name: "MSI-X enabled, assigned",
        prepare: |guest, setting| {
            guest.control(0);
            assign(guest, setting);
        },
        act: |guest, _| {
            guest.control(ENABLE);
            Ok(())
        },
        waiting: &[],
    },
    Operation {
        name: "MSI-X enabled, legacy",
        prepare: |guest, setting| {
            guest.control(0);
            program_all(guest, setting);
        },
        act: |guest, _| {
            guest.control(ENABLE);
            Ok(())
        },
        waiting: &[],
    },
    Operation {
        name: "Function Mask set",
        prepare: assign,
        act: |guest, _| {
            guest.control(ENABLE | FUNCTION_MASK);
            Ok(())
        },
        waiting: &[1],
    },
    Operation {
        name: "Function Mask cleared",
        prepare: |guest, setting| {
            assign(guest, setting);
            guest.control(ENABLE | FUNCTION_MASK);
        },
        act: |guest, _| {
            guest.control(ENABLE);
            Ok(())
        },
        waiting: &[0, 1],
    },
    Operation {
        name: "decoding off",
        prepare: assign,
        act: |guest, _| {
            guest.config_write(0x04, &[0x04, 0]);
            Ok(())
        },
        waiting: &[1],
    },
    Operation {
        name: "decoding on",
        prepare: |guest, setting| {
            assign(guest, setting);
            guest.config_write(0x04, &[0x04, 0]);
        },
        act: |guest, _| {
            guest.config_write(0x04, &[0x06, 0]);
            Ok(())
        },
        waiting: &[],
    },
    Operation {
        name: "BAR moves",
        prepare: assign,
        act: |guest, _| {
            guest.config_write(0x10, &0xd000_0000_u32.to_le_bytes());
            Ok(())
        },
        waiting: &[1],
    },
    Operation {
        name: "power state D3hot",
        prepare: assign,
        act: |guest, _| {
            guest.config_write(POWER, &[3, 0]);
            Ok(())
        },
        waiting: &[1],
    },
    Operation {
        name: "power state D0",
        prepare: |guest, setting| {
            assign(guest, setting);
            guest.config_write(POWER, &[3, 0]);
        },
        act: |guest, _| {
            guest.config_write(POWER, &[0, 0]);
            Ok(())
        },
        waiting: &[],
    },
    Operation {
        name: "function level reset, assigned",
        prepare: assign,
        act: |guest, _| {
            guest.config_write(DEVICE_CONTROL, &[0, 0x80]);
            Ok(())
        },
        waiting: &[],
    },
    Operation {
        name: "function level reset, legacy",
        prepare: program_all,
        act: |guest, _| {
            guest.config_write(DEVICE_CONTROL, &[0, 0x80]);
            Ok(())
        },
        waiting: &[],
    },
    Operation {
        name: "function reset by the host",
        prepare: assign,
        act: |guest, _| {
            guest.function.reset().unwrap();
            Ok(())
        },
        waiting: &[],
    },
    Operation {
        name: "machine reset, assigned",
        prepare: assign,
        act: |guest, _| {
            guest.service.reset().unwrap();
            Ok(())
        },
        waiting: &[],
    },
    Operation {
        name: "machine reset, legacy",
        prepare: program_all,
        act: |guest, _| {
            guest.service.reset().unwrap();
            Ok(())
        },
        waiting: &[],
    },
    Operation {
        name: "revoke",
        prepare: assign,
        act: |guest, _| {
            guest.function.revoke().unwrap();
            Ok(())
        },
        waiting: &[1],
    },
    Operation {
        name: "allow",
        prepare: assign_and_revoke,
        act: |guest, _| {
            guest.function.allow().unwrap();
            Ok(())
        },
        waiting: &[],
    },
];

fn guest_in(setting: Setting, operation: &Operation) -> Guest {
    let policy = if setting == Setting::Trapped { Policy::Trapped } else { Policy::Direct };
    let platform = match setting {
        Setting::Arm64 => Platform::Aarch64 { its_doorbell: ITS },
        _ => X86_64,
    };
    let options = Options {
        vectors: VECTORS,
        routes: ROUTES,
        vectors_per_call: BOUND,
        policy,
        platform,
        isolated: setting != Setting::NotIsolated,
        ..Options::default()
    };
    let guest = Guest::new(options);
    guest.control(ENABLE);
    (operation.prepare)(&guest, setting);
    operation.waiting.iter().for_each(|&vector| guest.raise(vector));
    guest
}

/// The messages that arrived since the last look, sorted.
fn arrived(guest: &Guest) -> Vec<u32> {
    while guest.device.run() {}
    let mut data: Vec<_> = guest.routes.delivered().iter().map(|message| message.data).collect();
    data.sort_unstable();
    data
}

/// All that a call which fails must leave alone.
fn everything(guest: &Guest) -> impl PartialEq + std::fmt::Debug + use<> {
    let control = (guest.config_read(0x90), guest.device.enabled());
    let mut snapshot = guest.snapshot();
    let mut left = Some(guest.routes.left.load(Ordering::SeqCst));
    let (assigned, _, _, attached, led, states) = &mut snapshot;
    if *assigned > 0 {
        // What an unfinished one has prepared is its own, and held back: the repetition uses it.
        led.retain(|message| states.iter().any(|state| state.guest_message == Some(*message)));
        *attached = led.len();
        left = None;
    }
    (snapshot, left, guest.window.now(), control)
}

/// What of it the guest can see, but for the mode: a table whose vectors the host cannot detach is not handed over again.
fn seen(guest: &Guest) -> impl PartialEq + std::fmt::Debug + use<> {
    let (assigned, _, _, _, _, states) = guest.snapshot();
    (assigned, states, guest.window.now().bars, guest.config_read(0x90))
}

/// Where two runs must end alike. Generations count what happened between, and each function has an address of its own for messages.
fn outcome(guest: &Guest) -> impl PartialEq + std::fmt::Debug + use<> {
    let (assigned, mode, _, attached, led, states) = guest.snapshot();
    let states: Vec<_> = states
        .into_iter()
        .map(|state| {
            let table = state.table_message.map(|message| message.data);
            (state.assigned, state.guest_message, table, state.masked, state.pending)
        })
        .collect();
    let left = guest.routes.left.load(Ordering::SeqCst);
    let config =
        [guest.config_read(0x04) & 0xffff, guest.config_read(0x10), guest.config_read(0x90)];
    let power = (guest.config_read(POWER), guest.device.enabled());
    (assigned, mode, attached, led, states, left, guest.window.now(), config, power)
}

/// Whatever has failed, this holds.
fn assert_safe(guest: &Guest, failed: &[&str], context: &str) {
    let now = guest.window.now();
    if guest.config_read(0x04) & 2 == 0 || guest.config_read(POWER) & 3 != 0 {
        assert_eq!(now, View::NOTHING, "{context}: shown, though nobody answers");
    }
    let status = guest.status();
    let stuck = failed.iter().filter(|what| **what == TAKE_OUT).count() > 1;
    if now.table == TableMode::Direct && !stuck {
        assert_eq!(status.reasons, Reasons::empty(), "{context}: direct against a reason");
        assert_eq!(status.mode, TableMode::Direct, "{context}");
    }
}

fn raise_all(guest: &Guest, operation: &Operation) {
    let vectors = (0..VECTORS).filter(|vector| !operation.waiting.contains(vector));
    vectors.for_each(|vector| guest.raise(vector));
}

/// The end of each run: what arrives by the next operation that works, and when all is unmasked.
fn finish(guest: &Guest, operation: &Operation, early: Vec<u32>) -> [Vec<u32>; 2] {
    let mut events = early;
    events.extend(arrived(guest));
    raise_all(guest, operation);
    events.extend(arrived(guest));
    guest.config_write(READ_ONLY, &[0]);
    events.extend(arrived(guest));
    // What failed to be mapped is mapped at the next occasion.
    let revoked = guest.status().reasons.contains(Reasons::HOST_REVOKED);
    guest.function.allow().unwrap();
    if revoked {
        guest.function.revoke().unwrap();
    }
    events.extend(arrived(guest));
    events.sort_unstable();
    guest.config_write(POWER, &[0, 0]);
    guest.config_write(0x04, &[6, 0]);
    (0..VECTORS).for_each(|vector| guest.unmask(vector));
    [events, arrived(guest)]
}

/// Whatever has become of the state, a guest that starts anew finds all in order.
fn assert_recovers(guest: &Guest, setting: Setting, context: &str) {
    guest.control(0);
    assert_eq!(guest.routes.left.load(Ordering::SeqCst), ROUTES, "{context}: a route is missing");
    assert!(!guest.device.enabled(), "{context}: the function stays enabled");
    guest.config_write(POWER, &[0, 0]);
    guest.config_write(0x10, &0xc000_0000_u32.to_le_bytes());
    guest.config_write(0x04, &[6, 0]);
    guest.function.allow().unwrap();
    guest.control(ENABLE);
    assert!(guest.device.enabled(), "{context}: the function is not enabled");
    arrived(guest);
    assign(guest, setting);
    let direct = matches!(setting, Setting::Direct | Setting::Arm64);
    assert_eq!(guest.is_direct(), direct, "{context}");
    let messages = |odd: u16| -> Vec<_> {
        (0..VECTORS).filter(|v| v % 2 == odd).map(|v| message_in(setting, v).data).collect()
    };
    arrived(guest);
    (0..VECTORS).for_each(|vector| guest.raise(vector));
    assert_eq!(arrived(guest), messages(0), "{context}: unmasked vectors");
    (0..VECTORS).for_each(|vector| guest.unmask(vector));
    assert_eq!(arrived(guest), messages(1), "{context}: masked vectors");
}

/// Tries all fault points of an operation. Returns how many there are.
fn every_point(operation: &Operation, setting: Setting, plan: fn(usize) -> Plan) -> usize {
    let reference = guest_in(setting, operation);
    let early = arrived(&reference);
    (operation.act)(&reference, setting).unwrap();
    let expected_events = finish(&reference, operation, early);
    let expected = outcome(&reference);
    let untouched = guest_in(setting, operation);
    arrived(&untouched);
    raise_all(&untouched, operation);
    let expected_before = arrived(&untouched);

    for step in 1.. {
        let mut guest = guest_in(setting, operation);
        let early = arrived(&guest);
        let (before, seen_before) = (everything(&guest), seen(&guest));
        faults::plan(plan(step));
        let result = (operation.act)(&guest, setting);
        let failed = faults::end();
        if failed.is_empty() {
            result.unwrap();
            return step - 1;
        }
        let context = format!("{setting:?}, {}, step {step}: {failed:?} failed", operation.name);
        let once = failed.len() == 1;
        assert_safe(&guest, &failed, &context);
        if let Err(error) = result {
            let wanted = if failed.contains(&"route allocation") {
                [CallError::Hardware, CallError::NoResources]
            } else {
                [CallError::Hardware; 2]
            };
            assert!(wanted.contains(&error), "{context}: {error:?}");
            if guest.status().assigned == 0 {
                // What an unfinished one has prepared goes when the guest gives up.
                guest.call(CallId::Release, &[]).unwrap();
            }
            if once {
                assert_eq!(everything(&guest), before, "{context}");
            } else if matches!(plan(step), Plan::KernelFrom(_)) {
                assert_eq!(seen(&guest), seen_before, "{context}");
            }
        }
        if once && result.is_err() {
            // Before anything else happens, what is unmasked arrives, as it would have before.
            raise_all(&guest, operation);
            assert_eq!(arrived(&guest), expected_before, "{context}: interrupts after it");
            // The same once more, for what comes now.
            guest = guest_in(setting, operation);
            arrived(&guest);
            faults::plan(plan(step));
            assert!((operation.act)(&guest, setting).is_err());
            faults::end();
        }
        let again = result.is_err() || failed.iter().any(|what| AGAIN.contains(what));
        if matches!(plan(step), Plan::AllFrom(_)) {
            assert_recovers(&guest, setting, &context);
            continue;
        }
        if again {
            (operation.act)(&guest, setting).unwrap();
        }
        let events = finish(&guest, operation, early);
        assert_eq!(events, expected_events, "{context}: events");
        assert_eq!(outcome(&guest), expected, "{context}");
    }
    unreachable!()
}

fn every_operation(plan: fn(usize) -> Plan) -> BTreeMap<&'static str, usize> {
    let mut points = BTreeMap::new();
    let mut broken = 0;
    for operation in OPERATIONS {
        for setting in SETTINGS {
            // All operations are tried, and each that breaks has said how.
            let tried = std::panic::catch_unwind(|| every_point(operation, setting, plan));
            faults::end();
            broken += usize::from(tried.is_err());
            *points.entry(operation.name).or_default() += tried.unwrap_or(0);
        }
    }
    assert_eq!(broken, 0, "operations that do not hold what they promise");
    points
}

fn report(what: &str, points: &BTreeMap<&'static str, usize>, unable: &[&str]) {
    for (name, count) in points {
        println!("{count:5} {name}");
        assert!(*count > 0 || unable.contains(name), "{name}: nothing can fail");
    }
    faults::report(points.values().sum(), what);
}

#[test]
fn one_failure_at_each_point_of_each_operation() {
    report("each operation, each fails once", &every_operation(Plan::Nth), &[]);
}

#[test]
fn the_kernel_refuses_everything_from_each_point_of_each_operation_on() {
    report(
        "each operation, the kernel refuses all from there on",
        &every_operation(Plan::KernelFrom),
        &["query", "restore"],
    );
}

/// Not even the function's memory answers: nothing can hold an event back then, but once there is an answer again a guest can start anew.
#[test]
fn nothing_answers_from_each_point_of_each_operation_on() {
    report("each operation, nothing answers from there on", &every_operation(Plan::AllFrom), &[]);
}

/// A function that cannot be read while it is added is refused, or added with nothing shown.
#[test]
fn a_function_is_added() {
    const BESIDE: FunctionId = FunctionId(16);
    for plan in [Plan::Nth, Plan::AllFrom] {
        for step in 1.. {
            let guest = Guest::with_vectors(VECTORS);
            faults::plan(plan(step));
            let window = guest.add_function(BESIDE);
            if faults::end().is_empty() {
                faults::report(step - 1, "a function is added");
                assert!(step > 1 && window.is_some());
                break;
            }
            assert_eq!(guest.service.function(BESIDE).is_some(), window.is_some());
            assert_eq!(window.map_or(View::NOTHING, |window| window.now()), View::NOTHING);
        }
    }
}

/// What fails once comes back all the same. A GSI that cannot be taken out of the routes for good is given to nobody.
#[test]
fn a_function_is_removed() {
    let assigned = &OPERATIONS.iter().find(|operation| operation.name == "query").unwrap();
    for plan in [Plan::Nth, Plan::KernelFrom, Plan::AllFrom] {
        for step in 1.. {
            let guest = guest_in(Setting::Direct, assigned);
            faults::plan(plan(step));
            guest.function.remove().unwrap();
            let failed = faults::end();
            if failed.is_empty() {
                faults::report(step - 1, "a function is removed");
                assert!(step > 1);
                break;
            }
            if failed.len() == 1 {
                assert_eq!(guest.window.now(), View::NOTHING, "{failed:?}");
                assert_eq!(guest.routes.left.load(Ordering::SeqCst), ROUTES, "{failed:?}");
            }
        }
    }
}
