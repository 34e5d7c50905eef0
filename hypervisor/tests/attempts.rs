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

const VECTORS: u16 = 6;
/// How many vectors one call prepares.
const BOUND: u16 = 4;
const ITS: u64 = 0x0809_0040;

const X86_64: Platform = Platform::X86_64;
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

type Snapshot = (u16, TableMode, u32, usize, usize, Vec<VectorState>);

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

/// Whatever failed in the last part, the guest repeats it by its sequence.
#[test]
fn a_configure_that_fails_after_busy_goes_on_where_it_was() {
    let setups = setups(X86_64, VECTORS, 0, odd);
    let configure = |guest: &Guest, sequence| guest.configure_with(VECTORS, sequence, &setups);
    for plan in [Plan::Nth, |step| Plan::Only(step, &["route allocation", "routing update"])] {
        for step in 1.. {
            let guest = guest_of((X86_64, Policy::Direct));
            let busy = configure(&guest, Sequence::START).unwrap_err();
            let CallError::Busy(busy) = busy else { panic!("{busy:?}") };
            faults::plan(plan(step));
            let result = configure(&guest, busy.sequence);
            let failed = faults::end();
            if failed.is_empty() {
                assert!(step > 1);
                break;
            }
            if result.is_err() {
                let configured = configure(&guest, busy.sequence).unwrap();
                assert_eq!(configured.granted, VECTORS, "{failed:?}");
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
    let mut result = guest.configure_with(VECTORS, busy.sequence, &all);
    // Its events went into the new one and are made again.
    if let Err(CallError::Busy(busy)) = result {
        result = guest.configure_with(VECTORS, busy.sequence, &all);
    }
    assert_eq!(result.unwrap().granted, VECTORS);

    let busy = guest_of((X86_64, Policy::Direct));
    let answer = busy.configure_with(VECTORS, Sequence::START, &all).unwrap_err();
    let CallError::Busy(unfinished) = answer else { panic!("{answer:?}") };
    busy.configure_with(1, Sequence::START, &one).unwrap();
    let answer = busy.configure_with(VECTORS, unfinished.sequence, &all).unwrap_err();
    assert_eq!(answer, CallError::parameter(Parameter::Sequence));
}
