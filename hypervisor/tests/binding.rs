//! arm64: an event keeps to the guest message that it was attached with, so naming a message attaches anew.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![allow(clippy::cast_possible_truncation)]

mod fixture;

use fixture::faults::{self, Plan};
use fixture::*;
use pvmsi_hypervisor::{Platform, Policy};
use pvmsi_protocol::{CallError, CallId, GuestMessage, Parameter, Sequence, VectorSetup};

const ITS_DOORBELL: u64 = 0x0809_0040;

fn event(id: u32) -> GuestMessage {
    GuestMessage { address: ITS_DOORBELL, data: id }
}

/// Four vectors, configured with the events 0 to 3 and these mask bits.
fn configured(policy: Policy, masked: [bool; 4]) -> Guest {
    let platform = Platform::Aarch64 { its_doorbell: ITS_DOORBELL };
    let guest = Guest::new(Options { vectors: 4, policy, platform, ..Options::default() });
    guest.control(ENABLE);
    guest.configure_with(4, Sequence::START, &setups(masked)).unwrap();
    guest
}

fn setups(masked: [bool; 4]) -> Vec<VectorSetup> {
    (0..).zip(masked).map(|(id, masked)| VectorSetup { message: Some(event(id)), masked }).collect()
}

/// The events that arrived since the last look.
fn arrived(guest: &Guest) -> Vec<u32> {
    while guest.device.run() {}
    let delivered = guest.routes.delivered();
    delivered.iter().for_each(|message| assert_eq!(message.address, ITS_DOORBELL));
    delivered.iter().map(|message| message.data).collect()
}

#[test]
fn a_message_that_is_named_again_attaches_its_vector_anew_and_no_other() {
    for policy in [Policy::Trapped, Policy::Direct] {
        for id in [7, 1] {
            let guest = configured(policy, [false; 4]);
            let direct = guest.is_direct();
            let before = guest.status().counters;
            guest.update(&[(1, event(id))]).unwrap();
            let spent = guest.status().counters.since(&before);
            assert_eq!((spent.attaches, spent.detaches), (1, 1), "{policy:?}, event {id}");
            assert_eq!(spent.routing_updates, u64::from(id != 1));
            assert_eq!(guest.is_direct(), direct);
            guest.raise(1);
            assert_eq!(arrived(&guest), [id]);
        }
    }
}

#[test]
fn a_first_message_attaches_without_a_switch() {
    let guest = configured(Policy::Direct, [false; 4]);
    let reserved = VectorSetup { message: None, masked: false };
    guest.configure_with(4, Sequence::START, &[reserved; 4]).unwrap();
    guest.raise(2);
    assert_eq!(arrived(&guest), [] as [u32; 0], "held: the guest has mapped nothing yet");
    let before = guest.status().counters;
    guest.update(&[(2, event(9))]).unwrap();
    let spent = guest.status().counters.since(&before);
    assert_eq!((spent.attaches, spent.detaches, spent.switches_to_trapped), (1, 0, 0));
    assert_eq!(arrived(&guest), [9], "once");
    assert!(guest.is_direct());
}

#[test]
fn configure_again_attaches_every_vector_anew() {
    let guest = configured(Policy::Direct, [false; 4]);
    let before = guest.status().counters;
    guest.configure_with(4, Sequence::START, &setups([false; 4])).unwrap();
    let spent = guest.status().counters.since(&before);
    assert_eq!((spent.attaches, spent.detaches), (4, 4));
    assert!(guest.is_direct());
}

#[test]
fn a_message_in_a_trapped_table_that_changes_while_unmasked_attaches_anew() {
    let platform = Platform::Aarch64 { its_doorbell: ITS_DOORBELL };
    let guest = Guest::new(Options { platform, ..Options::default() });
    guest.control(ENABLE);
    guest.program(3, event(3));
    let before = guest.status().counters;
    guest.store(Guest::entry(3, 2), 5);
    let spent = guest.status().counters.since(&before);
    assert_eq!((spent.attaches, spent.detaches), (1, 1));
    guest.raise(3);
    assert_eq!(arrived(&guest), [5]);
}

#[test]
fn events_of_masked_vectors_survive_another_vectors_update() {
    let guest = configured(Policy::Direct, [false; 4]);
    guest.mask(2);
    guest.raise(2);
    guest.update(&[(1, event(8))]).unwrap();
    assert_eq!(arrived(&guest), [] as [u32; 0], "masked");
    assert!(guest.pending(2));
    guest.unmask(2);
    assert_eq!(arrived(&guest), [2]);
    assert!(guest.is_direct(), "after the held event the table is direct again");
}

/// What the guest finds when it names a message that another vector has.
fn shared(vector: u16) -> CallError {
    CallError::vector(Parameter::SharedMessage, vector)
}

fn named(id: u32) -> VectorSetup {
    VectorSetup { message: Some(event(id)), masked: false }
}

#[test]
fn a_message_that_another_vector_has_is_refused() {
    for policy in [Policy::Trapped, Policy::Direct] {
        for masked in [false, true] {
            let guest = configured(policy, [masked; 4]);
            let before = guest.snapshot();
            let lists = [[0, 1, 2, 0], [7, 7, 8, 9], [3, 2, 2, 3]];
            for (ids, second) in lists.into_iter().zip([3, 1, 2]) {
                let again = guest.configure_with(4, Sequence::START, &ids.map(named));
                assert_eq!(again.err(), Some(shared(second)), "{ids:?}");
            }
            let update = |updates: &[(u16, u32)]| {
                let updates: Vec<_> = updates.iter().map(|&(v, id)| (v, event(id))).collect();
                guest.update(&updates)
            };
            assert_eq!(update(&[(1, 3)]), Err(shared(1)), "vector 3 keeps it");
            assert_eq!(update(&[(0, 1), (1, 2)]), Err(shared(1)), "vector 2 keeps it");
            assert_eq!(update(&[(2, 9), (0, 9)]), Err(shared(2)), "in one call");
            assert_eq!(guest.snapshot(), before);
            // What holds after the call counts.
            assert_eq!(update(&[(0, 1), (1, 0)]), Ok(()), "two swap theirs");
            assert_eq!(update(&[(0, 2), (2, 3), (3, 4)]), Ok(()), "each takes the next one's");
            assert_eq!(update(&[(1, 1)]), Ok(()), "free by now");
            (0..4).for_each(|vector| guest.unmask(vector));
            (0..4).for_each(|vector| guest.raise(vector));
            assert_eq!(sorted(&guest), [1, 2, 3, 4]);
        }
    }
}

#[test]
fn on_x86_vectors_may_share_a_message() {
    let guest = Guest::with_vectors(4);
    guest.control(ENABLE);
    let setup = VectorSetup { message: Some(message(5)), masked: false };
    guest.configure_with(2, Sequence::START, &[setup; 2]).unwrap();
    guest.update(&[(0, message(6)), (1, message(6))]).unwrap();
    (0..2).for_each(|vector| guest.raise(vector));
    assert_eq!(guest.interrupts(), [6, 6]);
}

fn sorted(guest: &Guest) -> Vec<u32> {
    let mut seen = arrived(guest);
    seen.sort_unstable();
    seen
}

/// H-624: KVM is attached to one of them at a time.
#[test]
fn an_event_in_two_entries_of_the_emulated_table_is_one_vectors_until_it_parts_with_it() {
    // How the first parts with it, and whether that is a mask bit, so that it takes it back.
    type Part = (fn(&Guest, u16), bool);
    let parts: [Part; 2] =
        [(Guest::mask, true), (|guest, vector| guest.program(vector, event(9)), false)];
    for (first, second) in [(0, 1), (1, 0)] {
        for (part, masks) in parts {
            let platform = Platform::Aarch64 { its_doorbell: ITS_DOORBELL };
            let guest = Guest::new(Options { vectors: 4, platform, ..Options::default() });
            guest.control(ENABLE);
            guest.program(first, event(5));
            guest.program(second, event(5));
            guest.program(3, event(3));
            assert_eq!(guest.routes.attached(), 2);
            for vector in [first, second, second, 3] {
                guest.raise(vector);
            }
            assert_eq!(sorted(&guest), [3, 5], "one waits");
            part(&guest, first);
            assert_eq!(arrived(&guest), [5], "once");
            guest.raise(second);
            assert_eq!(arrived(&guest), [5]);
            if masks {
                guest.unmask(first);
                guest.raise(first);
                assert_eq!(arrived(&guest), [] as [u32; 0], "now the first one waits");
                guest.mask(second);
                assert_eq!(arrived(&guest), [5]);
            }
            guest.raise(3);
            assert_eq!(arrived(&guest), [3], "others have nothing to do with it");
        }
    }
}

/// A `configure` in several calls prepares vectors with events that others still have.
#[test]
fn what_is_attached_in_advance_makes_way_for_what_fires_now() {
    const VECTORS: u16 = 12;
    let platform = Platform::Aarch64 { its_doorbell: ITS_DOORBELL };
    let options = Options { vectors: VECTORS, platform, vectors_per_call: 4, ..Options::default() };
    let guest = Guest::new(Options { policy: Policy::Trapped, ..options });
    guest.control(ENABLE);
    guest.configure_with(2, Sequence::START, &[named(0), named(11)]).unwrap();
    // Vector 1 is to part with event 11, for the last one.
    let setups: Vec<_> = (0..u32::from(VECTORS)).map(named).collect();
    let mut sequence = Sequence::START;
    let mut calls = 0;
    let granted = loop {
        match guest.configure_with(VECTORS, sequence, &setups) {
            Ok(configured) => break configured.granted,
            Err(CallError::Busy(busy)) => sequence = busy.sequence,
            Err(error) => panic!("{error}"),
        }
        calls += 1;
        assert!(calls < 20, "it comes to an end");
        guest.raise(1);
        assert_eq!(arrived(&guest), [11], "the old assignment stands");
        if calls == 3 {
            // Attached in advance by now, to a vector that nobody has yet.
            guest.update(&[(0, event(3))]).unwrap();
            guest.raise(0);
            assert_eq!(arrived(&guest), [3]);
        }
    };
    assert_eq!(granted, VECTORS);
    (0..VECTORS).for_each(|vector| guest.raise(vector));
    assert_eq!(sorted(&guest), (0..u32::from(VECTORS)).collect::<Vec<_>>());
}

/// A call binds each vector that it names once, however often its message is named.
#[test]
fn a_call_binds_each_vector_once() {
    for policy in [Policy::Trapped, Policy::Direct] {
        let guest = configured(policy, [false; 4]);
        for turn in 0..50 {
            let before = guest.status().counters;
            let updates: Vec<_> =
                (0..4_u16).map(|v| (v, event((u32::from(v) + turn) % 4))).collect();
            guest.update(&updates).unwrap();
            let spent = guest.status().counters.since(&before);
            assert_eq!((spent.attaches, spent.detaches), (4, 4), "{policy:?}");
            assert!(spent.routing_updates <= 1);
        }
    }
}

/// A guest can have each vector bound anew by a call, and once more by one that fails, and no more.
#[test]
fn no_call_binds_a_vector_more_than_twice() {
    type Act = fn(&Guest);
    let calls: [(&str, Act); 5] = [
        ("update", |guest| {
            let updates: Vec<_> = (0..4).map(|v| (v, event((u32::from(v) + 1) % 4))).collect();
            let _ = guest.update(&updates);
        }),
        ("the same vector, again and again", |guest| {
            let _ = guest.update(&[(1, event(9)); 300]);
        }),
        ("configure", |guest| {
            let setups = [3, 2, 1, 0].map(named);
            let _ = guest.configure_with(4, Sequence::START, &setups);
        }),
        ("restore", |guest| drop(guest.call(CallId::Restore, &[]))),
        ("release", |guest| drop(guest.call(CallId::Release, &[]))),
    ];
    for (name, call) in calls {
        for policy in [Policy::Trapped, Policy::Direct] {
            for masked in [false, true] {
                for nth in 1.. {
                    let guest = configured(policy, [masked, false, false, false]);
                    let before = guest.status().counters;
                    faults::plan(Plan::Nth(nth));
                    call(&guest);
                    let failed = faults::end();
                    let spent = guest.status().counters.since(&before);
                    let most = if failed.is_empty() { 4 } else { 8 };
                    assert!(
                        spent.attaches <= most && spent.detaches <= most,
                        "{name}, {policy:?}, {failed:?}: {spent:?}"
                    );
                    if failed.is_empty() {
                        break;
                    }
                }
            }
        }
    }
}
