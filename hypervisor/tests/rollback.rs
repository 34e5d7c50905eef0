//! A failed step rolls back: for every call into the routes that an operation makes, that call fails once.

#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]

mod fixture;

use std::sync::atomic::Ordering;

use fixture::*;
use pvmsi_protocol::{CallError, CallId, Sequence, VectorSetup};

/// Runs `act` with its n-th fallible step failing, for all n, until it runs without a failure.
fn every_step_rolls_back(prepare: impl Fn(&Guest), act: impl Fn(&Guest) -> Result<(), CallError>) {
    let mut failures = 0;
    for step in 1.. {
        let guest = Guest::with_vectors(6);
        guest.control(ENABLE);
        prepare(&guest);
        let before = guest.snapshot();
        let routes = guest.routes.left.load(Ordering::SeqCst);
        guest.routes.fail_at.store(step, Ordering::SeqCst);
        let result = act(&guest);
        let hit = guest.routes.fail_at.swap(0, Ordering::SeqCst) == 0;
        if !hit {
            result.unwrap();
            break;
        }
        if result.is_ok() {
            continue;
        }
        failures += 1;
        assert_eq!(result, Err(CallError::Hardware));
        assert_eq!(guest.snapshot(), before, "step {step}");
        assert_eq!(guest.routes.left.load(Ordering::SeqCst), routes, "step {step}: no route leaks");
        for vector in 0..before.0 {
            guest.raise(vector);
        }
        assert_eq!(guest.interrupts(), (0..before.0).collect::<Vec<_>>(), "step {step}");
    }
    assert!(failures > 0, "no step could fail");
}

fn setups(count: u16) -> Vec<VectorSetup> {
    (0..count).map(|v| VectorSetup { message: Some(message(v)), masked: v % 2 == 1 }).collect()
}

#[test]
fn a_first_configure() {
    every_step_rolls_back(
        |_| {},
        |guest| guest.configure_with(4, Sequence::START, &setups(4)).map(drop),
    );
}

#[test]
fn a_configure_that_grows() {
    every_step_rolls_back(
        |guest| drop(guest.configure(2)),
        |guest| guest.configure_with(6, Sequence::START, &setups(6)).map(drop),
    );
}

#[test]
fn a_configure_that_shrinks() {
    every_step_rolls_back(
        |guest| drop(guest.configure(6)),
        |guest| guest.configure_with(2, Sequence::START, &setups(2)).map(drop),
    );
}

#[test]
fn an_update() {
    every_step_rolls_back(
        |guest| drop(guest.configure(4)),
        |guest| guest.update(&[(0, message(100)), (3, message(101))]),
    );
}

#[test]
fn a_release_goes_on_where_the_kernel_refuses_a_step() {
    for step in 1..8 {
        let guest = Guest::with_vectors(4);
        guest.control(ENABLE);
        guest.configure(4);
        guest.routes.fail_at.store(step, Ordering::SeqCst);
        guest.call(CallId::Release, &[]).unwrap();
        guest.routes.fail_at.store(0, Ordering::SeqCst);
        let taken = 4000 - guest.routes.left.load(Ordering::SeqCst);
        assert!(taken <= 1, "only a GSI that is still in use is kept; step {step}");
        guest.configure(4);
        guest.raise(2);
        assert_eq!(guest.interrupts(), [2], "step {step}");
    }
}
