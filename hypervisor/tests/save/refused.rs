//! What no service has saved is refused, and nothing has changed then.

use std::sync::atomic::Ordering;

use super::*;
use pvmsi_hypervisor::{FunctionPolicy, Platform, Policy, RestoreError};
use pvmsi_protocol::{FunctionId, GuestMessage, Sequence, TableMode, VectorSetup};
use pvmsi_software::{SoftwareFunction, SoftwareOptions};
use pvmsi_test_doubles::IdleWindow;
use serde_json::json;

/// Four vectors, an event that waits, and a `configure` that is not finished.
fn saved() -> Value {
    let guest = Guest::new(Options { vectors: 64, vectors_per_call: 8, ..Options::default() });
    guest.control(ENABLE);
    guest.configure(4);
    guest.mask(2);
    guest.raise(2);
    let setups = [VectorSetup { message: Some(message(0)), masked: false }; 2];
    guest.configure_with(64, Sequence::START, &setups).unwrap_err();
    guest.service.save().unwrap();
    while guest.device.run() {}
    json(&guest.service.save().unwrap())
}

fn target() -> Guest {
    Guest::with_vectors(64)
}

/// Restores a state and expects the refusal; nothing may have changed.
fn refused(target: &Guest, state: &ServiceState) -> RestoreError {
    let before = (target.snapshot(), target.config_read(MSIX_CONTROL - 2));
    let error = target.service.restore(state).unwrap_err();
    assert_eq!((target.snapshot(), target.config_read(MSIX_CONTROL - 2)), before, "{error}");
    let left = target.routes.left.load(Ordering::SeqCst);
    target.control(ENABLE);
    assert_eq!(target.configure(2).mode, TableMode::Direct, "and it works: {error}");
    target.raise(1);
    assert_eq!(target.interrupts(), [1]);
    target.control(0);
    assert_eq!(target.routes.left.load(Ordering::SeqCst), left, "no route is gone");
    error
}

#[test]
fn the_state_that_the_others_are_made_of_is_taken() {
    let target = target();
    target.service.restore(&serde_json::from_value(saved()).unwrap()).unwrap();
    target.service.resume().unwrap();
    assert_eq!(target.query().assigned, 4);
    assert_eq!(saved()[1][0]["held"], json!([2]));
    assert_ne!(saved()[1][0]["preparation"], Value::Null);
}

#[test]
fn states_that_make_no_sense() {
    type Damage = (&'static str, fn(&mut Value));

    let damages: [Damage; 17] = [
        ("twice", |state| {
            let function = state[1][0].clone();
            state[1].as_array_mut().unwrap().push(function);
        }),
        ("which this VM has not", |state| state[1][0]["id"] = json!(16)),
        ("saved with 63 vectors, and has 64", |state| state[1][0]["vectors"] = json!(63)),
        ("more or fewer vectors", |state| {
            state[1][0]["owner"]["Assigned"]["vectors"] = json!([]);
        }),
        ("more or fewer vectors", |state| {
            let vector = state[1][0]["owner"]["Assigned"]["vectors"][0].clone();
            state[1][0]["owner"]["Assigned"]["vectors"] = json!(vec![vector; 65]);
        }),
        ("more or fewer vectors", |state| {
            let vector = json!({ "message": null, "masked": true });
            state[1][0]["owner"]["Assigned"]["vectors"] = json!(vec![vector; 70_000]);
        }),
        ("cannot deliver", |state| {
            state[1][0]["owner"]["Assigned"]["vectors"][1]["message"]["address"] =
                json!(0xfed0_0000_u64);
        }),
        ("cannot deliver", |state| {
            state[1][0]["preparation"]["vectors"][1]["message"]["data"] = json!(3);
        }),
        ("vectors that it has not", |state| state[1][0]["held"] = json!([4])),
        ("vectors that it has not", |state| state[1][0]["held"] = json!([1, 65_535])),
        ("vectors that it has not", |state| state[1][0]["held"] = json!([2, 2])),
        ("vectors that it has not", |state| state[1][0]["held"] = json!([3, 1])),
        ("unfinished", |state| state[1][0]["preparation"]["sequence"] = json!(0)),
        ("unfinished", |state| state[1][0]["preparation"]["requested"] = json!(65)),
        ("unfinished", |state| state[1][0]["preparation"]["requested"] = json!(1)),
        ("not as long as it says", |state| {
            state[1][0]["owner"] = json!({ "Legacy": { "entries": [], "set_up": 0 } });
        }),
        ("interrupts that it cannot have", |state| {
            let entry = json!({ "message": { "address": 0, "data": 0 }, "masked": true });
            let entries = vec![entry; 64];
            state[1][0]["owner"] = json!({ "Legacy": { "entries": entries, "set_up": 65 } });
        }),
    ];
    for (text, damage) in damages {
        let mut state = saved();
        damage(&mut state);
        let error = refused(&target(), &serde_json::from_value(state).unwrap()).to_string();
        assert!(error.contains(text), "{error:?} does not say {text:?}");
    }
}

#[test]
fn bytes_that_were_damaged_on_the_way_are_refused_or_harmless() {
    let state: ServiceState = serde_json::from_value(saved()).unwrap();
    let bytes = bytes(&state);
    let (mut undecodable, mut refusals, mut taken) = (0, 0, 0);
    for at in 0..bytes.len() {
        for value in [0, 0xff, bytes[at] ^ 1, bytes[at] ^ 0x40] {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            let Ok(state) = postcard::from_bytes::<ServiceState>(&damaged) else {
                undecodable += 1;
                continue;
            };
            let target = target();
            let before = target.snapshot();
            if target.service.restore(&state).is_err() {
                assert_eq!(target.snapshot(), before);
                refusals += 1;
            } else {
                target.service.resume().unwrap();
                while target.device.run() {}
                taken += 1;
            }
        }
        assert!(postcard::from_bytes::<ServiceState>(&bytes[..at]).is_err(), "cut off at {at}");
    }
    assert!(undecodable > 0 && refusals > 0 && taken > 0, "{undecodable} {refusals} {taken}");
}

#[test]
fn a_function_that_was_used_already() {
    let state: ServiceState = serde_json::from_value(saved()).unwrap();
    let uses: [fn(&Guest); 3] = [
        |guest| drop(guest.configure(1)),
        |guest| guest.store(Guest::entry(1, 2), 7),
        |guest| guest.program(0, message(0)),
    ];
    for use_it in uses {
        let target = target();
        target.control(ENABLE);
        use_it(&target);
        let before = target.snapshot();
        let error = target.service.restore(&state).unwrap_err();
        assert!(matches!(error, RestoreError::InUse(FUNCTION)), "{error}");
        assert_eq!(target.snapshot(), before);
    }
    let target = target();
    target.service.restore(&state).unwrap();
    assert!(matches!(target.service.restore(&state), Err(RestoreError::InUse(FUNCTION))));
}

#[test]
fn hosts_that_allow_too_little() {
    let state: ServiceState = serde_json::from_value(saved()).unwrap();
    let quota = FunctionPolicy { vectors: Some(3), ..FunctionPolicy::default() };
    for (function_policy, policy, limit) in
        [(quota, Policy::Direct, 3), (FunctionPolicy::default(), Policy::Off, 0)]
    {
        let target =
            Guest::new(Options { vectors: 64, policy, function_policy, ..Options::default() });
        let error = target.service.restore(&state).unwrap_err();
        let denied =
            matches!(error, RestoreError::Denied { saved: 4, allowed, .. } if allowed == limit);
        assert!(denied, "{error}");
    }
    let none = Guest::new(Options { vectors: 64, routes: 0, ..Options::default() });
    let error = none.service.restore(&state).unwrap_err();
    assert!(matches!(error, RestoreError::NoResources { needed: 4, left: 0, .. }), "{error}");
    let target = Guest::new(Options { vectors: 64, routes: 3, ..Options::default() });
    let error = refused(&target, &state);
    assert!(matches!(error, RestoreError::NoResources { needed: 4, left: 3, .. }), "{error}");
}

#[test]
fn a_host_without_the_destination_ids_that_the_guest_uses() {
    let source = Guest::with_vectors(64);
    source.control(ENABLE);
    let beyond = GuestMessage { address: 0xfee0_1020, data: 0x31 };
    let setup = VectorSetup { message: Some(beyond), masked: true };
    source.configure_with(1, Sequence::START, &[setup]).unwrap();
    let state = source.service.save().unwrap();
    let platform = Platform::X86_64 { extended_destination_ids: false };
    let target = Guest::new(Options { vectors: 64, platform, ..Options::default() });
    let error = refused(&target, &state);
    assert!(matches!(error, RestoreError::Invalid { .. }), "{error}");
}

#[test]
fn a_step_that_fails_is_undone_and_can_be_tried_again() {
    let state: ServiceState = serde_json::from_value(saved()).unwrap();
    let plans: [fn(usize) -> faults::Plan; 3] =
        [faults::Plan::Nth, faults::Plan::KernelFrom, faults::Plan::AllFrom];
    let (mut points, mut refused) = (0, 0);
    for plan in plans {
        for step in 1.. {
            let target = target();
            let before = target.snapshot();
            faults::plan(plan(step));
            let result = target.service.restore(&state);
            let failed = faults::end();
            if result.is_err() {
                let (assigned, mode, generation, .., states) = before;
                let (now_assigned, now_mode, now_generation, .., now_states) = target.snapshot();
                assert_eq!((now_assigned, now_mode, now_generation), (assigned, mode, generation));
                assert_eq!(now_states, states, "{failed:?}");
                target.service.restore(&state).unwrap();
                refused += 1;
            }
            target.service.resume().unwrap();
            assert_eq!(target.query().assigned, 4, "{failed:?}");
            (0..4).filter(|&vector| vector != 2).for_each(|vector| target.raise(vector));
            assert_eq!(target.interrupts(), [0, 1, 3], "{failed:?}");
            if failed.is_empty() {
                points += step - 1;
                break;
            }
        }
    }
    faults::report(points, "a saved service is restored");
    assert!(refused > 0, "no step could fail");
}

/// The first function of a VM must not take for later what the second needs now.
#[test]
fn two_functions_that_share_what_there_is() {
    let first = FunctionId(4);
    let programmed: fn(&Guest) = |guest| {
        (0..8).for_each(|vector| guest.program(vector, message(vector)));
    };
    let configured: fn(&Guest) = |guest| assert_eq!(guest.configure(8).granted, 8);
    for use_it in [programmed, configured] {
        let host = || {
            let guest = Guest::new(Options { vectors: 8, routes: 9, ..Options::default() });
            assert!(guest.add_function(first).is_some());
            guest
        };
        let source = host();
        source.control(ENABLE);
        use_it(&source);
        // What is left is one for the function that comes first in the state.
        source.use_in_the_standard_way(first);
        assert_eq!(source.routes.left.load(Ordering::SeqCst), 0);
        let target = host();
        target.service.restore(&source.service.save().unwrap()).unwrap();
        target.service.resume().unwrap();
        (0..8).filter(|&vector| target.masked(vector)).for_each(|vector| target.unmask(vector));
        target.raise(0);
        assert_eq!(target.interrupts(), [0]);
    }
}

#[test]
fn all_functions_or_none() {
    let other = FunctionId(16);
    let with_two = |routes| {
        let guest = Guest::new(Options { vectors: 8, routes, ..Options::default() });
        let options = SoftwareOptions { vectors: 8, isolated: true };
        let function = Box::new(SoftwareFunction::new(options, 4096).unwrap());
        let policy = FunctionPolicy::default();
        guest
            .service
            .add_function(other, function, Box::new(IdleWindow::new(true)), policy)
            .unwrap();
        guest
    };
    let mut state = saved();
    state[1][0]["vectors"] = json!(8);
    state[1][0]["preparation"] = Value::Null;
    let mut second = state[1][0].clone();
    second["id"] = json!(other.0);
    state[1].as_array_mut().unwrap().push(second);
    let state: ServiceState = serde_json::from_value(state).unwrap();

    // The first takes four routes, which leaves three for the second.
    let error = refused(&with_two(7), &state);
    assert!(matches!(error, RestoreError::NoResources { function, .. } if function == other));
    let target = with_two(8);
    target.service.restore(&state).unwrap();
    let assigned = |id| target.service.function(id).unwrap().status().unwrap().assigned;
    assert_eq!((assigned(FUNCTION), assigned(other)), (4, 4));
}

#[test]
fn devices_of_another_kind() {
    let device = Guest::with_vectors(40).device.save();
    let state = serde_json::to_value(&device).unwrap();
    let damages: [fn(&mut Value); 4] = [
        |state| state[1]["events"].as_array_mut().unwrap().push(json!(0)),
        |state| state[1]["sent"] = json!([]),
        |state| state[1]["pending"] = json!([0, 0, 0]),
        |state| state[1]["pending"] = json!([0, 0x100]),
    ];
    for damage in damages {
        let mut state = state.clone();
        damage(&mut state);
        let target = Guest::with_vectors(40);
        let damaged: SoftwareDeviceState = serde_json::from_value(state).unwrap();
        assert!(target.device.restore(&damaged).is_err());
        assert_eq!(target.device.save(), device);
    }
}
