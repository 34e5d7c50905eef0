//! Refusals that last over several operations, where `rollback` tries each alone; and a function whose table the host cannot reach.

#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation)]

mod fixture;

use fixture::faults::{self, Plan};
use fixture::function::set_up;
use fixture::*;
use pvmsi_hypervisor::{Policy, RestoreError, ServiceState};
use pvmsi_protocol::{CallError, CallId, FunctionId, Reasons, Sequence, TableMode, VectorSetup};
use std::sync::atomic::Ordering::SeqCst;

const DECODING_OFF: [u8; 2] = [0x04, 0];
const DECODING_ON: [u8; 2] = [0x06, 0];

/// What is refused until [`faults::end`].
fn refuse(names: &'static [&'static str]) {
    faults::plan(Plan::Only(1, names));
}

/// A function with the table trapped and MSI-X enabled.
fn trapped() -> Guest {
    let guest = Guest::new(Options { policy: Policy::Trapped, ..Options::default() });
    guest.control(ENABLE);
    guest
}

/// The same, its first vector programmed.
fn programmed() -> Guest {
    let guest = trapped();
    guest.program(0, message(0));
    guest
}

fn one_vector(guest: &Guest) -> bool {
    let setups = [VectorSetup { message: Some(message(0)), masked: false }];
    guest.configure_with(1, Sequence::START, &setups).is_ok()
}

/// The host does without: the function's own mask bits are an additional safety.
#[test]
fn a_function_whose_table_cannot_be_reached_works_trapped() {
    let unreachable = || Guest::new(Options { reachable: false, ..Options::default() });
    let guest = unreachable();
    guest.control(ENABLE);
    guest.program(0, message(0));
    guest.raise(0);
    assert_eq!(guest.interrupts(), [0]);
    let guest = unreachable();
    guest.control(ENABLE);
    assert_eq!(guest.configure(4).mode, TableMode::Trapped);
    guest.raise(0);
    guest.mask(1);
    guest.raise(1);
    assert_eq!(guest.interrupts(), [0]);
    guest.config_write(DEVICE_CONTROL, &[0, 0x80]);
    guest.unmask(1);
    guest.raise(0);
    assert_eq!(guest.interrupts(), [0, 1]);
    let before = guest.status().counters;
    guest.config_write(READ_ONLY, &[0]);
    assert_eq!(guest.status().counters, before, "nothing is owed");
}

#[test]
fn what_is_held_back_is_let_go_when_the_table_answers_again() {
    let guest = programmed();
    refuse(&["detach"]);
    guest.control(ENABLE | FUNCTION_MASK);
    guest.config_write(0x04, &DECODING_OFF);
    faults::end();
    guest.control(ENABLE);
    guest.config_write(0x04, &DECODING_ON);
    guest.raise(0);
    assert_eq!(guest.interrupts(), [0]);
}

#[test]
fn what_could_not_be_held_back_is_when_the_table_answers_again() {
    let guest = programmed();
    guest.config_write(0x04, &DECODING_OFF);
    refuse(&["detach"]);
    guest.control(ENABLE | FUNCTION_MASK);
    guest.config_write(0x04, &DECODING_ON);
    guest.raise(0);
    assert_eq!(guest.interrupts(), NONE);
    faults::end();
    guest.control(ENABLE);
    assert_eq!(guest.interrupts(), [0]);
}

#[test]
fn no_vector_is_attached_without_its_route() {
    for step in 1.. {
        let guest = Guest::with_vectors(8);
        guest.control(ENABLE);
        guest.configure(6);
        faults::plan(Plan::Only(step, &["interrupt set-up", "routing update"]));
        // The fixture looks at each attach.
        one_vector(&guest);
        if faults::end().is_empty() {
            assert!(step > 1);
            break;
        }
        guest.config_write(READ_ONLY, &[0]);
        let assigned = guest.status().assigned;
        (0..assigned).for_each(|vector| guest.raise(vector));
        assert_eq!(guest.interrupts(), (0..assigned).collect::<Vec<_>>(), "step {step}");
    }
}

#[test]
fn one_write_may_reset_and_stop_a_function_whose_event_stays_attached() {
    let guest = programmed();
    refuse(&["detach"]);
    let mut data = [0; 0x5a - POWER as usize];
    data[0] = 3;
    data[0x59 - POWER as usize] = 0x80;
    // The fixture looks at each access to the table.
    guest.config_write(POWER, &data);
    faults::end();
}

#[test]
fn a_vector_that_keeps_an_old_route_is_held_back_until_it_has_its_own() {
    let guest = programmed();
    refuse(&["detach", "routing update"]);
    guest.store(Guest::entry(0, 2), message(5).data);
    guest.raise(0);
    assert_eq!(guest.interrupts(), NONE);
    guest.config_write(READ_ONLY, &[0]);
    assert_eq!(guest.interrupts(), NONE, "nor by what makes up for it");
    faults::end();
    guest.config_write(READ_ONLY, &[0]);
    assert_eq!(guest.interrupts(), [5]);
}

#[test]
fn a_table_that_cannot_be_taken_back_is_saved_as_the_guest_has_it() {
    let source = Guest::with_vectors(4);
    source.control(ENABLE);
    source.configure(2);
    source.mask(1);
    refuse(&["take pages out"]);
    let state = source.service.save().unwrap();
    faults::end();
    let target = Guest::with_vectors(4);
    target.service.restore(&state).unwrap();
    target.service.resume().unwrap();
    assert!(target.masked(1) && !target.masked(0));
}

fn saved() -> ServiceState {
    let guest = Guest::with_vectors(8);
    guest.control(ENABLE);
    guest.program(0, message(0));
    guest.service.save().unwrap()
}

#[test]
fn a_guest_that_is_resumed_owes_nothing_from_its_restoring() {
    let state = saved();
    for step in 1.. {
        let guest = Guest::with_vectors(8);
        faults::plan(Plan::Nth(step));
        let restored = guest.service.restore(&state).is_ok();
        let failed = faults::end();
        if failed.is_empty() {
            break;
        }
        if restored {
            guest.service.resume().unwrap();
            guest.mask(0);
            guest.raise(0);
            assert_eq!(guest.interrupts(), NONE, "{failed:?}");
            guest.unmask(0);
            assert_eq!(guest.interrupts(), [0], "{failed:?}");
        }
    }
}

#[test]
fn a_restore_that_was_refused_leaves_its_routes_to_the_next() {
    let state = saved();
    for step in 1.. {
        let guest = Guest::new(Options { routes: 8, ..Options::default() });
        faults::plan(Plan::Only(step, &["interrupt set-up", "routing update"]));
        let restored = guest.service.restore(&state).is_ok();
        if faults::end().is_empty() {
            break;
        }
        if !restored {
            guest.service.restore(&state).unwrap();
        }
    }
}

/// Events and descriptors for all vectors are made for each attempt.
#[test]
fn a_set_up_that_is_refused_is_tried_once_in_an_operation() {
    let guest = trapped();
    refuse(&["interrupt set-up"]);
    guest.program(0, message(0));
    let tried = |act: &dyn Fn()| {
        let before = guest.status().counters.interrupt_setups;
        act();
        guest.status().counters.interrupt_setups - before
    };
    assert_eq!(tried(&|| guest.store(Guest::entry(1, 2), 100)), 1);
    assert_eq!(tried(&|| guest.config_write(READ_ONLY, &[0])), 1);
    faults::end();
    guest.raise(0);
    guest.config_write(READ_ONLY, &[0]);
    assert_eq!(guest.interrupts(), [0]);
}

#[test]
fn a_host_with_too_few_interrupts_grants_those_it_has() {
    let guest = Guest::new(Options { interrupts: 3, ..Options::default() });
    guest.control(ENABLE);
    let answer = guest.configure(8);
    assert_eq!((answer.granted, answer.mode), (3, TableMode::Direct));
    for vector in 0..3 {
        guest.raise(vector);
    }
    assert_eq!(guest.interrupts(), [0, 1, 2]);
    assert_eq!((guest.routes.attached(), guest.routes.routed()), (3, 3));
    assert_eq!(guest.configure(8).granted, 3, "again");
    guest.call(CallId::Release, &[]).unwrap();
    assert_eq!(guest.routes.left.load(SeqCst), Options::default().routes, "all come back");
}

#[test]
fn a_host_without_interrupts_has_no_resources() {
    let guest = Guest::new(Options { interrupts: 0, ..Options::default() });
    guest.control(ENABLE);
    let refused = guest.configure_with(4, Sequence::START, &[]);
    assert_eq!(refused.unwrap_err(), CallError::NoResources);
    assert_eq!(guest.routes.left.load(SeqCst), Options::default().routes);
    guest.program(0, message(0));
    assert_eq!(guest.routes.left.load(SeqCst), Options::default().routes);
}

#[test]
fn a_routing_table_with_too_little_room_is_a_short_grant() {
    let guest = trapped();
    guest.routes.room.store(5, SeqCst);
    assert_eq!(guest.configure(8).granted, 4, "half of them is what was tried next");
    (0..4).for_each(|vector| guest.raise(vector));
    assert_eq!(guest.interrupts(), [0, 1, 2, 3]);
    assert_eq!((guest.routes.routed(), guest.routes.attached()), (4, 4));
    assert_eq!(guest.routes.left.load(SeqCst), 3996, "the other four are free");
}

#[test]
fn a_routing_table_that_is_full_leaves_no_resources() {
    const BESIDE: FunctionId = FunctionId(16);
    let guest = trapped();
    guest.add_function(BESIDE).unwrap();
    guest.use_in_the_standard_way(BESIDE);
    for (word, value) in [(0, 0xfee0_0000_u32), (2, 0x40)] {
        let at = 0xd000_0000 + Guest::entry(0, word);
        assert!(guest.router.mmio_write(at, &value.to_le_bytes()));
    }
    assert_eq!(guest.routes.routed(), 1);
    guest.routes.room.store(1, SeqCst);
    let before = guest.snapshot();
    let setups = [VectorSetup { message: Some(message(0)), masked: false }; 8];
    let refused = guest.configure_with(8, Sequence::START, &setups).unwrap_err();
    assert_eq!(refused, CallError::NoResources);
    assert_eq!(guest.snapshot(), before);
    guest.routes.room.store(0, SeqCst);
    assert_eq!(guest.configure(8).granted, 8);
}

#[test]
fn a_first_message_without_room_for_its_route_leaves_no_resources() {
    let guest = trapped();
    let reserved = VectorSetup { message: None, masked: false };
    let first = VectorSetup { message: Some(message(0)), masked: false };
    guest.configure_with(2, Sequence::START, &[first, reserved]).unwrap();
    guest.routes.room.store(1, SeqCst);
    guest.raise(1);
    let before = guest.snapshot();
    assert_eq!(guest.update(&[(1, message(1))]), Err(CallError::NoResources));
    assert_eq!(guest.update(&[(0, message(7)), (1, message(1))]), Err(CallError::NoResources));
    assert_eq!(guest.snapshot(), before);
    guest.raise(0);
    assert_eq!(guest.interrupts(), [0], "the old message is in force");
    guest.update(&[(0, message(7))]).unwrap();
    guest.routes.room.store(0, SeqCst);
    guest.update(&[(1, message(1))]).unwrap();
    assert_eq!(guest.interrupts(), [1], "it has waited");
}

#[test]
fn an_emulated_table_has_the_interrupts_that_the_host_has() {
    let guest = Guest::new(Options { interrupts: 3, ..Options::default() });
    guest.control(ENABLE);
    for vector in 0..8 {
        guest.program(vector, message(vector));
    }
    for vector in 0..3 {
        guest.raise(vector);
    }
    assert_eq!(guest.interrupts(), [0, 1, 2]);
}

#[test]
fn a_table_is_handed_over_by_the_operation_that_pays_the_debt() {
    let guest = Guest::with_vectors(4);
    guest.control(ENABLE);
    guest.configure(4);
    refuse(&["detach"]);
    guest.control(ENABLE | FUNCTION_MASK);
    faults::end();
    guest.config_write(READ_ONLY, &[0]);
    guest.control(ENABLE);
    assert!(guest.is_direct());
}

/// The guest's stores count, so the mode must not say otherwise.
#[test]
fn a_table_that_cannot_be_hidden_again_is_direct() {
    let guest = Guest::with_vectors(4);
    guest.control(ENABLE);
    refuse(&["put the last page in", "take pages out"]);
    let answer = guest.configure(4);
    assert_eq!((answer.mode, answer.reasons), (TableMode::Direct, Reasons::NOT_MAPPABLE));
    guest.mask(0);
    guest.raise(0);
    assert_eq!(guest.interrupts(), NONE);
    faults::end();
    guest.config_write(READ_ONLY, &[0]);
    assert_eq!(guest.query().mode, TableMode::Trapped);
    assert_eq!(guest.view().table, TableMode::Trapped);
    guest.unmask(0);
    assert_eq!(guest.interrupts(), [0]);
    guest.configure(4);
    assert!(guest.is_direct());
}

/// Pages that an earlier refusal has left are not what this one could have put in.
#[test]
fn a_table_that_was_not_made_ready_is_not_direct_for_pages_that_are_left() {
    let guest = Guest::with_vectors(4);
    guest.control(ENABLE);
    guest.configure(2);
    refuse(&["take pages out"]);
    guest.call(CallId::Release, &[]).unwrap();
    refuse(&["take pages out", "table: mask bit write"]);
    let masked = [0, 1].map(|v| VectorSetup { message: Some(message(v)), masked: true });
    let answer = guest.configure_with(2, Sequence::START, &masked).unwrap();
    assert_eq!(answer.reasons, Reasons::NOT_MAPPABLE);
    refuse(&["take pages out"]);
    guest.config_write(READ_ONLY, &[0]);
    guest.raise(0);
    assert_eq!(guest.interrupts(), NONE, "it is masked");
    faults::end();
}

#[test]
fn what_a_short_host_has_granted_can_be_restored_on_another_such() {
    for grows in [true, false] {
        let short = Options { interrupts: 3, grows, ..Options::default() };
        let source = Guest::new(short);
        source.control(ENABLE);
        source.program(2, message(2));
        let target = Guest::new(short);
        target.service.restore(&source.service.save().unwrap()).unwrap();
        target.service.resume().unwrap();
        target.raise(2);
        assert_eq!(target.interrupts(), [2], "an emulated table");
        assert_eq!(source.configure(3).granted, 3);
        let state = source.service.save().unwrap();
        let target = Guest::new(short);
        target.service.restore(&state).unwrap();
        let shorter = Guest::new(Options { interrupts: 2, ..short });
        assert!(matches!(shorter.service.restore(&state), Err(RestoreError::SetUp { .. })));
    }
}

/// What it says then is a guess, which could be less than what is enough.
#[test]
fn a_host_that_does_not_know_how_many_interrupts_it_has_finds_what_is_enough() {
    for grows in [true, false] {
        let all = Options { vectors: 16, grows, guesses: true, ..Options::default() };
        let short = Options { interrupts: 12, ..all };
        let source = Guest::new(all);
        source.control(ENABLE);
        source.configure(10);
        let target = Guest::new(short);
        target.service.restore(&source.service.save().unwrap()).unwrap();
        let guest = Guest::new(short);
        guest.control(ENABLE);
        assert_eq!(guest.configure(10).granted, 10);
        assert_eq!(guest.configure(4).granted, 4);
        let guest = Guest::new(short);
        guest.control(ENABLE);
        assert_eq!(guest.configure(16).granted, 12, "half of them, and what can be added");
        let guest = Guest::new(Options { interrupts: 1, ..all });
        guest.control(ENABLE);
        assert_eq!(guest.configure(16).granted, 1);
        assert_eq!(guest.configure(16).granted, 1, "again");
    }
}

/// As an NVMe with 2048 vectors on a host of two processors.
#[test]
fn a_short_grant_is_close_and_costs_one_routing_update() {
    for interrupts in [1, 17, 391, 1100] {
        for guesses in [false, true] {
            let options = Options { vectors: 2048, interrupts, guesses, ..Options::default() };
            let guest = Guest::new(options);
            guest.control(ENABLE);
            let before = guest.status().counters;
            let granted = guest.configure(2048).granted;
            let spent = guest.status().counters.since(&before);
            let missed = interrupts - granted;
            let requests = if guesses { 13 } else { 2 };
            assert!(
                missed <= if guesses { interrupts / 16 } else { 0 },
                "{granted} of {interrupts}"
            );
            assert!(spent.interrupt_setups <= requests, "{interrupts}: {spent:?}");
            assert_eq!(spent.routing_updates, 1);
            assert_eq!((guest.routes.attached(), set_up()), (granted.into(), granted.into()));
            assert_eq!(guest.routes.left.load(SeqCst), options.routes - granted);
            assert_eq!(guest.status().without_interrupts, 2048 - granted);
            (0..granted).for_each(|vector| guest.raise(vector));
            assert_eq!(guest.interrupts(), (0..granted).collect::<Vec<_>>());
        }
    }
}

/// A guest that never calls is not told, so the operator is.
#[test]
fn vectors_of_an_emulated_table_that_have_no_interrupts_are_counted() {
    let guest = Guest::new(Options { interrupts: 3, ..Options::default() });
    assert_eq!(guest.status().without_interrupts, 0);
    guest.control(ENABLE);
    assert_eq!(guest.status().without_interrupts, 0, "none is used");
    guest.program(0, message(0));
    assert_eq!(guest.status().without_interrupts, 0, "it has one");
    guest.program(5, message(5));
    guest.program(7, message(7));
    assert_eq!((guest.status().without_interrupts, set_up()), (2, 3));
    guest.program(2, message(2));
    assert_eq!(guest.status().without_interrupts, 2);
    (0..8).for_each(|vector| guest.raise(vector));
    assert_eq!(guest.interrupts(), [0, 2]);
    guest.control(0);
    assert_eq!(guest.status().without_interrupts, 0);
    let none = Guest::new(Options { interrupts: 0, ..Options::default() });
    none.control(ENABLE);
    none.program(0, message(0));
    assert_eq!(none.status().without_interrupts, 1);
}

#[test]
fn a_configure_ends_although_an_emulated_table_has_no_interrupts() {
    for short in [
        Options { routes: 0, ..Options::default() },
        Options { interrupts: 0, ..Options::default() },
        Options { interrupts: 0, guesses: true, ..Options::default() },
    ] {
        let guest = Guest::new(Options { vectors_per_call: 4, ..short });
        guest.control(ENABLE);
        guest.program(0, message(0));
        let mut sequence = Sequence::START;
        let mut repetitions = 0;
        let error = loop {
            match guest.configure_with(8, sequence, &[]).unwrap_err() {
                CallError::Busy(busy) => sequence = busy.sequence,
                error => break error,
            }
            repetitions += 1;
            assert!(repetitions < 10);
        };
        assert_eq!(error, CallError::NoResources);
    }
}

/// All was ready when the last step failed, and the guest has the pages: what it writes there counts.
#[test]
fn an_unmask_in_pages_that_are_left_is_seen() {
    let guest = Guest::with_vectors(4);
    guest.control(ENABLE);
    guest.configure(2);
    refuse(&["take pages out"]);
    guest.call(CallId::Release, &[]).unwrap();
    refuse(&["take pages out", "attach"]);
    let masked = [0, 1].map(|v| VectorSetup { message: Some(message(v)), masked: true });
    guest.configure_with(2, Sequence::START, &masked).unwrap();
    guest.unmask(0);
    faults::end();
    guest.config_write(READ_ONLY, &[0]);
    guest.raise(0);
    assert_eq!(guest.interrupts(), [0]);
}
