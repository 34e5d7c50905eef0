//! The host's kernel moves the function's interrupts to other processors, and writes mask bits meanwhile.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![allow(clippy::cast_possible_truncation)]

mod fixture;

use fixture::faults::{self, Plan};
use fixture::function::{Move, stop_moving};
use fixture::*;
use pvmsi_protocol::{CallId, Reasons, Sequence, TableMode, VectorSetup};
use vm_memory::VolatileMemory;

/// A vector each that the guest has masked, and one that the kernel masks.
const GUESTS: u16 = 2;
const KERNELS: u16 = 1;

/// A guest with a direct table of four vectors, of which it has masked one, while the kernel moves another.
fn while_one_is_moved() -> Guest {
    let guest = Guest::with_vectors(4);
    guest.control(ENABLE);
    assert_eq!(guest.configure(4).mode, TableMode::Direct);
    guest.mask(GUESTS);
    guest.mask(KERNELS);
    Move::once(KERNELS).begin();
    guest
}

/// Each event arrives once, as the guest has it.
fn check(guest: &Guest, what: &str) {
    assert!(guest.masked(GUESTS) && !guest.masked(KERNELS), "{what}");
    guest.raise(KERNELS);
    guest.raise(GUESTS);
    assert_eq!(guest.interrupts(), [KERNELS], "{what}");
    guest.unmask(GUESTS);
    assert_eq!(guest.interrupts(), [GUESTS], "{what}");
}

#[test]
fn a_bit_that_the_kernel_has_set_for_a_moment_is_not_the_guests() {
    let guest = while_one_is_moved();
    guest.function.revoke().unwrap();
    assert!(!guest.is_direct());
    check(&guest, "trapped");
    guest.mask(GUESTS);
    guest.function.allow().unwrap();
    assert!(guest.is_direct());
    check(&guest, "direct again");
}

#[test]
fn a_call_does_not_believe_it_either_and_fails_as_it_did() {
    let setup = |vector| VectorSetup { message: Some(message(vector)), masked: vector == GUESTS };
    let setups: Vec<_> = (0..4).map(setup).collect();
    let mut failed = 0;
    for nth in 1.. {
        let guest = while_one_is_moved();
        faults::plan(Plan::Nth(nth));
        let answer = guest.configure_with(4, Sequence::START, &setups);
        let points = faults::end();
        failed += u32::from(answer.is_err());
        stop_moving();
        // Debts are paid.
        guest.config_write(READ_ONLY, &[0]);
        check(&guest, &format!("{points:?}"));
        if points.is_empty() {
            assert_eq!(answer.unwrap().mode, TableMode::Direct);
            break;
        }
    }
    assert!(failed > 0);
}

#[test]
fn a_mask_bit_that_the_kernel_clears_is_set_again_before_the_guest_has_the_table() {
    for times in 1..4 {
        let guest = Guest::with_vectors(4);
        guest.control(ENABLE);
        Move { times, ..Move::once(GUESTS) }.begin();
        let setup =
            |vector| VectorSetup { message: Some(message(vector)), masked: vector == GUESTS };
        let setups: Vec<_> = (0..4).map(setup).collect();
        let answer = guest.configure_with(4, Sequence::START, &setups).unwrap();
        assert_eq!(answer.mode, TableMode::Direct, "{times}");
        check(&guest, "direct");
    }
}

/// Nobody moves interrupts as often as that; and nobody waits for it.
#[test]
fn a_table_whose_mask_bits_do_not_stay_is_not_given() {
    let guest = Guest::with_vectors(4);
    guest.control(ENABLE);
    Move { times: 1000, ..Move::once(GUESTS) }.begin();
    let setup = |vector| VectorSetup { message: Some(message(vector)), masked: vector == GUESTS };
    let setups: Vec<_> = (0..4).map(setup).collect();
    let answer = guest.configure_with(4, Sequence::START, &setups).unwrap();
    assert_eq!((answer.mode, answer.reasons), (TableMode::Trapped, Reasons::NOT_MAPPABLE));
    stop_moving();
    check(&guest, "trapped");
    guest.function.allow().unwrap();
    assert!(guest.is_direct(), "when it is tried again");
}

/// Without interrupt remapping the kernel also writes another message, before it unmasks the entry.
#[test]
fn an_entry_that_the_kernel_is_about_to_move_is_not_one_that_a_reset_has_masked() {
    let data =
        |guest: &Guest| guest.bar.get_ref::<u32>(Guest::entry(KERNELS, 2) as usize).unwrap().load();
    for at_look in [false, true] {
        let guest = Guest::new(Options { isolated: false, ..Options::default() });
        guest.control(ENABLE);
        guest.configure(4);
        let mask = Guest::entry(KERNELS, 3) as usize;
        guest.bar.get_ref::<u32>(mask).unwrap().store(1);
        Move { data: Some(77), at_look, ..Move::once(KERNELS) }.begin();
        guest.call(CallId::Restore, &[]).unwrap();
        assert_eq!(data(&guest), 77, "the message that the kernel has moved it to");
        let told = guest.query_vectors(KERNELS, 1).unwrap()[0].table_message.unwrap();
        assert_eq!(told.data, 77);
    }
}
