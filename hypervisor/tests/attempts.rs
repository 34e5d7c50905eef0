//! A call that fails has changed nothing: also not for the events that waited before, and for those that come meanwhile.
//!
//! Each call fails at each of its calls through the seams, with events of all
//! vectors raised before it, or just before each of those calls. What arrives
//! afterwards, where and when, is what arrives with no call made at all.

#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::panic)]

mod fixture;

use fixture::faults::{self, Plan};
use fixture::*;
use pvmsi_hypervisor::{Platform, Policy};
use pvmsi_protocol::{
    CallError, CallId, GuestMessage, Parameter, Reasons, Sequence, TableMode, VectorIndex,
    VectorSetup, VectorState,
};
use vm_memory::VolatileMemory;

const VECTORS: u16 = 6;
/// How many vectors one call does: a `configure` of all is busy on the way, also one that grows.
const BOUND: u16 = 3;
const ITS: u64 = 0x0809_0040;

const AARCH64: Platform = Platform::Aarch64 { its_doorbell: ITS };

fn guest_of((platform, policy): (Platform, Policy)) -> Guest {
    let options = Options {
        vectors: VECTORS,
        vectors_per_call: BOUND,
        platform,
        policy,
        ..Options::default()
    };
    let guest = Guest::new(options);
    guest.control(ENABLE);
    guest
}

fn message_on(platform: Platform, number: u16) -> GuestMessage {
    if platform == X86_64 {
        message(number)
    } else {
        GuestMessage { address: ITS, data: u32::from(number) }
    }
}

fn configure(guest: &Guest, setups: &[VectorSetup]) -> Result<(), CallError> {
    let mut sequence = Sequence::START;
    loop {
        match guest.configure_with(setups.len() as u16, sequence, setups) {
            Err(CallError::Busy(busy)) => sequence = busy.sequence,
            other => break other.map(drop),
        }
    }
}

/// Goes on with a busy call; how many vectors are granted.
fn repeat(guest: &Guest, count: u16, mut sequence: Sequence, setups: &[VectorSetup]) -> u16 {
    for _ in 0..10 {
        match guest.configure_with(count, sequence, setups) {
            Err(CallError::Busy(busy)) => sequence = busy.sequence,
            other => return other.unwrap().granted,
        }
    }
    panic!("busy for ever");
}

/// Setups of `count` vectors: messages from `first` on, every third one without, vectors masked where `masked` says so.
fn setups(platform: Platform, count: u16, first: u16, masked: fn(u16) -> bool) -> Vec<VectorSetup> {
    let message = |v: u16| (v % 3 != 2).then(|| message_on(platform, first + v));
    (0..count).map(|v| VectorSetup { message: message(v), masked: masked(v) }).collect()
}

const fn even(vector: u16) -> bool {
    vector.is_multiple_of(2)
}

const fn odd(vector: u16) -> bool {
    !even(vector)
}

type Prepare = fn(&Guest, Platform);
type Call = fn(&Guest, Platform) -> Result<(), CallError>;

const BEFORE: [(&str, Prepare); 7] = [
    ("as after power-on", |_, _| {}),
    ("a programmed table", |guest, platform| {
        for vector in 0..VECTORS {
            guest.program(vector, message_on(platform, vector));
            if odd(vector) {
                guest.mask(vector);
            }
        }
    }),
    ("all assigned", |guest, platform| {
        configure(guest, &setups(platform, VECTORS, 0, odd)).unwrap();
    }),
    ("two assigned", |guest, platform| {
        configure(guest, &setups(platform, 2, 0, odd)).unwrap();
    }),
    ("all assigned, Function Mask set", |guest, platform| {
        configure(guest, &setups(platform, VECTORS, 0, odd)).unwrap();
        guest.control(ENABLE | FUNCTION_MASK);
    }),
    // Events wait at the host for want of a message, or in the function.
    ("all assigned, masked after an event", |guest, platform| {
        configure(guest, &setups(platform, VECTORS, 0, |_| false)).unwrap();
        (0..VECTORS).for_each(|vector| guest.raise(vector));
        arrived(guest);
        (0..VECTORS).filter(|&vector| odd(vector)).for_each(|vector| guest.mask(vector));
    }),
    // The function cannot hold back what comes meanwhile.
    (DECODING_OFF, |guest, platform| {
        configure(guest, &setups(platform, VECTORS, 0, odd)).unwrap();
        guest.config_write(0x04, &[0x04, 0]);
    }),
];

const DECODING_OFF: &str = "all assigned, decoding off";

const CALLS: [(&str, Call); 7] = [
    ("configure, other messages and masks", |guest, platform| {
        configure(guest, &setups(platform, VECTORS, 100, even))
    }),
    ("configure, all masked", |guest, platform| {
        configure(guest, &setups(platform, VECTORS, 100, |_| true))
    }),
    ("configure, fewer", |guest, platform| configure(guest, &setups(platform, 1, 100, even))),
    ("update of all", |guest, platform| {
        let count = guest.status().assigned;
        let updates: Vec<_> = (0..count).map(|v| (v, message_on(platform, 100 + v))).collect();
        guest.update(&updates)
    }),
    ("update of one", |guest, platform| guest.update(&[(0, message_on(platform, 100))])),
    ("update, the first message", |guest, platform| {
        guest.update(&[(2, message_on(platform, 102))])
    }),
    ("restore", |guest, _| guest.call(CallId::Restore, &[]).map(drop)),
];

/// The messages that arrived since the last look, sorted.
fn arrived(guest: &Guest) -> Vec<u32> {
    while guest.device.run() {}
    let mut data: Vec<_> = guest.routes.delivered().iter().map(|message| message.data).collect();
    data.sort_unstable();
    data
}

/// When events of all vectors are raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Never,
    Before,
    /// Just before the n-th use of a seam.
    Meanwhile(usize),
}

type Snapshot = (u16, TableMode, u32, usize, Vec<GuestMessage>, Vec<VectorState>);

/// Leaves out what an unfinished configure has attached in advance, and the function holds back.
fn attached_of_assigned((assigned, _, _, attached, led, states): &mut Snapshot) {
    if *assigned > 0 {
        led.retain(|message| states.iter().any(|state| state.guest_message == Some(*message)));
        *attached = led.len();
    }
}

/// What a guest can see after the call: its state; what has arrived; and what arrives once vectors without a message have got one, the Function Mask is cleared, and all are unmasked.
#[derive(Debug, PartialEq)]
struct Seen {
    snapshot: Snapshot,
    reasons: Reasons,
    arrived: Vec<u32>,
    held: Vec<Vec<u32>>,
}

impl Seen {
    fn look(guest: &Guest, platform: Platform) -> Self {
        // First, as the snapshot asks for pending bits.
        let arrived = arrived(guest);
        let mut held = Vec::new();
        let (mut snapshot, reasons) = (guest.snapshot(), guest.status().reasons);
        // Each function has an address of its own for messages.
        attached_of_assigned(&mut snapshot);
        let tables = snapshot.5.iter_mut().filter_map(|state| state.table_message.as_mut());
        tables.for_each(|message| message.address = 0);
        guest.config_write(0x04, &[0x06, 0]);
        guest.control(ENABLE);
        held.push(self::arrived(guest));
        for vector in 0..snapshot.0 {
            if snapshot.5[usize::from(vector)].guest_message.is_none() {
                guest.update(&[(vector, message_on(platform, 50 + vector))]).unwrap();
            }
        }
        held.push(self::arrived(guest));
        (0..VECTORS).for_each(|vector| guest.unmask(vector));
        held.push(self::arrived(guest));
        Self { snapshot, reasons, arrived, held }
    }
}

/// What a call has come to.
struct Attempt {
    guest: Guest,
    /// What failed, if anything.
    failed: Vec<&'static str>,
    result: Result<(), CallError>,
    /// Whether the events came.
    raised: bool,
}

impl Attempt {
    /// A call whose use of a seam number `step` fails.
    fn make(
        setting: (Platform, Policy),
        prepare: Prepare,
        call: Call,
        step: usize,
        when: When,
    ) -> Self {
        let guest = guest_of(setting);
        prepare(&guest, setting.0);
        arrived(&guest);
        let (device, routes) = (guest.device.clone(), guest.routes.clone());
        let raise = move || {
            (0..VECTORS).for_each(|vector| assert!(device.raise(VectorIndex(vector))));
            while device.run() {}
            routes.pump();
        };
        faults::plan(Plan::Nth(step));
        match when {
            When::Never => {}
            When::Before => raise(),
            When::Meanwhile(n) => faults::meanwhile(n, raise),
        }
        let result = call(&guest, setting.0);
        if result.is_err() && guest.status().assigned == 0 {
            // What an unfinished configure has prepared goes when the guest gives up.
            faults::aside(|| guest.call(CallId::Release, &[]).unwrap());
        }
        let raised = when != When::Never && !faults::forget_meanwhile();
        Self { guest, failed: faults::end(), result, raised }
    }
}

/// Makes a call fail at each step, with the events at each time. Returns how many ways there were.
fn all_ways(
    setting: (Platform, Policy),
    (before, prepare): (&str, Prepare),
    (name, call): (&str, Call),
) -> usize {
    let without = |when| {
        Seen::look(&Attempt::make(setting, prepare, |_, _| Ok(()), 0, when).guest, setting.0)
    };
    let expected = [When::Never, When::Before].map(without);
    let mut ways = 0;
    for when in [When::Never, When::Before].into_iter().chain((1..).map(When::Meanwhile)) {
        let mut came = false;
        for step in 1.. {
            let Attempt { guest, failed, result, raised } =
                Attempt::make(setting, prepare, call, step, when);
            came |= raised;
            if failed.is_empty() {
                break;
            }
            if result.is_err() {
                ways += 1;
                assert_eq!(
                    Seen::look(&guest, setting.0),
                    expected[usize::from(raised)],
                    "{setting:?}, {before}, {name}, {step}: {failed:?}, events {when:?}"
                );
            }
        }
        let meanwhile = matches!(when, When::Meanwhile(_));
        let before_only = before == DECODING_OFF && when == When::Before;
        if meanwhile && !came || before_only {
            break;
        }
    }
    ways
}

fn nothing_of_a_call_that_fails_shows(name: &str, setting: (Platform, Policy)) {
    let mut ways = 0;
    for before in BEFORE {
        for call in CALLS {
            ways += all_ways(setting, before, call);
        }
    }
    assert!(ways > 1000, "{ways}");
    faults::report(ways, &format!("a call fails, and events come before it or meanwhile; {name}"));
}

#[test]
fn nothing_of_a_call_that_fails_shows_on_x86_64() {
    nothing_of_a_call_that_fails_shows("x86_64", (X86_64, Policy::Direct));
}

#[test]
fn nothing_of_a_call_that_fails_shows_on_x86_64_while_trapped() {
    nothing_of_a_call_that_fails_shows("x86_64, trapped", (X86_64, Policy::Trapped));
}

#[test]
fn nothing_of_a_call_that_fails_shows_on_aarch64() {
    nothing_of_a_call_that_fails_shows("arm64", (AARCH64, Policy::Direct));
}

#[test]
fn nothing_of_a_call_that_fails_shows_on_aarch64_while_trapped() {
    nothing_of_a_call_that_fails_shows("arm64, trapped", (AARCH64, Policy::Trapped));
}

/// Whatever failed in a repetition, the guest goes on by its sequence.
#[test]
fn a_configure_that_fails_after_busy_goes_on_where_it_was() {
    let setups = setups(X86_64, VECTORS, 0, odd);
    let configure = |guest: &Guest, sequence| guest.configure_with(VECTORS, sequence, &setups);
    for plan in [Plan::Nth, |step| Plan::Only(step, &["interrupt set-up", "attach"])] {
        for step in 1.. {
            let guest = guest_of((X86_64, Policy::Direct));
            let busy = configure(&guest, Sequence::START).unwrap_err();
            let CallError::Busy(busy) = busy else { panic!("{busy:?}") };
            faults::plan(plan(step));
            let mut sequence = busy.sequence;
            let result = loop {
                match configure(&guest, sequence) {
                    Err(CallError::Busy(busy)) => sequence = busy.sequence,
                    other => break other,
                }
            };
            let failed = faults::end();
            if failed.is_empty() {
                assert!(step > 1);
                break;
            }
            if result.is_err() {
                let granted = repeat(&guest, VECTORS, sequence, &setups);
                assert_eq!(granted, VECTORS, "{failed:?}");
            }
        }
    }
}

/// A new `configure` drops what was prepared, but not if it fails.
#[test]
fn a_new_configure_that_fails_leaves_the_unfinished_one() {
    let guest = guest_of((X86_64, Policy::Direct));
    let all = setups(X86_64, VECTORS, 0, odd);
    let busy = guest.configure_with(VECTORS, Sequence::START, &all).unwrap_err();
    let CallError::Busy(busy) = busy else { panic!("{busy:?}") };
    let one = setups(X86_64, 1, 100, odd);
    faults::plan(Plan::Only(1, &["interrupt set-up"]));
    assert_eq!(guest.configure_with(1, Sequence::START, &one).unwrap_err(), CallError::Hardware);
    faults::end();
    assert_eq!(repeat(&guest, VECTORS, busy.sequence, &all), VECTORS);

    let busy = guest_of((X86_64, Policy::Direct));
    let answer = busy.configure_with(VECTORS, Sequence::START, &all).unwrap_err();
    let CallError::Busy(unfinished) = answer else { panic!("{answer:?}") };
    busy.configure_with(1, Sequence::START, &one).unwrap();
    let answer = busy.configure_with(VECTORS, unfinished.sequence, &all).unwrap_err();
    assert_eq!(answer, CallError::parameter(Parameter::Sequence));
}

const fn setup(message: Option<GuestMessage>, masked: bool) -> VectorSetup {
    VectorSetup { message, masked }
}

/// A direct table of as many vectors.
fn direct(setups: &[VectorSetup]) -> Guest {
    let guest = Guest::with_vectors(setups.len() as u16);
    guest.control(ENABLE);
    guest.configure_with(setups.len() as u16, Sequence::START, setups).unwrap();
    assert!(guest.is_direct());
    guest
}

/// The event that waits for a message would take the table back by its mask bit, which another processor clears.
#[test]
fn an_update_that_fails_leaves_the_table_direct_whatever_another_processor_unmasks() {
    let mut failures = 0;
    for at in 1..40 {
        for step in 1..40 {
            let guest = direct(&[setup(None, false), setup(Some(message(1)), false)]);
            guest.raise(0);
            guest.mask(0);
            guest.mask(1);
            guest.raise(1);
            let before = guest.status();
            let (bar, window) = (guest.bar.clone(), guest.window.clone());
            faults::plan(Plan::Nth(step));
            faults::meanwhile(at, move || {
                if window.now().table == TableMode::Direct {
                    bar.get_ref::<u32>(Guest::entry(0, 3) as usize).unwrap().store(0);
                }
            });
            let result = guest.update(&[(0, message(0))]);
            faults::forget_meanwhile();
            let failed = faults::end();
            if result.is_err() {
                let after = guest.status();
                assert_eq!(after.mode, before.mode, "{at}, {step}: {failed:?}");
                assert_eq!(after.generation, before.generation, "{at}, {step}: {failed:?}");
                failures += 1;
            }
        }
    }
    assert!(failures > 0);
}

/// What has left the function before the call held it back must not meet an attach that is undone.
#[test]
fn a_message_that_is_under_way_does_not_go_where_a_failed_update_led() {
    let mut failures = 0;
    for platform in [X86_64, AARCH64] {
        for policy in [Policy::Direct, Policy::Trapped] {
            for step in 1..40 {
                for at in 1..40 {
                    let guest = guest_of((platform, policy));
                    configure(&guest, &[setup(None, false), setup(None, false)]).unwrap();
                    faults::plan(Plan::Nth(step));
                    function::leave(0);
                    let routes = guest.routes.clone();
                    faults::meanwhile(at, move || {
                        function::arrive();
                        routes.pump();
                    });
                    let updates = [0, 1].map(|vector| (vector, message_on(platform, vector)));
                    let result = guest.update(&updates);
                    faults::forget_meanwhile();
                    let failed = faults::end();
                    function::arrive();
                    let arrived = arrived(&guest);
                    if result.is_err() {
                        let none = Vec::<u32>::new();
                        assert_eq!(
                            arrived, none,
                            "{platform:?} {policy:?} {step} {at}: {failed:?}"
                        );
                        failures += 1;
                    }
                }
            }
        }
    }
    assert!(failures > 0);
}

/// An earlier refusal has left another vector unattached: the update attaches it, too, and fails for it.
#[test]
fn an_update_may_fail_for_a_vector_that_it_does_not_name() {
    let mut failures = 0;
    for at in 1..40 {
        let guest = guest_of((X86_64, Policy::Trapped));
        configure(&guest, &[0, 1].map(|vector| setup(Some(message(vector)), false))).unwrap();
        guest.mask(1);
        faults::plan(Plan::Only(1, &["attach"]));
        guest.unmask(1);
        faults::plan(Plan::Only(1, &["attach"]));
        let (device, routes) = (guest.device.clone(), guest.routes.clone());
        faults::meanwhile(at, move || {
            device.raise(VectorIndex(0));
            routes.pump();
        });
        let result = guest.update(&[(0, message(100))]);
        let raised = !faults::forget_meanwhile();
        faults::end();
        if result.is_err() && raised {
            failures += 1;
            assert_eq!(guest.interrupts(), [0], "{at}");
        }
    }
    assert!(failures > 0);
}

/// A vector that stays attached against the host's will does not get its event back.
#[test]
fn an_event_of_a_masked_vector_waits_also_where_it_cannot_be_detached() {
    let masked = [0, 1].map(|vector| setup(Some(message(vector)), true));
    let unmasked = [0, 1].map(|vector| setup(Some(message(100 + vector)), false));
    for step in 1..40 {
        let guest = Guest::with_vectors(2);
        guest.control(ENABLE);
        guest.function.revoke().unwrap();
        configure(&guest, &masked).unwrap();
        guest.raise(0);
        faults::plan(Plan::Only(step, &["attach", "detach"]));
        let result = configure(&guest, &unmasked);
        let failed = faults::end();
        if result.is_ok() {
            continue;
        }
        assert_eq!(guest.interrupts(), NONE, "{step}: {failed:?}");
        assert!(guest.pending(0), "{step}: {failed:?}");
        guest.config_write(READ_ONLY, &[0]);
        assert_eq!(guest.interrupts(), NONE, "{step}: {failed:?}");
        guest.unmask(0);
        assert_eq!(guest.interrupts(), [0], "{step}: {failed:?}");
    }
}

/// H-513: what happens while a vector is masked is one event, wherever its parts wait.
#[test]
fn an_event_at_the_host_and_one_in_the_function_are_one() {
    for masked in [false, true] {
        let guest = direct(&[setup(None, true)]);
        guest.function.revoke().unwrap();
        guest.raise(0);
        guest.function.allow().unwrap();
        assert!(guest.is_direct(), "the vector lacks a message as well");
        guest.raise(0);
        let answer = guest.configure_with(1, Sequence::START, &[setup(Some(message(0)), masked)]);
        let reported = answer.unwrap().pending().len();
        guest.unmask(0);
        let mut arrived = guest.interrupts();
        arrived.extend(guest.interrupts());
        assert_eq!(reported + arrived.len(), 1, "{reported} reported, then {arrived:?}");
    }
}

/// A table that was taken back for an update, and stays trapped, holds the host's messages.
#[test]
fn an_update_puts_messages_right_that_the_guest_has_overwritten() {
    let guest = direct(&[setup(Some(message(0)), false), setup(None, false), setup(None, false)]);
    guest.store(Guest::entry(0, 0), 0);
    guest.store(Guest::entry(0, 2), 0);
    guest.raise(1);
    guest.mask(1);
    guest.update(&[(1, message(1)), (2, message(2))]).unwrap();
    assert!(!guest.is_direct());
    guest.raise(0);
    assert_eq!(guest.interrupts(), [0]);
}

/// One waits at the host, the other has left the function when the call begins.
#[test]
fn an_event_that_waits_and_one_that_is_under_way_are_reported_as_one() {
    let masked = [setup(Some(message(0)), true)];
    for policy in [Policy::Direct, Policy::Trapped] {
        let mut before_the_end = 0;
        for at in 1..40 {
            let guest = guest_of((X86_64, policy));
            guest.function.revoke().unwrap();
            configure(&guest, &masked).unwrap();
            guest.raise(0);
            assert_eq!(guest.interrupts(), NONE);
            faults::plan(Plan::Never);
            faults::meanwhile(at, || function::leave(0));
            let answer = guest.configure_with(1, Sequence::START, &masked).unwrap();
            let left = !faults::forget_meanwhile();
            faults::end();
            function::arrive();
            assert_eq!(answer.pending(), [0], "{policy:?} {at}");
            guest.unmask(0);
            assert_eq!(guest.interrupts(), NONE, "{policy:?} {at}");
            before_the_end += u32::from(left);
        }
        assert!(before_the_end > 0);
    }
}
