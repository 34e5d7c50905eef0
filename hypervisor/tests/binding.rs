//! arm64: an event keeps to the guest message that it was attached with, so naming a message attaches anew.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![allow(clippy::cast_possible_truncation)]

mod fixture;

use fixture::*;
use pvmsi_hypervisor::{Platform, Policy};
use pvmsi_protocol::{GuestMessage, Sequence, VectorSetup};

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
