//! What happens to a function behind the service's back: the host's kernel restores its table after error recovery, the host's sleep, or a reset through sysfs; or the function is gone for a while.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![allow(clippy::cast_possible_truncation)]

mod fixture;

use fixture::faults::{self, Plan};
use fixture::function::{Behind, behind, lose_decoding, silence};
use fixture::*;
use pvmsi_hypervisor::View;
use pvmsi_protocol::{CallId, Reasons, TableMode};
use vm_memory::VolatileMemory;

/// The vector that the guest has masked.
const MASKED: u16 = 2;
const OTHER: u16 = 1;

/// What others do to a function that has its interrupts set up.
const OTHERS: [Behind; 2] = [Behind::Restored, Behind::Reset];

fn configured() -> Guest {
    let guest = Guest::with_vectors(4);
    guest.control(ENABLE);
    assert_eq!(guest.configure(4).mode, TableMode::Direct);
    guest.mask(MASKED);
    guest
}

fn messages(guest: &Guest) -> Vec<[u32; 3]> {
    (0..4).map(|vector| [0, 1, 2].map(|word| guest.load(Guest::entry(vector, word)))).collect()
}

/// The word of an entry in the function's own table.
fn own(guest: &Guest, vector: u16, word: u64) -> u32 {
    guest.bar.get_ref::<u32>(Guest::entry(vector, word) as usize).unwrap().load()
}

/// One vector is masked and the others are not, as the guest wants it, and each event arrives once.
fn check(guest: &Guest, what: &str) {
    for vector in 0..4 {
        assert_eq!(guest.masked(vector), vector == MASKED, "{what}");
    }
    guest.raise(MASKED);
    guest.raise(OTHER);
    assert_eq!(guest.interrupts(), [OTHER], "{what}");
    assert!(guest.pending(MASKED), "{what}");
    guest.unmask(MASKED);
    assert_eq!(guest.interrupts(), [MASKED], "{what}");
    assert!(guest.is_direct(), "{what}");
}

/// What the specification asks of the guest (G-804).
fn write_mask_bits(guest: &Guest) {
    (0..4).for_each(
        |vector| if vector == MASKED { guest.mask(vector) } else { guest.unmask(vector) },
    );
}

#[test]
fn a_frozen_function_is_not_reached_and_loses_nothing() {
    for others in OTHERS {
        let guest = configured();
        let (before, generation) = (messages(&guest), guest.status().generation);
        guest.function.freeze().unwrap();
        assert_eq!(guest.view(), View::NOTHING, "first of all the pages go");
        assert_eq!(guest.function.bars(), [None; 6]);
        let status = guest.status();
        assert_eq!((status.mode, status.reasons), (TableMode::Trapped, Reasons::HOST_REVOKED));
        assert_eq!(guest.load(0), u32::MAX, "nobody answers");
        // Other reasons come and go meanwhile.
        guest.function.revoke().unwrap();
        guest.function.allow().unwrap();
        guest.config_write(0x04, &[0x06, 0x00]);
        guest.call(CallId::Restore, &[]).unwrap();
        assert_eq!(guest.view(), View::NOTHING);
        behind(&guest.bar, others);
        assert!(guest.function.repair().unwrap());
        assert!(guest.is_direct());
        assert_ne!(guest.status().generation, generation);
        assert_eq!(messages(&guest), before);
        check(&guest, "frozen in time");
    }
}

/// An event that was on its way when the function was frozen, and others that come meanwhile, are one for a masked vector.
#[test]
fn events_of_a_frozen_function_arrive_as_ever() {
    let guest = configured();
    guest.raise(MASKED);
    guest.function.freeze().unwrap();
    guest.raise(MASKED);
    guest.raise(OTHER);
    assert_eq!(guest.interrupts(), [OTHER]);
    assert!(guest.function.repair().unwrap());
    assert_eq!(guest.status().reasons, Reasons::HELD_EVENT);
    assert_eq!(guest.interrupts(), NONE);
    guest.unmask(MASKED);
    assert_eq!(guest.interrupts(), [MASKED]);
    assert!(guest.is_direct());
}

#[test]
fn a_table_that_was_restored_behind_the_services_back_is_repaired() {
    for others in OTHERS {
        let guest = configured();
        let (before, generation) = (messages(&guest), guest.status().generation);
        behind(&guest.bar, others);
        assert!(guest.function.repair().unwrap());
        assert_eq!(messages(&guest), before, "{others:?}");
        assert_ne!(guest.status().generation, generation);
        let masked: Vec<_> = (0..4).map(|vector| guest.masked(vector)).collect();
        assert_eq!(masked, [others == Behind::Reset; 4], "as the function has them");
        write_mask_bits(&guest);
        check(&guest, "mask bits written again");
    }
}

/// A reset through sysfs, which nobody tells the service of.
#[test]
fn restore_and_the_mask_bits_mend_what_nobody_has_noticed() {
    for others in OTHERS {
        let guest = configured();
        let before = messages(&guest);
        behind(&guest.bar, others);
        guest.control(ENABLE | FUNCTION_MASK);
        guest.call(CallId::Restore, &[]).unwrap();
        assert_eq!(messages(&guest), before, "{others:?}");
        write_mask_bits(&guest);
        guest.control(ENABLE);
        assert!(guest.is_direct());
        check(&guest, "restored");
    }
}

/// What a guest that knows of nothing finds: messages stand, and no vector is silent that it has not masked.
#[test]
fn after_the_kernels_own_restore_only_mask_bits_are_lost() {
    let guest = configured();
    let before = messages(&guest);
    behind(&guest.bar, Behind::Restored);
    assert_eq!(messages(&guest), before);
    for vector in 0..4 {
        assert!(!guest.masked(vector));
        guest.raise(vector);
    }
    assert_eq!(guest.interrupts(), [0, 1, 2, 3]);
    guest.mask(MASKED);
    check(&guest, "masked again");
}

/// Where the table is trapped the kernel writes what is there, and mask bits are not in it.
#[test]
fn a_trapped_table_is_as_before() {
    for others in OTHERS {
        let guest = configured();
        guest.function.revoke().unwrap();
        behind(&guest.bar, others);
        assert!(guest.function.repair().unwrap());
        assert!(!guest.is_direct(), "it is still revoked");
        guest.raise(OTHER);
        assert_eq!(guest.interrupts(), [OTHER]);
        guest.function.allow().unwrap();
        check(&guest, "allowed again");
    }
}

#[test]
fn an_emulated_table_goes_on() {
    for others in OTHERS {
        let guest = Guest::with_vectors(4);
        guest.control(ENABLE);
        (0..4).for_each(|vector| guest.program(vector, message(vector)));
        guest.mask(MASKED);
        guest.function.freeze().unwrap();
        behind(&guest.bar, others);
        assert!(guest.function.repair().unwrap());
        guest.raise(MASKED);
        guest.raise(OTHER);
        assert_eq!(guest.interrupts(), [OTHER], "{others:?}");
        guest.unmask(MASKED);
        assert_eq!(guest.interrupts(), [MASKED]);
    }
}

/// A bus reset after a fatal error takes memory decoding with it. The guest finds the function so, and turns it on.
#[test]
fn pages_of_a_function_that_has_lost_its_bars_stay_away() {
    let guest = configured();
    guest.function.freeze().unwrap();
    behind(&guest.bar, Behind::Reset);
    lose_decoding();
    assert!(guest.function.repair().unwrap(), "the rest is the guest's");
    assert_eq!(guest.view(), View::NOTHING);
    assert_eq!(guest.status().reasons, Reasons::DECODING_OFF);
    guest.config_write(0x04, &[0x06, 0x00]);
    assert!(guest.is_direct());
    assert_eq!(own(&guest, 0, 2), messages(&guest)[0][2]);
    check(&guest, "decoding is on again");
}

/// A function that answers nothing gives ones, also for its mask bits. Nobody has masked them.
#[test]
fn a_silent_function_stays_frozen_until_it_answers() {
    let guest = configured();
    silence(true);
    guest.function.freeze().unwrap();
    for _ in 0..3 {
        assert!(!guest.function.repair().unwrap());
        assert_eq!((guest.view(), guest.status().mode), (View::NOTHING, TableMode::Trapped));
    }
    guest.config_write(READ_ONLY, &[0]);
    assert_eq!(guest.status().reasons, Reasons::HOST_REVOKED, "only the host ends it");
    silence(false);
    behind(&guest.bar, Behind::Reset);
    assert!(guest.function.repair().unwrap());
    assert!(guest.is_direct());
    for vector in 0..4 {
        assert!(!guest.masked(vector), "no vector waits in vain");
    }
    guest.mask(MASKED);
    check(&guest, "it answers");
}

/// It may fall silent while its mask bits are read.
#[test]
fn a_function_that_falls_silent_while_it_is_frozen_has_no_vector_that_waits_in_vain() {
    for nth in 1.. {
        let guest = configured();
        faults::plan(Plan::Never);
        faults::meanwhile(nth, || silence(true));
        guest.function.freeze().unwrap();
        let over = faults::forget_meanwhile();
        silence(false);
        behind(&guest.bar, Behind::Restored);
        assert!(guest.function.repair().unwrap());
        assert!((0..4).all(|vector| vector == MASKED || !guest.masked(vector)), "{nth}");
        guest.mask(MASKED);
        check(&guest, &format!("silent before use {nth}"));
        if over {
            assert!(nth > 10, "it did fall silent");
            break;
        }
    }
}

/// Whatever fails: the guest has the table only when it is right, and the next operation sees to that.
#[test]
fn a_repair_that_fails_is_made_up_for() {
    for others in OTHERS {
        for frozen in [false, true] {
            let mut points = 0;
            for nth in 1.. {
                let guest = configured();
                let before = messages(&guest);
                if frozen {
                    guest.function.freeze().unwrap();
                }
                behind(&guest.bar, others);
                faults::plan(Plan::Nth(nth));
                let _ = guest.function.repair().unwrap();
                let failed = faults::end();
                let what = format!("{others:?}, frozen: {frozen}, {failed:?}");
                if guest.is_direct() {
                    assert_eq!(messages(&guest), before, "{what}");
                }
                // Debts are paid; a function that seemed silent, and a table that could not be given, are tried again.
                guest.config_write(READ_ONLY, &[0]);
                assert!(guest.function.repair().unwrap(), "{what}");
                assert!(guest.is_direct(), "{what}: {:?}", guest.status());
                assert_eq!(messages(&guest), before, "{what}");
                write_mask_bits(&guest);
                check(&guest, &what);
                points += 1;
                if failed.is_empty() {
                    break;
                }
            }
            faults::report(points, "repair");
        }
    }
}

#[test]
fn a_freeze_that_fails_is_made_up_for() {
    for nth in 1.. {
        let guest = configured();
        faults::plan(Plan::Nth(nth));
        guest.function.freeze().unwrap();
        let failed = faults::end();
        guest.config_write(READ_ONLY, &[0]);
        assert_eq!(guest.view(), View::NOTHING, "{failed:?}");
        assert_eq!(guest.status().mode, TableMode::Trapped, "{failed:?}");
        behind(&guest.bar, Behind::Restored);
        assert!(guest.function.repair().unwrap(), "{failed:?}");
        check(&guest, &format!("{failed:?}"));
        if failed.is_empty() {
            break;
        }
    }
}

/// The kernel refuses to take pages out: the guest has them until it does, and the function stays frozen.
#[test]
fn pages_that_cannot_be_taken_out_go_with_the_next_operation() {
    let guest = configured();
    faults::plan(Plan::Only(1, &["take pages out"]));
    guest.function.freeze().unwrap();
    assert!(!faults::end().is_empty());
    assert!(guest.is_direct(), "the guest's mask bits still count");
    assert_eq!(guest.status().reasons, Reasons::HOST_REVOKED);
    guest.unmask(MASKED);
    guest.mask(MASKED);
    guest.config_write(READ_ONLY, &[0]);
    assert_eq!((guest.view(), guest.status().mode), (View::NOTHING, TableMode::Trapped));
    behind(&guest.bar, Behind::Restored);
    assert!(guest.function.repair().unwrap());
    check(&guest, "frozen late");
    // The same with the repair of a function that was not frozen.
    guest.mask(MASKED);
    let before = messages(&guest);
    behind(&guest.bar, Behind::Restored);
    guest.mask(MASKED);
    faults::plan(Plan::Only(1, &["take pages out"]));
    assert!(guest.function.repair().unwrap());
    assert!(!faults::end().is_empty());
    assert_eq!(messages(&guest), before);
    guest.config_write(READ_ONLY, &[0]);
    check(&guest, "repaired where it is");
}

/// A repair without need costs no event, whatever state the function is in.
#[test]
fn a_repair_without_need_changes_nothing_for_the_guest() {
    let guest = configured();
    guest.raise(MASKED);
    for _ in 0..3 {
        assert!(guest.function.repair().unwrap());
        assert_eq!(guest.interrupts(), NONE);
    }
    guest.unmask(MASKED);
    assert_eq!(guest.interrupts(), [MASKED]);
    guest.mask(MASKED);
    check(&guest, "after all of them");
    guest.call(CallId::Release, &[]).unwrap();
    assert!(guest.function.repair().unwrap());
    guest.control(0);
    assert!(guest.function.repair().unwrap(), "nothing is set up");
    guest.config_write(0x04, &[0, 0]);
    assert!(guest.function.repair().unwrap(), "decoding is off");
}
