//! A bounded `configure`: no call does more than its bound, and between two calls nothing shows.

#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::panic)]

mod fixture;

use std::sync::atomic::Ordering;

use fixture::*;
use pvmsi_hypervisor::{Counters, Platform, Policy};
use pvmsi_protocol::{CallError, CallId, GuestMessage, Sequence, TableMode, VectorSetup};

const VECTORS: u16 = 40;
const BOUND: u16 = 16;
const ROUTES: u16 = 100;
const ITS: u64 = 0x0809_0040;

fn options() -> Options {
    Options { vectors: VECTORS, routes: ROUTES, vectors_per_call: BOUND, ..Options::default() }
}

/// A guest that has set MSI-X Enable.
fn enabled(options: Options) -> Guest {
    let guest = Guest::new(options);
    guest.control(ENABLE);
    function::requests();
    guest
}

fn its_message(vector: u16) -> GuestMessage {
    GuestMessage { address: ITS, data: u32::from(vector) }
}

/// All with messages; every fourth one masked.
fn setups(count: u16, message: fn(u16) -> GuestMessage) -> Vec<VectorSetup> {
    let masked = |vector: u16| vector.is_multiple_of(4);
    (0..count).map(|v| VectorSetup { message: Some(message(v)), masked: masked(v) }).collect()
}

/// What one call has cost.
#[derive(Debug, PartialEq)]
struct Cost {
    routing_updates: u64,
    irqfds: u64,
    /// Vectors of each request to set interrupts up.
    set_ups: Vec<usize>,
}

fn cost(before: Counters, after: Counters) -> Cost {
    let Counters { routing_updates, attaches, detaches, interrupt_setups, .. } =
        after.since(&before);
    // Others take some down.
    let set_ups: Vec<_> = function::requests().into_iter().filter(|&named| named > 0).collect();
    assert!(set_ups.len() as u64 <= interrupt_setups);
    Cost { routing_updates, irqfds: attaches + detaches, set_ups }
}

/// A call; the sequence to go on with, or how many vectors are granted.
fn call(
    guest: &Guest,
    count: u16,
    sequence: Sequence,
    setups: &[VectorSetup],
) -> Result<u16, Sequence> {
    match guest.configure_with(count, sequence, setups) {
        Err(CallError::Busy(busy)) => Err(busy.sequence),
        other => Ok(other.unwrap().granted),
    }
}

/// Goes on until it is done, with something done after each call that is busy. What each call has cost.
fn configure(guest: &Guest, setups: &[VectorSetup], between: fn(&Guest)) -> Vec<Cost> {
    let mut sequence = Sequence::START;
    let mut costs = Vec::new();
    loop {
        let before = guest.status().counters;
        let done = call(guest, setups.len() as u16, sequence, setups);
        costs.push(cost(before, guest.status().counters));
        assert!(costs.len() < 20, "no end: {costs:?}");
        match done {
            Ok(granted) => {
                assert_eq!(usize::from(granted), setups.len());
                return costs;
            }
            Err(next) => sequence = next,
        }
        between(guest);
    }
}

/// The first `calls` busy calls.
fn begin(guest: &Guest, setups: &[VectorSetup], calls: usize) -> Sequence {
    let mut sequence = Sequence::START;
    for _ in 0..calls {
        sequence = call(guest, setups.len() as u16, sequence, setups).unwrap_err();
    }
    function::requests();
    sequence
}

fn nothing(_: &Guest) {}

/// What happens between two calls.
type Event = (&'static str, fn(&Guest));

/// Unmasked vectors of [`setups`].
fn unmasked() -> Vec<u16> {
    (0..VECTORS).filter(|vector| !vector.is_multiple_of(4)).collect()
}

fn raise_all(guest: &Guest) {
    (0..VECTORS).for_each(|vector| guest.raise(vector));
}

/// Interrupts arrive once each, and only where they shall.
fn works(guest: &Guest) {
    raise_all(guest);
    assert_eq!(guest.interrupts(), unmasked());
    (0..VECTORS).for_each(|vector| guest.unmask(vector));
    let masked: Vec<_> = (0..VECTORS).filter(|vector| vector.is_multiple_of(4)).collect();
    assert_eq!(guest.interrupts(), masked);
}

/// As after power-on: no route, no event, no interrupt.
fn nothing_is_left(guest: &Guest) {
    assert_eq!(guest.routes.left.load(Ordering::SeqCst), ROUTES);
    assert_eq!((guest.routes.routed(), guest.routes.attached()), (0, 0));
    assert_eq!(function::set_up(), 0);
}

#[test]
fn each_call_does_no_more_than_its_bound() {
    let one = |routing_updates, irqfds, set_up: usize| Cost {
        routing_updates,
        irqfds,
        set_ups: if set_up > 0 { vec![set_up] } else { Vec::new() },
    };
    // A direct table has all attached: its own mask bits hold the masked ones back.
    let direct = [one(1, 0, 0), one(0, 16, 16), one(0, 16, 16), one(0, 8, 8), one(0, 0, 0)];
    let trapped = [one(1, 0, 0), one(0, 12, 16), one(0, 12, 16), one(0, 6, 8), one(0, 0, 0)];
    for policy in [Policy::Direct, Policy::Trapped] {
        for (platform, message) in [
            (X86_64, message as fn(u16) -> GuestMessage),
            (Platform::Aarch64 { its_doorbell: ITS }, its_message),
        ] {
            let guest = enabled(Options { policy, platform, ..options() });
            let costs = configure(&guest, &setups(VECTORS, message), |guest| {
                assert_eq!((guest.status().assigned, guest.is_direct()), (0, false));
                assert_eq!(guest.status().generation.0, 0);
            });
            assert_eq!(guest.is_direct(), policy == Policy::Direct);
            let expected = if guest.is_direct() { &direct } else { &trapped };
            assert_eq!(&costs, expected, "{policy:?} {platform:?}");
        }
    }
    // As Linux does.
    let guest = enabled(options());
    let none = vec![VectorSetup::RESERVED; usize::from(VECTORS)];
    let costs = configure(&guest, &none, nothing);
    assert_eq!(costs, [one(0, 0, 16), one(0, 0, 16), one(0, 0, 8), one(0, 0, 0)]);
    // Enabling has allocated all.
    let guest = enabled(Options { grows: false, ..options() });
    let costs = configure(&guest, &none, nothing);
    assert_eq!(costs, [one(0, 0, 16), one(0, 0, 16), one(0, 0, 8), one(0, 0, 0)]);
    let guest = enabled(Options { vectors_per_call: VECTORS, ..options() });
    assert_eq!(configure(&guest, &none, nothing), [one(0, 0, 40)], "no bound");
    works_after_messages(&guest);
}

fn works_after_messages(guest: &Guest) {
    let updates: Vec<_> = (0..VECTORS).map(|vector| (vector, message(vector))).collect();
    guest.update(&updates).unwrap();
    (0..VECTORS).for_each(|vector| guest.unmask(vector));
    raise_all(guest);
    assert_eq!(guest.interrupts(), (0..VECTORS).collect::<Vec<_>>());
}

#[test]
fn a_direct_table_grows_within_the_bound_and_the_guest_keeps_it() {
    let guest = enabled(options());
    let few = setups(8, message);
    configure(&guest, &few, nothing);
    guest.mask(1);
    let generation = guest.status().generation;
    let mut calls = 0;
    let all = setups(VECTORS, message);
    let mut sequence = Sequence::START;
    loop {
        let before = guest.status().counters;
        match call(&guest, VECTORS, sequence, &all) {
            Err(next) => sequence = next,
            Ok(granted) => break assert_eq!(granted, VECTORS),
        }
        let cost = cost(before, guest.status().counters);
        // The mask bits that would hold back what is attached are the guest's.
        assert!(cost.routing_updates <= 1 && cost.irqfds == 0, "{cost:?}");
        assert!(cost.set_ups.iter().sum::<usize>() <= 16, "{cost:?}");
        let status = guest.status();
        assert_eq!((status.assigned, status.mode), (8, TableMode::Direct));
        assert_eq!(status.generation, generation);
        assert!(guest.masked(1) && !guest.masked(2) && guest.masked(9));
        guest.raise(2);
        guest.raise(9);
        assert_eq!(guest.interrupts(), [2], "9 is nobody's yet");
        calls += 1;
    }
    assert_eq!(calls, 3, "routes, 16 and 16 vectors");
    assert!(guest.is_direct());
    assert_eq!(guest.interrupts(), [9], "it waited");
    works(&guest);
}

/// H-402, H-443: what comes meanwhile waits, and comes once.
#[test]
fn events_between_two_calls_are_neither_lost_nor_doubled_nor_early() {
    for policy in [Policy::Direct, Policy::Trapped] {
        for rounds in [1, 2, 3, 4] {
            let guest = enabled(Options { policy, ..options() });
            let all = setups(VECTORS, message);
            let mut sequence = begin(&guest, &all, rounds);
            raise_all(&guest);
            assert_eq!(guest.interrupts(), NONE);
            let answer = loop {
                match guest.configure_with(VECTORS, sequence, &all) {
                    Err(CallError::Busy(busy)) => sequence = busy.sequence,
                    other => break other.unwrap(),
                }
                assert_eq!(guest.interrupts(), NONE, "{policy:?} {rounds}");
            };
            assert_eq!(guest.interrupts(), unmasked(), "{policy:?} {rounds}");
            let reported = answer.pending();
            (0..VECTORS).for_each(|vector| guest.unmask(vector));
            let waited = guest.interrupts().len();
            assert_eq!(reported.len() + waited, 10, "{policy:?} {rounds}");
        }
    }
}

#[test]
fn what_ends_an_unfinished_configure_leaves_nothing_behind() {
    let ends: [Event; 6] = [
        ("release", |guest| drop(guest.call(CallId::Release, &[]).unwrap())),
        ("Enable cleared", |guest| guest.control(0)),
        ("function level reset", |guest| {
            guest.config_write(DEVICE_CONTROL, &0x8000_u16.to_le_bytes());
        }),
        ("reset by the host", |guest| guest.function.reset().unwrap()),
        ("machine reset", |guest| guest.service.reset().unwrap()),
        ("removal", |guest| guest.function.remove().unwrap()),
    ];
    for (name, end) in ends {
        for calls in 1..=4 {
            let guest = enabled(options());
            let all = setups(VECTORS, message);
            let sequence = begin(&guest, &all, calls);
            end(&guest);
            nothing_is_left(&guest);
            if name == "removal" {
                continue;
            }
            assert!(guest.configure_with(VECTORS, sequence, &all).is_err(), "{name}");
            guest.config_write(0x10, &0xc000_0000_u32.to_le_bytes());
            guest.config_write(0x04, &[0x06, 0x00]);
            guest.control(ENABLE);
            function::requests();
            configure(&guest, &all, nothing);
            works(&guest);
        }
    }
}

/// The host's own affairs, and the guest's, between two calls.
#[test]
fn an_unfinished_configure_goes_on_whatever_happens_meanwhile() {
    let events: [Event; 6] = [
        ("revoked and allowed", |guest| {
            guest.function.revoke().unwrap();
            guest.function.allow().unwrap();
        }),
        ("Function Mask", |guest| {
            guest.control(ENABLE | FUNCTION_MASK);
            guest.control(ENABLE);
        }),
        ("another place", |guest| {
            guest.config_write(0x10, &0xd000_0000_u32.to_le_bytes());
        }),
        ("decoding off and on", |guest| {
            guest.config_write(0x04, &[0x04, 0x00]);
            raise_all(guest);
            guest.config_write(0x04, &[0x06, 0x00]);
            assert_eq!(guest.interrupts(), NONE);
        }),
        ("saved", |guest| {
            guest.service.save().unwrap();
            guest.service.resume().unwrap();
        }),
        ("asleep and awake", |guest| {
            guest.config_write(POWER, &[3, 0]);
            guest.config_write(POWER, &[0, 0]);
        }),
    ];
    for (name, event) in events {
        let guest = enabled(options());
        let all = setups(VECTORS, message);
        let mut sequence = begin(&guest, &all, 3);
        event(&guest);
        function::requests();
        assert_eq!((guest.status().assigned, guest.interrupts()), (0, vec![]), "{name}");
        for calls in 0.. {
            assert!(calls < 10, "{name}");
            let before = guest.status().counters;
            let done = call(&guest, VECTORS, sequence, &all);
            let cost = cost(before, guest.status().counters);
            assert!(cost.set_ups.iter().all(|&vectors| vectors <= 16), "{name}: {cost:?}");
            match done {
                Err(next) => sequence = next,
                Ok(granted) => {
                    assert_eq!(granted, VECTORS);
                    break;
                }
            }
        }
        guest.interrupts();
        guest.function.allow().unwrap();
        (0..VECTORS).filter(|v| v.is_multiple_of(4)).for_each(|vector| guest.mask(vector));
        works(&guest);
    }
}

/// The emulated table takes over what is prepared.
#[test]
fn a_guest_that_gives_up_and_uses_its_own_table_finds_all_events() {
    for released in [false, true] {
        for calls in 1..=4 {
            let guest = enabled(options());
            begin(&guest, &setups(VECTORS, |vector| message(vector + 100)), calls);
            raise_all(&guest);
            if released {
                guest.call(CallId::Release, &[]).unwrap();
                assert!(guest.pending(3), "it waits for the table");
            }
            (0..VECTORS).for_each(|vector| guest.program(vector, message(vector)));
            assert_eq!(guest.interrupts(), (0..VECTORS).collect::<Vec<_>>(), "{released} {calls}");
            raise_all(&guest);
            assert_eq!(guest.interrupts(), (0..VECTORS).collect::<Vec<_>>());
            assert_eq!(guest.routes.left.load(Ordering::SeqCst), ROUTES - VECTORS);
            assert_eq!(function::set_up(), usize::from(VECTORS));
        }
    }
}

#[test]
fn a_new_configure_takes_the_place_of_one_that_was_given_up() {
    for (platform, message, other) in [
        (
            X86_64,
            message as fn(u16) -> GuestMessage,
            (|vector| message(vector + 100)) as fn(u16) -> GuestMessage,
        ),
        (Platform::Aarch64 { its_doorbell: ITS }, its_message, |vector| its_message(vector + 100)),
    ] {
        for calls in 1..=4 {
            for count in [4, 20, VECTORS] {
                let guest = enabled(Options { platform, ..options() });
                let given_up = begin(&guest, &setups(VECTORS, other), calls);
                let wanted = setups(count, message);
                let costs = configure(&guest, &wanted, nothing);
                let named = |cost: &Cost| cost.set_ups.iter().all(|&vectors| vectors <= 16);
                assert!(costs.iter().all(named), "{costs:?}");
                let left = guest.routes.left.load(Ordering::SeqCst);
                assert_eq!((left, function::set_up()), (ROUTES - count, usize::from(count)));
                assert!(guest.configure_with(VECTORS, given_up, &setups(VECTORS, other)).is_err());
                raise_all(&guest);
                while guest.device.run() {}
                let mut arrived = guest.routes.delivered();
                arrived.sort_by_key(|message| (message.address, message.data));
                let unmasked = (0..count).filter(|vector| !vector.is_multiple_of(4));
                assert_eq!(arrived, unmasked.map(message).collect::<Vec<_>>());
            }
        }
    }
}

#[test]
fn a_host_that_is_short_grants_what_it_has() {
    for short in [
        Options { interrupts: 20, ..options() },
        Options { interrupts: 20, guesses: true, ..options() },
        Options { routes: 20, ..options() },
        Options { interrupts: 5, ..options() },
    ] {
        let guest = enabled(short);
        let all = setups(VECTORS, message);
        let mut sequence = Sequence::START;
        let granted = loop {
            match call(&guest, VECTORS, sequence, &all) {
                Err(next) => sequence = next,
                Ok(granted) => break granted,
            }
        };
        let left = guest.routes.left.load(Ordering::SeqCst);
        let most = short.interrupts.min(short.routes);
        assert!(granted == most, "{granted}");
        assert_eq!((left, function::set_up()), (short.routes - granted, usize::from(granted)));
        raise_all(&guest);
        let unmasked = (0..granted).filter(|vector| !vector.is_multiple_of(4));
        assert_eq!(guest.interrupts(), unmasked.collect::<Vec<_>>());
    }
    for none in [Options { interrupts: 0, ..options() }, Options { routes: 0, ..options() }] {
        let guest = enabled(none);
        let all = setups(VECTORS, message);
        let mut sequence = Sequence::START;
        let error = loop {
            match guest.configure_with(VECTORS, sequence, &all).unwrap_err() {
                CallError::Busy(busy) => sequence = busy.sequence,
                error => break error,
            }
        };
        assert_eq!(error, CallError::NoResources);
        assert_eq!((guest.routes.attached(), function::set_up()), (0, 0));
    }
}
