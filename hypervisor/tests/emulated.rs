//! A guest that never calls: what its emulated table costs the host, and who may have how much.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![allow(clippy::cast_possible_truncation)]

mod fixture;

use std::sync::atomic::Ordering::SeqCst;

use fixture::faults::{self, Plan};
use fixture::function::{requests, set_up};
use fixture::*;
use pvmsi_hypervisor::{FunctionPolicy, Policy};
use pvmsi_protocol::{CallError, Sequence, VectorSetup};

/// How many routes are taken.
fn taken(guest: &Guest) -> u16 {
    Options::default().routes - guest.routes.left.load(SeqCst)
}

fn with(change: impl FnOnce(&mut Options)) -> Guest {
    let mut options = Options { vectors: 65, ..Options::default() };
    change(&mut options);
    let guest = Guest::new(options);
    guest.control(ENABLE);
    drop(requests());
    guest
}

/// As an NVMe with 65 vectors whose driver has a queue for each of two processors.
#[test]
fn what_is_used_is_what_it_costs() {
    for policy in [Policy::Off, Policy::Trapped, Policy::Direct] {
        let guest = with(|options| options.policy = policy);
        for vector in 0..3 {
            guest.program(vector, message(vector));
        }
        assert_eq!((set_up(), taken(&guest)), (3, 3), "{policy:?}");
        // One request for each that is used for the first time, none for what is used again.
        guest.mask(1);
        guest.unmask(1);
        guest.program(2, message(9));
        assert_eq!(requests(), [1, 1, 1]);
        (0..3).for_each(|vector| guest.raise(vector));
        assert_eq!(guest.interrupts(), [0, 1, 9]);
        // All go with Enable.
        guest.control(0);
        assert_eq!((set_up(), taken(&guest)), (0, 0));
        // What is unmasked when it comes back has its interrupts at once.
        guest.control(ENABLE);
        assert_eq!(requests(), [3]);
        assert_eq!(taken(&guest), 3);
    }
}

#[test]
fn one_vector_in_the_middle_takes_one_route() {
    let guest = with(|options| options.routes = 1);
    guest.program(40, message(40));
    guest.raise(40);
    assert_eq!(guest.interrupts(), [40]);
    assert_eq!((set_up(), guest.routes.left.load(SeqCst)), (41, 0));
    // Those before it wait for a route of their own.
    guest.program(3, message(3));
    guest.raise(3);
    assert_eq!(guest.interrupts(), NONE);
    assert!(guest.pending(3));
    assert_eq!(guest.status().without_interrupts, 1);
    guest.routes.left.store(1, SeqCst);
    guest.config_write(READ_ONLY, &[0]);
    assert_eq!(guest.interrupts(), [3], "as soon as there is one");
    assert_eq!(guest.status().without_interrupts, 0);
}

#[test]
fn an_event_of_a_vector_that_nobody_has_unmasked_waits() {
    let guest = with(|_| {});
    guest.program(4, message(4));
    // Before, at and beyond what is set up.
    for vector in [2, 5, 64] {
        guest.raise(vector);
        assert_eq!(guest.interrupts(), NONE);
        assert!(guest.pending(vector), "{vector}");
    }
    // Nothing of theirs is lost when others come.
    guest.program(30, message(30));
    guest.raise(30);
    assert_eq!(guest.interrupts(), [30]);
    for vector in [64, 2, 5] {
        assert!(guest.pending(vector), "{vector}");
        guest.program(vector, message(vector));
        assert_eq!(guest.interrupts(), [vector], "once, by unmasking");
        assert!(!guest.pending(vector), "{vector}");
    }
    assert_eq!((set_up(), taken(&guest)), (65, 5));
    // A call gets the rest of the routes.
    assert_eq!(guest.configure(65).granted, 65);
    assert_eq!(taken(&guest), 65);
}

#[test]
fn a_vector_that_waits_keeps_its_event_while_others_come() {
    let guest = with(|_| {});
    guest.program(0, message(0));
    guest.mask(0);
    guest.raise(0);
    guest.program(1, message(1));
    assert_eq!(guest.interrupts(), NONE);
    guest.unmask(0);
    assert_eq!(guest.interrupts(), [0]);
}

/// Linux before 6.5, and on arm64 before 7.x: an interrupt that comes later needs Enable cleared.
#[test]
fn where_set_up_cannot_grow_the_kernel_has_all_at_enable() {
    let guest = with(|options| options.grows = false);
    for vector in [1, 0, 40] {
        guest.program(vector, message(vector));
        guest.raise(vector);
        assert_eq!(guest.interrupts(), [vector]);
    }
    assert_eq!(requests(), [2, 39], "those between are not touched again");
    assert_eq!(taken(&guest), 3, "routes are there for what is used all the same");
}

#[test]
fn a_quota_counts_for_those_who_do_not_call() {
    for grows in [true, false] {
        let policy = FunctionPolicy { vectors: Some(2), ..FunctionPolicy::default() };
        let guest = with(|options| (options.function_policy, options.grows) = (policy, grows));
        (0..4).for_each(|vector| guest.program(vector, message(vector)));
        (0..4).for_each(|vector| guest.raise(vector));
        assert_eq!(guest.interrupts(), [0, 1]);
        assert_eq!((set_up(), taken(&guest)), (2, 2));
        assert_eq!(guest.status().without_interrupts, 2);
        // What it is refused costs it nothing but that.
        guest.mask(0);
        guest.raise(0);
        guest.unmask(0);
        assert_eq!(guest.interrupts(), [0]);
    }
}

#[test]
fn what_is_used_goes_along_with_the_vm() {
    let source = with(|_| {});
    source.program(0, message(0));
    source.program(7, message(7));
    source.mask(7);
    source.raise(7);
    source.raise(3);
    let state = source.service.save().unwrap();
    let target = Guest::new(Options { vectors: 65, routes: 1, ..Options::default() });
    target.service.restore(&state).unwrap();
    target.service.resume().unwrap();
    target.raise(0);
    assert_eq!(target.interrupts(), [0]);
    assert_eq!((set_up(), target.routes.left.load(SeqCst)), (8, 0));
    assert!(target.pending(7) && target.pending(3));
    target.routes.left.store(8, SeqCst);
    target.unmask(7);
    assert_eq!(target.interrupts(), [7]);
    // A host that allows less than what is used refuses.
    let policy = FunctionPolicy { vectors: Some(4), ..FunctionPolicy::default() };
    let few = Guest::new(Options { vectors: 65, function_policy: policy, ..Options::default() });
    few.service.restore(&state).unwrap_err();
}

/// Routes are short, and the vector that has the only one is not the first.
#[test]
fn a_call_gathers_the_routes_that_are_there() {
    for (routes, used, granted) in [(1, [5, 5], 1), (2, [5, 1], 2), (2, [6, 3], 2)] {
        let guest = with(|options| (options.routes, options.vectors) = (routes, 8));
        used.into_iter().for_each(|vector| guest.program(vector, message(vector)));
        assert_eq!(guest.routes.left.load(SeqCst), routes - if used[0] == used[1] { 1 } else { 2 });
        guest.raise(used[0]);
        assert_eq!(guest.interrupts(), [used[0]]);
        assert_eq!(guest.configure(8).granted, granted, "{used:?}");
        assert_eq!(guest.routes.left.load(SeqCst), 0);
        (0..granted).for_each(|vector| guest.raise(vector));
        assert_eq!(guest.interrupts(), (0..granted).collect::<Vec<_>>());
    }
}

#[test]
fn a_call_that_fails_gives_them_back() {
    let mut refused = 0;
    for step in 1.. {
        let guest = with(|options| (options.routes, options.vectors) = (2, 8));
        for vector in [5, 6] {
            guest.program(vector, message(vector));
        }
        guest.mask(5);
        guest.raise(5);
        faults::plan(Plan::Nth(step));
        let answer = guest.configure_with(8, Sequence::START, &[]);
        let failed = faults::end();
        if failed.is_empty() {
            break;
        }
        if answer.is_err() {
            refused += 1;
            // Whatever was owed is paid with the next operation.
            guest.config_write(READ_ONLY, &[0]);
            guest.raise(6);
            assert_eq!(guest.interrupts(), [6], "{failed:?}");
            guest.unmask(5);
            assert_eq!(guest.interrupts(), [5], "{failed:?}");
            assert_eq!(guest.routes.left.load(SeqCst), 0);
        }
    }
    assert!(refused > 0, "no step could fail");
}

#[test]
fn a_call_that_is_busy_leaves_those_in_use_alone() {
    for (vectors, used) in [(2, 0), (2, 1), (8, 3)] {
        let guest = with(|options| (options.vectors, options.vectors_per_call) = (vectors, 1));
        guest.program(used, message(used));
        let mut sequence = Sequence::START;
        let answer = loop {
            match guest.configure_with(vectors, sequence, &[]) {
                Err(CallError::Busy(busy)) => sequence = busy.sequence,
                answer => break answer.unwrap(),
            }
            assert_eq!(guest.routes.attached(), 1, "{sequence:?}");
            guest.raise(used);
            assert_eq!(guest.interrupts(), [used]);
        };
        assert_eq!(answer.granted, vectors);
    }
}

/// A vector that finds no route is owed one, and what is owed is tried with each operation.
#[test]
fn a_call_goes_on_while_a_vector_in_use_lacks_a_route() {
    let guest = with(|options| {
        (options.vectors, options.vectors_per_call, options.routes) = (8, 1, 3);
    });
    (0..3).for_each(|vector| guest.program(vector, message(vector)));
    // One of them gives its route away: there is one, and two want it.
    guest.program(7, message(7));
    assert_eq!(guest.status().without_interrupts, 1);
    let setups: Vec<_> = (0..8)
        .map(|vector| VectorSetup { message: Some(message(vector)), masked: false })
        .collect();
    let mut sequence = Sequence::START;
    for _ in 0..40 {
        match guest.configure_with(8, sequence, &setups) {
            Err(CallError::Busy(busy)) => sequence = busy.sequence,
            answer => {
                assert_eq!(answer.unwrap().granted, 3);
                return;
            }
        }
    }
    panic!("it is busy for ever");
}
