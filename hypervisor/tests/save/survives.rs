//! What survives, in every state that a function can be in.

use super::*;
use pvmsi_hypervisor::Policy;
use pvmsi_protocol::{CallError, CallId, Reasons, Sequence, TableMode, VectorSetup};
use pvmsi_software::registers::{DONE, DOORBELL, EVENTS, ROTATION, of_vector};

/// Four vectors, assigned and unmasked, MSI-X on.
fn assigned(policy: Policy) -> Guest {
    let guest = Guest::new(Options { vectors: 4, policy, ..Options::default() });
    guest.control(ENABLE);
    guest.configure(4);
    guest
}

fn restore(guest: &Guest) {
    guest.call(CallId::Restore, &[]).unwrap();
}

#[test]
fn a_function_that_nobody_uses() {
    let target = moved(&Guest::with_vectors(4), 4);
    assert_eq!(target.query().reasons, Reasons::NOT_ASSIGNED | Reasons::MSIX_DISABLED);
    target.control(ENABLE);
    assert_eq!(target.configure(4).mode, TableMode::Direct);
    target.raise(3);
    assert_eq!(target.interrupts(), [3]);
}

#[test]
fn the_emulated_table_of_a_guest_that_never_calls() {
    let source = Guest::with_vectors(4);
    source.control(ENABLE);
    for vector in 0..3 {
        source.program(vector, message(vector));
    }
    source.mask(1);
    source.raise(1);
    assert_eq!(source.interrupts(), NONE);

    let target = moved(&source, 4);
    assert_eq!(target.config_read(MSIX_CONTROL - 2) >> 31, 1, "MSI-X Enable");
    assert_eq!(u64::from(target.load(Guest::entry(2, 0))), message(2).address);
    assert_eq!(target.load(Guest::entry(2, 2)), message(2).data);
    assert!(!target.masked(0) && target.masked(1) && target.masked(3));
    assert!(target.pending(1) && !target.pending(0));
    assert!(!target.query().reasons.contains(Reasons::MIGRATED), "nothing was assigned");
    target.raise(0);
    assert_eq!(target.interrupts(), [0]);
    target.unmask(1);
    assert_eq!(target.interrupts(), [1], "the event that was held, once");
}

/// The guest has started the function already, and unmasks on the new host.
#[test]
fn msix_enable_of_the_function_before_the_first_vector_is_unmasked() {
    let source = Guest::with_vectors(4);
    source.control(ENABLE);
    source.raise(1);
    let target = moved(&source, 4);
    assert!(target.device.enabled());
    assert!(target.pending(1));
    target.program(1, message(1));
    assert_eq!(target.interrupts(), [1]);
    target.control(0);
    assert!(!target.device.enabled());
}

#[test]
fn an_event_of_an_emulated_table_that_is_all_masked() {
    let source = Guest::with_vectors(4);
    source.control(ENABLE);
    source.program(2, message(2));
    source.mask(2);
    source.raise(2);
    let target = moved(&source, 4);
    assert!(target.pending(2));
    target.unmask(2);
    assert_eq!(target.interrupts(), [2]);
}

#[test]
fn vectors_of_a_trapped_table() {
    let source = assigned(Policy::Trapped);
    source.mask(1);
    source.raise(1);
    assert_eq!(source.interrupts(), NONE);

    let generation = source.query().generation;
    let trapped = Options { vectors: 4, policy: Policy::Trapped, ..Options::default() };
    let target = moved_to(&source, trapped);
    let answer = target.query();
    assert_ne!(answer.generation, generation);
    assert_eq!((answer.assigned, answer.mode), (4, TableMode::Trapped));
    assert_eq!(answer.reasons, Reasons::POLICY | Reasons::MIGRATED);
    for (vector, state) in (0..4).zip(target.query_vectors(0, 4).unwrap()) {
        assert_eq!(state.guest_message, Some(message(vector)));
        assert_eq!((state.masked, state.pending), (vector == 1, vector == 1));
        assert!(state.table_message.is_some(), "of the new host");
    }
    target.raise(0);
    assert_eq!(target.interrupts(), [0]);
    target.unmask(1);
    assert_eq!(target.interrupts(), [1]);
    restore(&target);
    assert_eq!(target.query().reasons, Reasons::POLICY);
}

#[test]
fn a_direct_table_is_trapped_until_the_guest_asks_again() {
    let asks: [fn(&Guest); 2] = [restore, |guest| drop(guest.configure(4))];
    for ask in asks {
        let source = assigned(Policy::Direct);
        assert!(source.is_direct());
        let generation = source.query().generation;
        let old = source.query_vectors(0, 4).unwrap();

        let target = moved(&source, 4);
        assert!(!target.is_direct());
        let answer = target.query();
        assert_eq!((answer.assigned, answer.reasons), (4, Reasons::MIGRATED));
        assert_ne!(answer.generation, generation);
        let new = target.query_vectors(0, 4).unwrap();
        assert_ne!(new[0].table_message, old[0].table_message, "messages are the new host's");
        target.raise(2);
        assert_eq!(target.interrupts(), [2], "also before it asks");
        target.update(&[(2, message(9))]).unwrap();
        assert!(!target.is_direct(), "an update is not asking");

        let generation = target.query().generation;
        ask(&target);
        assert!(target.is_direct());
        assert_ne!(target.query().generation, generation);
        target.raise(3);
        assert_eq!(target.interrupts(), [3]);
    }
}

#[test]
fn a_pending_bit_of_a_direct_table() {
    let source = assigned(Policy::Direct);
    source.mask(1);
    source.raise(1);
    source.raise(1);
    assert!(source.pending(1));
    let target = moved(&source, 4);
    assert!(target.masked(1) && !target.masked(0));
    assert_eq!(target.interrupts(), NONE);
    assert!(target.pending(1));
    restore(&target);
    assert_eq!(target.query().reasons, Reasons::HELD_EVENT);
    target.unmask(1);
    assert_eq!(target.interrupts(), [1]);
    assert!(target.is_direct());
}

#[test]
fn a_held_event_is_reported_by_configure_instead() {
    let source = assigned(Policy::Direct);
    source.mask(1);
    source.raise(1);
    let target = moved(&source, 4);
    while target.device.run() {}
    let setups: Vec<_> =
        (0..4).map(|v| VectorSetup { message: Some(message(v)), masked: v == 1 }).collect();
    let answer = target.configure_with(4, Sequence::START, &setups).unwrap();
    assert_eq!((answer.pending(), answer.mode), (vec![1], TableMode::Direct));
    target.unmask(1);
    assert_eq!(target.interrupts(), NONE, "the guest delivers it");
}

#[test]
fn events_that_wait_for_function_mask() {
    let source = assigned(Policy::Direct);
    source.control(ENABLE | FUNCTION_MASK);
    source.raise(0);
    assert_eq!(source.interrupts(), NONE);
    let target = moved(&source, 4);
    assert_eq!(target.config_read(MSIX_CONTROL - 2) >> 30, 0b11);
    assert_eq!(target.interrupts(), NONE);
    target.control(ENABLE);
    assert_eq!(target.interrupts(), [0]);
}

#[test]
fn events_that_wait_for_a_message() {
    let source = Guest::with_vectors(4);
    source.control(ENABLE);
    let setups = [VectorSetup { message: None, masked: false }; 2];
    source.configure_with(2, Sequence::START, &setups).unwrap();
    source.raise(1);
    assert_eq!(source.interrupts(), NONE);
    let target = moved(&source, 4);
    assert_eq!(target.query().assigned, 2);
    assert_eq!(target.interrupts(), NONE);
    target.update(&[(1, message(1))]).unwrap();
    assert_eq!(target.interrupts(), [1]);
}

#[test]
fn a_function_that_is_not_decoded_or_not_in_d0() {
    let causes = [(0x04, 0x0004_u16, Reasons::DECODING_OFF), (POWER, 3, Reasons::POWER_STATE)];
    for (register, off, reason) in causes {
        let source = assigned(Policy::Direct);
        let before = [(0x04, 6_u16), (POWER, 0)];
        source.config_write(register, &off.to_le_bytes());
        let target = moved(&source, 4);
        assert_eq!(target.query().reasons, reason | Reasons::MIGRATED);
        restore(&target);
        assert_eq!(target.query().reasons, reason);
        let (_, on) = before.into_iter().find(|(at, _)| *at == register).unwrap();
        target.config_write(register, &on.to_le_bytes());
        assert!(target.is_direct());
        assert!(target.query_vectors(0, 4).unwrap().iter().all(|v| v.table_message.is_some()));
        target.raise(1);
        assert_eq!(target.interrupts(), [1]);
    }
}

#[test]
fn a_table_that_the_first_host_has_taken_back() {
    let source = assigned(Policy::Direct);
    source.function.revoke().unwrap();
    let target = moved(&source, 4);
    assert_eq!(target.query().reasons, Reasons::MIGRATED, "that was the first host's decision");
    restore(&target);
    assert!(target.is_direct());
}

#[test]
fn a_configure_that_is_not_finished() {
    let options = Options { vectors: 64, vectors_per_call: 40, ..Options::default() };
    let source = Guest::new(options);
    source.control(ENABLE);
    let setups = [VectorSetup { message: Some(message(7)), masked: false }];
    let Err(CallError::Busy(busy)) = source.configure_with(64, Sequence::START, &setups) else {
        panic!("not busy");
    };
    let target = moved_to(&source, options);
    assert!(target.configure_with(63, busy.sequence, &setups).is_err(), "another call");
    // What was ready is made again: as many repetitions as without the move.
    let mut sequence = busy.sequence;
    for _ in 0..3 {
        let Err(CallError::Busy(busy)) = target.configure_with(64, sequence, &setups) else {
            panic!("not busy");
        };
        sequence = busy.sequence;
    }
    let answer = target.configure_with(64, sequence, &setups).unwrap();
    assert_eq!((answer.granted, answer.mode), (64, TableMode::Direct));
}

#[test]
fn ownership_ends_on_the_new_host_as_ever() {
    let ends: [fn(&Guest); 3] = [
        |guest| drop(guest.call(CallId::Release, &[]).unwrap()),
        |guest| guest.control(0),
        |guest| guest.service.reset().unwrap(),
    ];
    for end in ends {
        let target = moved(&assigned(Policy::Direct), 4);
        end(&target);
        let reasons = target.query().reasons;
        assert!(reasons.contains(Reasons::NOT_ASSIGNED));
        assert!(!reasons.contains(Reasons::MIGRATED));
        assert_eq!((target.routes.attached(), target.routes.routed()), (0, 0));
    }
}

#[test]
fn a_snapshot_after_which_the_guest_goes_on() {
    let source = assigned(Policy::Direct);
    source.mask(1);
    source.raise(1);
    source.service.save().unwrap();
    assert_eq!(source.query().reasons, Reasons::HOST_REVOKED);
    assert_eq!(source.routes.attached(), 0);
    source.raise(0);
    assert_eq!(source.interrupts(), NONE, "paused");
    source.service.resume().unwrap();
    assert_eq!(source.interrupts(), [0]);
    source.unmask(1);
    assert_eq!(source.interrupts(), [1]);
    assert!(source.is_direct(), "the table is the guest's again, without a call");
    source.service.resume().unwrap();
    assert!(source.is_direct(), "resuming what runs does nothing");
}

#[test]
fn the_guest_may_be_moved_to_a_host_that_allows_less() {
    let source = assigned(Policy::Direct);
    let options = Options { vectors: 4, isolated: false, ..Options::default() };
    let target = moved_to(&source, options);
    restore(&target);
    assert_eq!(target.query().reasons, Reasons::NO_ISOLATION);
    target.raise(0);
    assert_eq!(target.interrupts(), [0]);
}

#[test]
fn what_the_device_has_still_to_do() {
    let source = assigned(Policy::Direct);
    source.mask(3);
    source.raise(3);
    source.store(ROTATION, 2);
    source.store(DOORBELL, 5);
    let mut rotated = source.interrupts();
    // Nobody has fetched the first ones when the next came: KVM takes them for one.
    rotated.dedup();
    assert_eq!(rotated, [0, 1]);
    source.store(DOORBELL, 7);
    let target = stop(&source).start(Options { vectors: 4, ..Options::default() });
    assert_eq!((target.load(DOORBELL), target.load(DONE)), (7, 5));
    assert_eq!(target.device.raised(), 6);
    target.service.resume().unwrap();
    assert_eq!(target.interrupts(), [0, 1]);
    assert_eq!((target.load(DONE), target.device.raised()), (7, 8));
    assert_eq!(target.load(of_vector(EVENTS, 3)), 1);
    target.unmask(3);
    assert_eq!(target.interrupts(), [3]);
}

#[test]
fn an_event_between_restoring_and_going_on_waits() {
    let source = assigned(Policy::Direct);
    let target = stop(&source).start(Options { vectors: 4, ..Options::default() });
    target.raise(1);
    assert_eq!(target.interrupts(), NONE);
    assert_eq!(target.routes.attached(), 0);
    target.service.resume().unwrap();
    assert_eq!(target.interrupts(), [1]);
}

#[test]
fn a_message_that_is_under_way_when_the_guest_is_stopped() {
    let source = assigned(Policy::Direct);
    function::leave(2);
    let saved = stop(&source);
    function::arrive();
    assert_eq!(source.interrupts(), NONE, "it is at rest");
    let target = saved.start(Options { vectors: 4, ..Options::default() });
    target.service.resume().unwrap();
    assert_eq!(target.interrupts(), [2]);
}

/// On the first host the emulated table had nothing. The device's event waits until there is something.
#[test]
fn an_emulated_table_without_interrupts_gets_them_on_a_host_that_has_them() {
    let source = Guest::new(Options { vectors: 4, routes: 0, ..Options::default() });
    source.control(ENABLE);
    source.program(0, message(0));
    source.raise(0);
    assert_eq!(source.interrupts(), NONE);
    let target = moved(&source, 4);
    assert_eq!(target.interrupts(), [0]);
    target.raise(0);
    assert_eq!(target.interrupts(), [0]);
}

#[test]
fn a_guest_that_writes_beyond_the_pending_bits_can_be_moved() {
    let source = assigned(Policy::Direct);
    source.mask(3);
    source.raise(3);
    source.store(PENDING, !0x7);
    let target = stop(&source).start(Options { vectors: 4, ..Options::default() });
    target.service.resume().unwrap();
    assert_eq!(target.interrupts(), NONE);
    target.unmask(3);
    assert_eq!(target.interrupts(), [3]);
}
