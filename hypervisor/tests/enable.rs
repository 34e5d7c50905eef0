//! The function's own MSI-X Enable: it follows the guest's, whatever is masked, and what that costs.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![allow(clippy::cast_possible_truncation)]

mod fixture;

use fixture::faults::{self, Plan};
use fixture::function::settled;
use fixture::*;
use pvmsi_hypervisor::{Counters, Policy};
use pvmsi_protocol::{CallId, TableMode};

/// What an act costs: requests for Enable alone, set-ups, routing updates.
fn cost(guest: &Guest, act: impl FnOnce()) -> (u64, u64, u64) {
    let before = guest.status().counters;
    act();
    let Counters { enable_changes, interrupt_setups, routing_updates, .. } =
        guest.status().counters.since(&before);
    (enable_changes, interrupt_setups, routing_updates)
}

/// As Linux does: MSI-X Enable with Function Mask, all entries masked, Function Mask cleared; the driver starts the function, and vectors are unmasked when they are requested.
#[test]
fn a_guest_that_unmasks_last_finds_the_function_enabled_when_it_starts_it() {
    for policy in [Policy::Off, Policy::Trapped, Policy::Direct] {
        let guest = Guest::new(Options { policy, ..Options::default() });
        assert!(!guest.device.enabled());
        assert_eq!(cost(&guest, || guest.control(ENABLE | FUNCTION_MASK)), (1, 0, 0));
        assert!(guest.device.enabled(), "{policy:?}: Function Mask is no reason against it");
        (0..8).for_each(|vector| guest.mask(vector));
        assert_eq!(cost(&guest, || guest.control(ENABLE)), (0, 0, 0));
        // The driver starts the function here. It may have an event already: that waits.
        guest.raise(2);
        assert_eq!(guest.interrupts(), NONE);
        assert!(guest.pending(2));
        assert_eq!(cost(&guest, || guest.program(2, message(2))), (0, 1, 1), "{policy:?}");
        assert_eq!(guest.interrupts(), [2], "once, by unmasking");
        assert_eq!(cost(&guest, || guest.program(3, message(3))), (0, 1, 1), "armed later");
        assert_eq!(cost(&guest, || guest.program(1, message(1))), (0, 0, 1), "before the last");
        assert_eq!(cost(&guest, || guest.program(3, message(4))), (0, 0, 1), "moved");
        assert!(guest.device.enabled());
    }
}

#[test]
fn it_is_disabled_with_the_guest_s_own_request() {
    let guest = Guest::with_vectors(8);
    for _ in 0..20 {
        assert_eq!(cost(&guest, || guest.control(ENABLE)), (1, 0, 0));
        assert_eq!(cost(&guest, || guest.control(ENABLE)), (0, 0, 0), "it is already");
        assert_eq!(cost(&guest, || guest.control(0)), (1, 0, 0), "nothing was set up");
        assert!(!guest.device.enabled());
    }
    guest.control(ENABLE);
    guest.program(0, message(0));
    assert_eq!(cost(&guest, || guest.control(0)), (1, 0, 0), "all goes with one request");
    assert!(!guest.device.enabled());
    assert_eq!(
        cost(&guest, || guest.control(ENABLE)),
        (0, 1, 1),
        "an entry is unmasked: set up at once"
    );
    guest.control(0);
    guest.control(ENABLE);
    guest.configure(8);
    assert_eq!(cost(&guest, || guest.control(0)), (1, 0, 0), "an assignment, too");
    assert!(!guest.device.enabled());
}

#[test]
fn calls_leave_it_alone_while_the_guest_has_it_enabled() {
    let guest = Guest::with_vectors(8);
    guest.control(ENABLE);
    assert_eq!(cost(&guest, || drop(guest.configure(8))), (0, 1, 1));
    assert_eq!(cost(&guest, || drop(guest.configure(3))), (0, 1, 0), "five go");
    assert_eq!(cost(&guest, || guest.update(&[(0, message(7))]).unwrap()), (0, 0, 1));
    let release = || drop(guest.call(CallId::Release, &[]).unwrap());
    assert_eq!(cost(&guest, release), (0, 1, 0));
    assert!(guest.device.enabled(), "the vectors are down, and MSI-X is on");
    guest.raise(1);
    assert_eq!(guest.interrupts(), NONE);
    guest.program(1, message(1));
    assert_eq!(guest.interrupts(), [1], "as in the default state from the start");
    assert_eq!(cost(&guest, || drop(guest.configure(8))), (0, 1, 1), "two are set up");
}

/// A guest may configure first. The vectors enable the function, and the guest's own Enable then has nothing to do.
#[test]
fn a_configure_before_the_guest_s_enable() {
    let guest = Guest::with_vectors(8);
    assert_eq!(cost(&guest, || drop(guest.configure(8))), (0, 1, 1));
    assert!(guest.device.enabled());
    let release = || drop(guest.call(CallId::Release, &[]).unwrap());
    assert_eq!(cost(&guest, release), (1, 0, 0));
    assert!(!guest.device.enabled(), "nobody wants it");
    guest.configure(8);
    assert_eq!(cost(&guest, || guest.control(ENABLE)), (0, 0, 0));
    assert!(guest.is_direct() && guest.device.enabled());
}

#[test]
fn resets_sleep_and_removal() {
    let reset = |guest: &Guest| guest.config_write(DEVICE_CONTROL, &[0, 0x80]);
    let guest = Guest::with_vectors(8);
    guest.control(ENABLE);
    assert_eq!(cost(&guest, || reset(&guest)), (1, 0, 0));
    assert!(!guest.device.enabled(), "as after power-on, like the guest's own (H-802)");
    guest.control(ENABLE);
    guest.config_write(POWER, &[3, 0]);
    guest.config_write(POWER, &[0, 0]);
    guest.config_write(0x04, &[0, 0]);
    assert!(guest.device.enabled(), "sleep and decoding are no reason against it");
    guest.config_write(0x04, &[6, 0]);
    guest.configure(8);
    reset(&guest);
    assert!(guest.device.enabled(), "what is assigned survives a reset (H-801)");
    guest.service.reset().unwrap();
    assert!(!guest.device.enabled());
    guest.control(ENABLE);
    guest.function.remove().unwrap();
    assert!(!guest.device.enabled());
}

/// What the kernel refuses is tried again by the next operation: once, and the guest reads what it wrote meanwhile.
#[test]
fn a_refusal_is_made_up_for() {
    let guest = Guest::with_vectors(8);
    let refuse = || faults::plan(Plan::Only(1, &["MSI-X Enable"]));
    refuse();
    guest.control(ENABLE);
    assert!(!guest.device.enabled());
    assert_eq!(guest.config_read(MSIX_CONTROL - 2) >> 31, 1);
    assert_eq!(cost(&guest, || guest.config_write(READ_ONLY, &[0])), (1, 0, 0), "once");
    faults::end();
    assert_eq!(cost(&guest, || guest.config_write(READ_ONLY, &[0])), (1, 0, 0));
    assert!(guest.device.enabled());
    guest.program(0, message(0));
    refuse();
    guest.control(0);
    faults::end();
    assert!(guest.device.enabled());
    guest.raise(0);
    assert_eq!(guest.interrupts(), NONE);
    guest.config_write(READ_ONLY, &[0]);
    assert!(!guest.device.enabled());
    // And a set-up enables by itself.
    refuse();
    guest.control(ENABLE);
    assert_eq!(guest.configure(8).mode, TableMode::Direct);
    faults::end();
    assert!(guest.device.enabled());
}

/// A kernel refuses to enable a function that sleeps.
#[test]
fn what_was_refused_in_its_sleep_is_done_by_waking_it() {
    let guest = Guest::with_vectors(8);
    guest.config_write(POWER, &[3, 0]);
    faults::plan(Plan::Nth(1));
    guest.control(ENABLE);
    assert_eq!(faults::end(), ["MSI-X Enable"]);
    // It wakes within the operation: what is tried before is refused as well.
    faults::plan(Plan::Nth(1));
    guest.config_write(POWER, &[0, 0]);
    assert_eq!(faults::end(), ["MSI-X Enable"]);
    assert!(guest.device.enabled());
}

/// Where vectors cannot be added later, enabling has allocated all, or as many as the host has: a later `configure` sets up what it needs, and Enable never drops.
#[test]
fn vectors_that_are_allocated_with_enable_can_be_set_up_one_after_the_other() {
    let guest = Guest::new(Options { grows: false, interrupts: 5, ..Options::default() });
    guest.control(ENABLE);
    for (requested, granted) in [(3, 3), (5, 5), (2, 2), (8, 5)] {
        let before = guest.status().counters;
        let answer = guest.configure(requested);
        assert_eq!((answer.granted, answer.mode), (granted, TableMode::Direct));
        assert_eq!(guest.status().counters.since(&before).enable_changes, 0);
        assert!(guest.device.enabled());
        (0..granted).for_each(|vector| guest.raise(vector));
        assert_eq!(guest.interrupts(), (0..granted).collect::<Vec<_>>());
    }
}

/// A settle is a grace period of the kernel: most of what a `configure` of few vectors takes.
#[test]
fn a_configure_settles_no_more_often_than_it_must() {
    let settles = |act: &dyn Fn()| {
        let before = settled();
        act();
        settled() - before
    };
    for policy in [Policy::Direct, Policy::Trapped] {
        let guest = Guest::new(Options { policy, ..Options::default() });
        guest.control(ENABLE);
        let counts = [
            settles(&|| drop(guest.configure(8))),
            settles(&|| drop(guest.configure(8))),
            settles(&|| guest.update(&[(0, message(7)), (1, message(8))]).unwrap()),
            settles(&|| guest.update(&[(0, message(6))]).unwrap()),
        ];
        assert_eq!(counts, [1, 2, 0, 0], "{policy:?}: first, again, two updates, one update");
    }
}
