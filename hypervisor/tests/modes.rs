//! The switch: who answers the table, and that no event is lost, doubled or let through while masked.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![allow(clippy::cast_possible_truncation)]

mod fixture;

use std::sync::atomic::Ordering::SeqCst;

use fixture::faults::{self, Plan};
use fixture::*;
use pvmsi_hypervisor::{FunctionPolicy, Policy};
use pvmsi_protocol::{CallId, Reasons, Sequence, TableMode, VectorIndex, VectorSetup};
use vm_memory::VolatileMemory;

#[test]
fn a_guest_that_never_calls_is_served_by_the_trapped_table() {
    for policy in [Policy::Off, Policy::Trapped, Policy::Direct] {
        let guest = Guest::new(Options { policy, ..Options::default() });
        guest.control(ENABLE);
        guest.program(3, message(3));
        guest.raise(3);
        assert_eq!(guest.interrupts(), [3], "{policy:?}");
        guest.mask(3);
        guest.raise(3);
        assert_eq!(guest.interrupts(), NONE, "masked");
        assert!(guest.pending(3));
        guest.unmask(3);
        assert_eq!(guest.interrupts(), [3], "delivered once when it is unmasked");
        assert!(!guest.pending(3));
        assert!(!guest.is_direct());
        assert_eq!(guest.load(Guest::entry(3, 2)), message(3).data);
    }
}

#[test]
fn configure_costs_one_routing_update_and_one_interrupt_set_up_whatever_the_count() {
    for count in [1, 64, 2048] {
        let guest = Guest::with_vectors(count);
        guest.control(ENABLE);
        let before = guest.status().counters;
        let answer = guest.configure(count);
        let spent = guest.status().counters.since(&before);
        assert_eq!(answer.granted, count);
        assert_eq!((spent.routing_updates, spent.interrupt_setups), (1, 1), "{count} vectors");
        assert_eq!((answer.mode, answer.reasons), (TableMode::Direct, Reasons::empty()));
        assert!(guest.is_direct());
    }
}

#[test]
fn masking_in_direct_mode_costs_nothing_and_holds_events() {
    let guest = Guest::with_vectors(8);
    guest.control(ENABLE);
    guest.configure(8);
    let before = guest.status().counters;
    guest.mask(5);
    guest.raise(5);
    assert_eq!(guest.interrupts(), NONE);
    assert!(guest.pending(5), "the function keeps it");
    guest.unmask(5);
    assert_eq!(guest.interrupts(), [5]);
    assert_eq!(guest.status().counters, before);
}

#[test]
fn a_pending_event_is_reported_once_at_the_switch_and_never_fires_while_masked() {
    let guest = Guest::with_vectors(4);
    guest.control(ENABLE);
    for vector in 0..4 {
        guest.program(vector, message(vector));
        guest.mask(vector);
    }
    guest.raise(1);
    guest.raise(2);
    let setup = |vector, masked| VectorSetup { message: Some(message(vector)), masked };
    let setups = [setup(0, true), setup(1, true), setup(2, false), setup(3, true)];
    let answer = guest.configure_with(4, Sequence::START, &setups).unwrap();
    assert_eq!(answer.pending(), [1]);
    assert_eq!(guest.interrupts(), [2], "unmasked by the call: it fires");
    guest.unmask(1);
    assert_eq!(guest.interrupts(), NONE, "it was reported, so it does not come again");
    let again = guest.configure_with(4, Sequence::START, &setups).unwrap();
    assert_eq!(again.pending(), [] as [usize; 0]);
}

#[test]
fn events_cross_both_switches_exactly_once() {
    let guest = Guest::with_vectors(4);
    guest.control(ENABLE);
    guest.configure(4);
    guest.mask(0);
    guest.raise(0);
    guest.raise(1);
    guest.function.revoke().unwrap();
    assert!(!guest.is_direct());
    assert_eq!(guest.query().reasons, Reasons::HOST_REVOKED);
    assert_eq!(guest.interrupts(), [1]);
    assert!(guest.masked(0), "the guest's own mask bits stay");
    assert!(guest.pending(0));
    guest.raise(0);
    assert_eq!(guest.interrupts(), NONE);
    guest.unmask(0);
    assert_eq!(guest.interrupts(), [0], "two events of one vector may merge");
    guest.mask(2);
    guest.function.allow().unwrap();
    assert!(guest.is_direct());
    assert!(guest.masked(2) && !guest.masked(0));
    guest.raise(2);
    assert_eq!(guest.interrupts(), NONE);
    guest.unmask(2);
    assert_eq!(guest.interrupts(), [2]);
}

#[test]
fn the_table_stays_trapped_while_an_event_waits_for_a_masked_vector() {
    let guest = Guest::with_vectors(4);
    guest.control(ENABLE);
    guest.configure(4);
    guest.function.revoke().unwrap();
    guest.mask(3);
    guest.raise(3);
    assert_eq!(guest.interrupts(), NONE);
    guest.function.allow().unwrap();
    assert_eq!(guest.query().reasons, Reasons::HELD_EVENT);
    assert!(!guest.is_direct());
    guest.unmask(3);
    assert_eq!(guest.interrupts(), [3]);
    assert!(guest.is_direct(), "direct again once it is delivered");
}

#[test]
fn a_held_event_is_a_reason_no_longer_than_the_mask_bit_alone_holds_it() {
    let guest = Guest::with_vectors(4);
    guest.control(ENABLE);
    guest.configure(4);
    guest.function.revoke().unwrap();
    guest.mask(3);
    guest.raise(3);
    guest.function.allow().unwrap();
    guest.function.revoke().unwrap();
    assert_eq!(guest.query().reasons, Reasons::HOST_REVOKED | Reasons::HELD_EVENT);
    guest.control(ENABLE | FUNCTION_MASK);
    assert_eq!(guest.query().reasons, Reasons::HOST_REVOKED, "held for Function Mask now");
    guest.function.allow().unwrap();
    assert!(guest.is_direct());
    guest.control(ENABLE);
    assert_eq!(guest.interrupts(), NONE);
    assert_eq!(guest.query().reasons, Reasons::HELD_EVENT, "and for its mask bit again");
    guest.unmask(3);
    assert_eq!(guest.interrupts(), [3]);
    assert!(guest.is_direct());
}

#[test]
fn an_event_that_waits_for_function_mask_fires_by_its_clearing_if_the_vector_was_unmasked_directly()
{
    let guest = Guest::with_vectors(4);
    guest.control(ENABLE | FUNCTION_MASK);
    guest.configure(4);
    guest.function.revoke().unwrap();
    guest.mask(3);
    guest.raise(3);
    guest.function.allow().unwrap();
    assert!(guest.is_direct());
    guest.unmask(3);
    assert_eq!(guest.interrupts(), NONE);
    guest.control(ENABLE);
    assert_eq!(guest.interrupts(), [3]);
    assert!(guest.is_direct());
}

#[test]
fn a_reset_before_the_host_could_read_its_table_messages_loses_none() {
    let guest = Guest::with_vectors(4);
    guest.control(ENABLE);
    guest.config_write(0x04, &[0, 0]);
    assert!(guest.configure(4).vectors.iter().all(|vector| vector.table_message.is_none()));
    guest.config_write(DEVICE_CONTROL, &[0x00, 0x80]);
    guest.config_write(0x04, &[0x06, 0x00]);
    assert!(guest.is_direct());
    for vector in 0..4 {
        guest.raise(vector);
    }
    assert_eq!(guest.interrupts(), [0, 1, 2, 3]);
}

#[test]
fn table_contents_are_the_same_in_both_modes() {
    let guest = Guest::with_vectors(4);
    guest.control(ENABLE);
    let answer = guest.configure(4);
    guest.mask(1);
    let contents = || (0..16).map(|word| guest.load(TABLE + word * 4)).collect::<Vec<_>>();
    let direct = contents();
    guest.function.revoke().unwrap();
    assert_eq!(contents(), direct);
    let table = answer.vectors[2].table_message.unwrap();
    assert_eq!(guest.load(Guest::entry(2, 0)), table.address as u32);
    assert_eq!(guest.load(Guest::entry(2, 2)), table.data);
    guest.store(Guest::entry(2, 0), 0xfee0_0000);
    guest.store(Guest::entry(2, 2), 0x55);
    assert_eq!(contents(), direct, "address and data of an assigned vector are the host's");
}

#[test]
fn messages_may_come_later() {
    let guest = Guest::with_vectors(4);
    guest.control(ENABLE | FUNCTION_MASK);
    let answer = guest.configure_with(4, Sequence::START, &[]).unwrap();
    assert_eq!((answer.granted, answer.mode), (4, TableMode::Direct));
    guest.control(ENABLE);
    guest.unmask(0);
    guest.raise(0);
    assert_eq!(guest.interrupts(), NONE, "held until a message is known");
    guest.update(&[(0, message(7))]).unwrap();
    assert_eq!(guest.interrupts(), [7]);
    guest.raise(0);
    guest.update(&[(0, message(6))]).unwrap();
    guest.raise(0);
    assert_eq!(guest.interrupts(), [6, 7], "each to the message of its time");
    let routed = guest.status().counters;
    guest.update(&[(0, message(0)), (1, message(1)), (2, message(2))]).unwrap();
    let spent = guest.status().counters.since(&routed);
    assert_eq!((spent.routing_updates, spent.interrupt_setups), (1, 0));
}

#[test]
fn an_event_that_waits_for_a_message_does_not_fire_when_the_vector_is_masked_meanwhile() {
    let guest = Guest::with_vectors(2);
    guest.control(ENABLE);
    let setup = VectorSetup { message: None, masked: false };
    guest.configure_with(2, Sequence::START, &[setup, setup]).unwrap();
    guest.raise(0);
    guest.mask(0);
    guest.update(&[(0, message(0))]).unwrap();
    assert_eq!(guest.interrupts(), NONE, "masked");
    assert!(guest.masked(0) && guest.pending(0));
    guest.unmask(0);
    assert_eq!(guest.interrupts(), [0]);
    assert!(guest.is_direct());
}

#[test]
fn function_mask_holds_delivery_and_loses_nothing() {
    let guest = Guest::with_vectors(4);
    guest.control(ENABLE);
    guest.configure(4);
    guest.control(ENABLE | FUNCTION_MASK);
    assert!(guest.is_direct(), "the table is direct, though Function Mask is set");
    guest.raise(0);
    guest.raise(1);
    guest.mask(1);
    assert_eq!(guest.interrupts(), NONE);
    guest.control(ENABLE);
    assert_eq!(guest.interrupts(), [0], "vector 1 was masked meanwhile");
    guest.unmask(1);
    assert_eq!(guest.interrupts(), [1]);
    assert!(guest.is_direct());
}

#[test]
fn a_short_grant_assigns_the_first_vectors() {
    let guest = Guest::new(Options { vectors: 16, routes: 5, ..Options::default() });
    guest.control(ENABLE);
    let answer = guest.configure(16);
    assert_eq!((answer.granted, answer.vectors.len()), (5, 5));
    let states = guest.query_vectors(0, 16).unwrap();
    assert!(states[..5].iter().all(|state| state.assigned));
    assert!(states[5..].iter().all(|state| !state.assigned && state.masked));
    let policy = FunctionPolicy { vectors: Some(3), ..FunctionPolicy::default() };
    let guest = Guest::new(Options { function_policy: policy, ..Options::default() });
    assert_eq!(guest.query().msix_vectors, 3);
    assert_eq!(guest.configure(8).granted, 3);
}

#[test]
fn configure_may_repeat_with_more_and_with_fewer_vectors() {
    let guest = Guest::with_vectors(8);
    guest.control(ENABLE);
    for count in [2, 8, 3, 8] {
        assert_eq!(guest.configure(count).granted, count);
        assert_eq!(guest.routes.routed(), usize::from(count));
        for vector in 0..count {
            guest.raise(vector);
        }
        assert_eq!(guest.interrupts(), (0..count).collect::<Vec<_>>());
    }
    guest.call(CallId::Release, &[]).unwrap();
    assert_eq!((guest.routes.routed(), guest.routes.attached()), (0, 0));
}

#[test]
fn a_busy_configure_continues_by_its_sequence_number() {
    let guest = Guest::new(Options { vectors: 10, vectors_per_call: 4, ..Options::default() });
    guest.control(ENABLE);
    let mut sequence = Sequence::START;
    let mut calls = 0;
    let answer = loop {
        calls += 1;
        assert!(calls < 10, "no progress");
        match guest.configure_with(10, sequence, &[]) {
            Err(pvmsi_protocol::CallError::Busy(busy)) => {
                assert_eq!(guest.status().assigned, 0, "nothing has changed yet");
                let other = guest.configure_with(9, busy.sequence, &[]).unwrap_err();
                assert!(
                    matches!(other, pvmsi_protocol::CallError::Parameter(p) if p.parameter == pvmsi_protocol::Parameter::Sequence)
                );
                sequence = busy.sequence;
            }
            other => break other.unwrap(),
        }
    };
    assert_eq!((calls, answer.granted), (4, 10), "4, 4, 2, and the one that finds them ready");
    guest.call(CallId::Release, &[]).unwrap();
    let first = guest.configure_with(10, Sequence::START, &[]);
    assert!(matches!(first, Err(pvmsi_protocol::CallError::Busy(_))));
    guest.call(CallId::Release, &[]).unwrap();
    let stale = guest.configure_with(10, Sequence(1), &[]).unwrap_err();
    assert!(matches!(stale, pvmsi_protocol::CallError::Parameter(_)), "release aborts it");
}

#[test]
fn every_reason_keeps_the_table_trapped_and_the_guest_working() {
    let works_trapped = |options: Options, reason: Reasons| {
        let guest = Guest::new(options);
        guest.control(ENABLE);
        let answer = guest.configure(4);
        assert_eq!((answer.mode, answer.reasons), (TableMode::Trapped, reason));
        guest.raise(0);
        assert_eq!(guest.interrupts(), [0]);
        guest.mask(0);
        guest.raise(0);
        assert_eq!(guest.interrupts(), NONE);
        guest.unmask(0);
        assert_eq!(guest.interrupts(), [0]);
        assert!(guest.window.shown().iter().all(|view| view.table == TableMode::Trapped));
    };
    works_trapped(Options { policy: Policy::Trapped, ..Options::default() }, Reasons::POLICY);
    works_trapped(Options { isolated: false, ..Options::default() }, Reasons::NO_ISOLATION);
    let allowed = FunctionPolicy { allow_unisolated: true, ..FunctionPolicy::default() };
    let guest =
        Guest::new(Options { isolated: false, function_policy: allowed, ..Options::default() });
    guest.control(ENABLE);
    assert_eq!(guest.configure(4).mode, TableMode::Direct, "the operator overrides by name");

    let guest = Guest::with_vectors(4);
    assert_eq!(guest.configure(4).reasons, Reasons::MSIX_DISABLED);
    guest.raise(0);
    assert_eq!(guest.interrupts(), NONE, "not before MSI-X is enabled");
    guest.control(ENABLE);
    assert_eq!(guest.interrupts(), [0]);
    assert!(guest.is_direct());
}

#[test]
fn a_mapping_that_fails_leaves_the_vectors_assigned_and_the_table_trapped() {
    let guest = Guest::with_vectors(4);
    guest.control(ENABLE);
    guest.window.fails.store(true, SeqCst);
    let answer = guest.configure(4);
    assert_eq!((answer.mode, answer.reasons), (TableMode::Trapped, Reasons::NOT_MAPPABLE));
    guest.mask(0);
    guest.raise(0);
    assert_eq!(guest.interrupts(), NONE);
    guest.unmask(0);
    assert_eq!(guest.interrupts(), [0]);
}

#[test]
fn a_mapping_that_failed_is_tried_again_by_the_next_configure() {
    let guest = Guest::with_vectors(4);
    guest.control(ENABLE);
    guest.window.fails.store(true, SeqCst);
    assert_eq!(guest.configure(4).reasons, Reasons::NOT_MAPPABLE);
    guest.window.fails.store(false, SeqCst);
    assert_eq!(guest.configure(4).mode, TableMode::Direct);
}

#[test]
fn a_message_that_is_under_way_when_the_table_is_handed_over_waits_for_its_mask_bit() {
    let guest = Guest::with_vectors(4);
    guest.control(ENABLE);
    guest.configure(4);
    guest.function.revoke().unwrap();
    guest.mask(1);
    function::leave(1);
    guest.function.allow().unwrap();
    function::arrive();
    assert_eq!(guest.interrupts(), NONE);
    guest.unmask(1);
    assert_eq!(guest.interrupts(), [1]);
}

/// KVM raises an event twice that is signalled at the moment of its attach: a trapped table keeps it from coming then.
#[test]
fn no_event_of_a_trapped_table_comes_during_its_attach() {
    let mut attaches = 0;
    for at in 1..20 {
        let guest = Guest::new(Options { policy: Policy::Trapped, ..Options::default() });
        guest.control(ENABLE);
        guest.configure(4);
        guest.mask(1);
        guest.routes.doubles.store(true, SeqCst);
        faults::plan(Plan::Never);
        let device = guest.device.clone();
        faults::meanwhile(at, move || {
            device.raise(VectorIndex(1));
        });
        guest.unmask(1);
        let raised = !faults::forget_meanwhile();
        faults::end();
        attaches += u32::from(raised);
        assert_eq!(guest.interrupts(), if raised { vec![1] } else { vec![] }, "{at}");
    }
    assert!(attaches > 0);
}

/// Without interrupt remapping the host's kernel writes another message when it moves an interrupt to another processor.
#[test]
fn a_message_that_the_host_has_changed_by_itself_is_followed() {
    type Step = (&'static str, fn(&Guest));

    let steps: [Step; 2] = [
        ("restore", |guest| drop(guest.call(CallId::Restore, &[]).unwrap())),
        ("configure", |guest| drop(guest.configure(4))),
    ];
    let resets: [Step; 2] = [
        ("function level reset", |guest| guest.config_write(DEVICE_CONTROL, &[0, 0x80])),
        ("D3hot and back", |guest| {
            guest.config_write(POWER, &[3]);
            guest.config_write(POWER, &[0]);
        }),
    ];
    let place = Guest::entry(1, 2) as usize;
    let data = |guest: &Guest| guest.bar.get_ref::<u32>(place).unwrap().load();
    let host_writes = |guest: &Guest| guest.bar.get_ref::<u32>(place).unwrap().store(77);
    let message = |guest: &Guest| guest.query_vectors(1, 1).unwrap()[0].table_message.unwrap();
    let guest = || {
        let guest = Guest::new(Options { isolated: false, ..Options::default() });
        guest.control(ENABLE);
        guest.configure(4);
        guest
    };
    for (name, step) in steps {
        let guest = guest();
        host_writes(&guest);
        step(&guest);
        assert_eq!(data(&guest), 77, "{name}");
        assert_eq!(message(&guest).data, 77, "{name}: and the guest is told");
        for (name, reset) in resets {
            reset(&guest);
            assert_eq!(data(&guest), 77, "{name} loses the table, which is written again");
        }
    }
    // H-504, even by a call that fails.
    let failing = guest();
    let generation = failing.query().generation;
    host_writes(&failing);
    faults::plan(Plan::Only(1, &["interrupt set-up"]));
    failing.configure_with(5, Sequence::START, &[]).unwrap_err();
    faults::end();
    assert_eq!((data(&failing), message(&failing).data), (77, 77));
    assert_ne!(failing.query().generation, generation);
    // A table that the operator has let the guest have says nothing.
    let allowed = FunctionPolicy { allow_unisolated: true, ..FunctionPolicy::default() };
    let scribbled =
        Guest::new(Options { isolated: false, function_policy: allowed, ..Options::default() });
    scribbled.control(ENABLE);
    scribbled.configure(4);
    let right = data(&scribbled);
    host_writes(&scribbled);
    scribbled.function.revoke().unwrap();
    assert_eq!(data(&scribbled), right);
    // Where the host remaps interrupts, what stands in the table is wrong.
    let guest = Guest::new(Options { policy: Policy::Trapped, ..Options::default() });
    guest.control(ENABLE);
    guest.configure(4);
    let right = data(&guest);
    host_writes(&guest);
    guest.call(CallId::Restore, &[]).unwrap();
    assert_eq!(data(&guest), right);
}

/// In D3hot the host learns no messages, and what it has set up it sets up anew.
#[test]
fn messages_that_may_have_changed_change_the_generation() {
    let guest = Guest::new(Options { policy: Policy::Trapped, ..Options::default() });
    guest.control(ENABLE);
    guest.configure(2);
    guest.config_write(POWER, &[3]);
    guest.configure(4);
    let generation = guest.query().generation;
    faults::plan(Plan::Only(2, &["interrupt set-up"]));
    guest.config_write(POWER, &[0]);
    assert_eq!(faults::end(), ["interrupt set-up"]);
    assert_ne!(guest.query().generation, generation);
    guest.config_write(READ_ONLY, &[0]);
    (0..4).for_each(|vector| guest.raise(vector));
    assert_eq!(guest.interrupts(), [0, 1, 2, 3]);
}
