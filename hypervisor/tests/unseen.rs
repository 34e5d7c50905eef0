//! Functions that lose what the host's kernel has written, and tables that cannot be read.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod fixture;

use fixture::faults::{self, Plan};
use fixture::function::{read_zeros, requests};
use fixture::*;
use pvmsi_hypervisor::{Platform, Policy};
use pvmsi_protocol::{CallError, CallId, Reasons, Sequence, TableMode, VectorSetup};

/// Of how many vectors a Samsung SM961 has its table, and from which word on it reads as zeros.
const VECTORS: u16 = 16;
const FIRST: (u16, u64) = (8, 1);

const PLATFORMS: [Platform; 2] = [X86_64, Platform::Aarch64 { its_doorbell: 0xfee0_0000 }];

type Act = fn(&Guest);

/// A function whose table reads as zeros from a word on.
fn unreadable(platform: Platform) -> Guest {
    let guest = Guest::new(Options { vectors: VECTORS, platform, ..Options::default() });
    read_zeros(FIRST.0, FIRST.1);
    guest.control(ENABLE);
    guest
}

/// Each vector fires, or waits while it is masked, and then fires once.
fn check(guest: &Guest, what: &str) {
    for vector in 0..VECTORS {
        guest.raise(vector);
        assert_eq!(guest.interrupts(), [vector], "{what}: vector {vector}");
        guest.mask(vector);
        guest.raise(vector);
        assert_eq!(guest.interrupts(), NONE, "{what}: vector {vector}, masked");
        guest.unmask(vector);
        assert_eq!(guest.interrupts(), [vector], "{what}: vector {vector}, unmasked");
    }
    assert_eq!(guest.device.blocked(), 0, "{what}: nothing goes astray");
}

fn flr(guest: &Guest) {
    guest.config_write(DEVICE_CONTROL, &[0, 0x80]);
}

fn d3hot(guest: &Guest) {
    guest.config_write(POWER, &[3, 0]);
    // Some functions lose their table there.
    guest.hidden_reset();
    guest.config_write(POWER, &[0, 0]);
}

#[test]
fn a_table_that_reads_as_zeros_is_never_direct_and_says_why() {
    for platform in PLATFORMS {
        let guest = unreadable(platform);
        let configured = guest.configure(VECTORS);
        assert_eq!(configured.mode, TableMode::Trapped);
        assert_eq!(configured.reasons, Reasons::UNREADABLE);
        assert!(configured.vectors.iter().all(|vector| vector.table_message.is_none()));
        check(&guest, "configured");
        guest.function.revoke().unwrap();
        guest.function.allow().unwrap();
        guest.config_write(READ_ONLY, &[0]);
        assert_eq!(guest.status().reasons, Reasons::UNREADABLE);
        for state in guest.query_vectors(0, VECTORS).unwrap() {
            assert_eq!(state.table_message, None);
        }
    }
}

#[test]
fn a_table_that_reads_as_zeros_is_never_written_back() {
    let acts: [(&str, Act); 6] = [
        ("D3hot", d3hot),
        ("a second configure", |guest| drop(guest.configure(VECTORS))),
        ("a function level reset", flr),
        ("a reset by the host", |guest| guest.function.reset().unwrap()),
        ("a repair", |guest| assert!(guest.function.repair().unwrap())),
        ("restore", |guest| {
            guest.hidden_reset();
            guest.call(CallId::Restore, &[]).unwrap();
        }),
    ];
    for platform in PLATFORMS {
        for (what, act) in acts {
            let guest = unreadable(platform);
            guest.configure(VECTORS);
            act(&guest);
            (0..VECTORS).for_each(|vector| guest.unmask(vector));
            check(&guest, what);
            act(&guest);
            assert_eq!(guest.status().reasons, Reasons::UNREADABLE, "{what}");
            (0..VECTORS).for_each(|vector| guest.unmask(vector));
            check(&guest, what);
        }
    }
}

/// In the default state nobody but the service would write it.
#[test]
fn an_emulated_table_outlives_a_table_that_reads_as_zeros() {
    for platform in PLATFORMS {
        let guest = unreadable(platform);
        (0..VECTORS).for_each(|vector| guest.program(vector, message(vector)));
        check(&guest, "programmed");
        d3hot(&guest);
        check(&guest, "D3hot");
        let configured = guest.configure(VECTORS);
        assert_eq!(configured.reasons, Reasons::UNREADABLE);
        check(&guest, "configured");
    }
}

/// A direct table's mask bits would be read as clear when the host takes it.
#[test]
fn no_event_of_a_table_that_reads_as_zeros_is_lost_when_the_host_takes_it() {
    for platform in PLATFORMS {
        let guest = unreadable(platform);
        guest.configure(VECTORS);
        for vector in [2, 9, 15] {
            guest.mask(vector);
            guest.raise(vector);
        }
        guest.function.revoke().unwrap();
        assert_eq!(guest.interrupts(), NONE);
        for vector in [2, 9, 15] {
            guest.unmask(vector);
            assert_eq!(guest.interrupts(), [vector]);
        }
        guest.function.allow().unwrap();
        check(&guest, "revoked and allowed");
    }
}

/// Vectors that are added later can be the first that read as zeros.
#[test]
fn a_direct_table_is_taken_back_when_more_of_it_reads_as_zeros() {
    for bound in [4, 2048] {
        let guest =
            Guest::new(Options { vectors: VECTORS, vectors_per_call: bound, ..Options::default() });
        read_zeros(FIRST.0, FIRST.1);
        guest.control(ENABLE);
        let configure = |count| {
            let vectors: Vec<_> = (0..count)
                .map(|vector| VectorSetup { message: Some(message(vector)), masked: vector == 3 })
                .collect();
            let mut sequence = Sequence::START;
            loop {
                match guest.configure_with(count, sequence, &vectors) {
                    Err(CallError::Busy(busy)) => sequence = busy.sequence,
                    answer => break answer.unwrap(),
                }
            }
        };
        assert_eq!(configure(FIRST.0).mode, TableMode::Direct);
        guest.raise(3);
        let configured = configure(VECTORS);
        assert_eq!(configured.reasons, Reasons::UNREADABLE, "{bound}");
        assert_eq!(configured.pending(), [3], "{bound}");
        assert_eq!(guest.interrupts(), NONE);
        guest.unmask(3);
        check(&guest, "more vectors");
    }
}

/// What clears the function's own MSI-X Enable with all else.
fn self_test(guest: &Guest) {
    guest.config_write(SELF_TEST, &[0x40]);
}

/// A reset of a physical function, say: its virtual functions lose Enable, and no kernel knows.
#[test]
fn restore_sets_up_anew_what_has_lost_enable() {
    for policy in [Policy::Direct, Policy::Trapped] {
        let guest = Guest::new(Options { vectors: VECTORS, policy, ..Options::default() });
        guest.control(ENABLE);
        guest.configure(VECTORS);
        guest.mask(3);
        let before = guest.status();
        self_test(&guest);
        assert!(!guest.device.enabled());
        guest.control(ENABLE | FUNCTION_MASK);
        guest.call(CallId::Restore, &[]).unwrap();
        assert!(guest.device.enabled());
        let after = guest.status();
        assert_eq!((after.assigned, after.mode), (before.assigned, before.mode));
        assert_ne!(after.generation, before.generation);
        guest.mask(3);
        (0..VECTORS).filter(|&vector| vector != 3).for_each(|vector| guest.unmask(vector));
        guest.control(ENABLE);
        guest.raise(3);
        assert_eq!(guest.interrupts(), NONE);
        guest.unmask(3);
        assert_eq!(guest.interrupts(), [3]);
        check(&guest, "restored");
        // Where nothing is amiss nothing is set up.
        requests();
        guest.call(CallId::Restore, &[]).unwrap();
        assert!(requests().is_empty());
    }
}

/// Whatever fails on the way: the call says so, or the function works.
#[test]
fn a_restore_that_cannot_set_up_fails_and_is_made_up_for() {
    for nth in 1.. {
        let guest = Guest::with_vectors(VECTORS);
        guest.control(ENABLE);
        guest.configure(VECTORS);
        self_test(&guest);
        faults::plan(Plan::Nth(nth));
        let restored = guest.call(CallId::Restore, &[]);
        let failed = faults::end();
        let what = format!("{failed:?}");
        assert!(restored.is_ok() || !failed.is_empty());
        if failed == ["config read"] {
            // It tells nothing.
            guest.call(CallId::Restore, &[]).unwrap();
        }
        assert!(restored.is_err() || guest.device.enabled(), "{what}");
        guest.config_write(READ_ONLY, &[0]);
        assert!(guest.device.enabled(), "{what}");
        (0..VECTORS).for_each(|vector| guest.unmask(vector));
        check(&guest, &what);
        if failed.is_empty() {
            faults::report(nth, "restore of a function without Enable");
            break;
        }
    }
}

/// Enable may be lost while nobody can put it right.
#[test]
fn a_restore_while_decoding_is_off_is_made_up_for() {
    let guest = Guest::with_vectors(VECTORS);
    guest.control(ENABLE);
    guest.configure(VECTORS);
    guest.config_write(0x04, &[0, 0]);
    self_test(&guest);
    guest.call(CallId::Restore, &[]).unwrap();
    guest.config_write(0x04, &[6, 0]);
    (0..VECTORS).for_each(|vector| guest.unmask(vector));
    check(&guest, "decoding is on");
    assert!(guest.is_direct());
}

/// Linux, `pci_restore_msix_state`: Enable with Function Mask, each entry masked, written and unmasked, Function Mask clear.
fn restore_as_linux_does(guest: &Guest, vectors: &[u16]) {
    guest.control(ENABLE | FUNCTION_MASK);
    for &vector in vectors {
        guest.program(vector, message(vector));
    }
    guest.control(ENABLE);
}

#[test]
fn a_guest_that_never_calls_restores_its_function_by_itself() {
    let resets: [(&str, Act); 2] = [("a register", Guest::hidden_reset), ("BIST", self_test)];
    let all: Vec<_> = (0..VECTORS).collect();
    for isolated in [true, false] {
        for (what, reset) in resets {
            let guest = Guest::new(Options { vectors: VECTORS, isolated, ..Options::default() });
            guest.control(ENABLE);
            all.iter().for_each(|&vector| guest.program(vector, message(vector)));
            check(&guest, "programmed");
            reset(&guest);
            restore_as_linux_does(&guest, &all);
            assert!(guest.device.enabled(), "{what}");
            check(&guest, what);
            // An event that came while Function Mask was set is not lost by the repair.
            guest.mask(5);
            guest.raise(5);
            restore_as_linux_does(&guest, &all[6..]);
            assert_eq!(guest.interrupts(), NONE, "{what}");
            guest.unmask(5);
            assert_eq!(guest.interrupts(), [5], "{what}");
        }
    }
}

#[test]
fn a_function_that_could_not_be_mended_is_with_the_next_operation() {
    let all: Vec<_> = (0..VECTORS).collect();
    for nth in 1.. {
        let guest = Guest::with_vectors(VECTORS);
        guest.control(ENABLE);
        all.iter().for_each(|&vector| guest.program(vector, message(vector)));
        self_test(&guest);
        guest.control(ENABLE | FUNCTION_MASK);
        all.iter().for_each(|&vector| guest.program(vector, message(vector)));
        faults::plan(Plan::Nth(nth));
        guest.control(ENABLE);
        let failed = faults::end();
        let what = format!("{failed:?}");
        if failed == ["config read"] {
            guest.control(ENABLE);
        }
        guest.config_write(READ_ONLY, &[0]);
        assert!(guest.device.enabled(), "{what}");
        check(&guest, &what);
        if failed.is_empty() {
            faults::report(nth, "a guest restores a function without Enable");
            break;
        }
    }
}

/// Others write the entries first, and Enable last, without Function Mask.
#[test]
fn enable_written_again_mends_a_function_that_was_reset() {
    let guest = Guest::with_vectors(VECTORS);
    guest.control(ENABLE);
    (0..VECTORS).for_each(|vector| guest.program(vector, message(vector)));
    self_test(&guest);
    (0..VECTORS).for_each(|vector| guest.program(vector, message(vector)));
    guest.control(ENABLE);
    check(&guest, "enabled again");
    // Before the first vector is unmasked, too.
    let guest = Guest::with_vectors(VECTORS);
    guest.control(ENABLE);
    self_test(&guest);
    guest.control(ENABLE);
    assert!(guest.device.enabled());
}
