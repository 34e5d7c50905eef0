//! The switch on real KVM: what it costs, and that nothing is lost, doubled or let through while masked.

use std::time::Duration;

use pvmsi_hypervisor::Policy;
use pvmsi_kvm_tests::*;
use pvmsi_protocol::{Reasons, TableMode, VectorSetup};

#[test]
fn configure_of_2048_vectors_costs_one_exit_one_update_one_set_up() {
    let bench = Bench::with_vectors(2048);
    bench.control(ENABLE);
    let (before, exits) = (bench.status().counters, bench.machine.exits());
    let answer = bench.configure(2048);
    let (spent, now) = (bench.status().counters.since(&before), bench.machine.exits());
    assert_eq!((answer.granted, answer.mode), (2048, TableMode::Direct));
    assert_eq!((spent.routing_updates, spent.interrupt_setups), (1, 1));
    assert_eq!(now.total() - exits.total(), 1, "the doorbell and nothing else: {now:?}");
}

#[test]
fn masking_and_the_neighbour_cost_no_exit_in_direct_mode() {
    let bench = Bench::direct(8);
    let before = bench.machine.exits().total();
    for _ in 0..100 {
        bench.mask(3);
        bench.unmask(3);
    }
    bench.puppet.store_loop(0, bench.bar + 8, Width::Double, 0, 100).unwrap();
    assert_eq!(bench.machine.exits().total(), before);
}

#[test]
fn they_cost_an_exit_each_where_the_table_is_trapped() {
    let bench = Bench::start(config(8, Policy::Trapped));
    bench.control(ENABLE);
    assert_eq!(bench.configure(8).reasons, Reasons::POLICY);
    let before = bench.machine.exits().total();
    bench.mask(3);
    bench.unmask(3);
    bench.puppet.store_loop(0, bench.bar + 8, Width::Double, 0, 10).unwrap();
    assert_eq!(bench.machine.exits().total() - before, 12);
    bench.raise_and_take(3);
}

#[test]
fn a_pending_event_is_reported_and_not_delivered() {
    let bench = Bench::with_vectors(4);
    bench.control(ENABLE);
    for vector in 0..4 {
        bench.program(vector, message(vector));
        bench.mask(vector);
    }
    bench.quiet(|| {
        bench.raise(1);
        bench.raise(2);
    });
    let setup = |vector, masked| VectorSetup { message: Some(message(vector)), masked };
    let setups = [setup(0, true), setup(1, true), setup(2, false), setup(3, true)];
    assert_eq!(bench.configure_with(&setups).unwrap().pending, [1]);
    bench.wait_taken(2, 1);
    bench.quiet(|| bench.unmask(1));
}

#[test]
fn an_update_moves_the_interrupt_to_another_vcpu() {
    let bench = Bench::direct(4);
    bench.raise_and_take(2);
    bench.update(2, message_to(1, 2)).unwrap();
    bench.quiet_on_vcpu0_while(|| {
        bench.raise(2);
        bench.puppet.wait_count(1, interrupt(2), 1, PATIENCE).unwrap();
    });
}

#[test]
fn function_mask_holds_delivery() {
    let bench = Bench::direct(4);
    bench.control(ENABLE | FUNCTION_MASK);
    bench.quiet(|| {
        bench.raise(0);
        bench.raise(1);
        bench.mask(1);
    });
    bench.control(ENABLE);
    bench.wait_taken(0, 1);
    bench.quiet(|| {});
    bench.unmask(1);
    bench.wait_taken(1, 1);
    assert_eq!(bench.status().mode, TableMode::Direct);
}

#[test]
fn a_vector_is_taken_back_and_given_again_under_load() {
    let bench = Bench::direct(4);
    let masker = bench.puppet.start_mask_loop(1, bench.entry(1, 3)).unwrap();
    let mut raised = 0;
    for round in 0..100 {
        bench.raise(0);
        bench.raise(1);
        raised += 1;
        if round % 2 == 0 {
            bench.function().revoke().unwrap();
        } else {
            bench.function().allow().unwrap();
        }
        bench.wait_taken(0, raised);
        assert_eq!(bench.taken(0), raised, "doubled");
    }
    masker.stop().unwrap();
    bench.unmask(1);
    let counters = bench.status().counters;
    // Not each `allow` leads to direct at once: an event may wait for the masked vector.
    assert!(counters.switches_to_trapped >= 10, "{counters:?}");
    // Events of vector 1 may have merged while it was masked, but the last one has come.
    bench.raise_and_wait(1);
    assert!(bench.taken(1) <= raised + 1, "doubled");
}

/// Attaching races with signalling: KVM can raise an event twice that arrives just then (about once in half a million attaches). `PVMSI_ATTACH_EVENTS` makes a longer run.
#[test]
fn an_event_at_the_moment_of_an_attach_is_raised_once() {
    let events = std::env::var("PVMSI_ATTACH_EVENTS").map_or(2000, |text| text.parse().unwrap());
    let bench = Bench::start(config(4, Policy::Trapped));
    bench.control(ENABLE);
    bench.program(1, message(1));
    // Each unmask attaches. One event at a time, at moments that drift against that.
    let masker = bench.puppet.start_mask_loop(1, bench.entry(1, 3)).unwrap();
    for event in 1..=events {
        bench.raise(1);
        bench.wait_taken(1, event);
        let pause = Duration::from_nanos(u64::from(event.wrapping_mul(7919) % 300_000));
        std::thread::sleep(pause);
        assert_eq!(bench.taken(1), event, "doubled");
    }
    let attaches = masker.stop().unwrap();
    println!("{events} events, {attaches} attaches");
}

#[test]
fn every_event_of_a_serial_run_is_one_interrupt_in_both_modes() {
    let bench = Bench::direct(190);
    for trapped in [false, true] {
        if trapped {
            bench.function().revoke().unwrap();
        }
        for vector in 0..190 {
            let before = bench.taken(vector);
            bench.raise(vector);
            bench.wait_taken(vector, before + 1);
        }
        std::thread::sleep(Duration::from_millis(10));
        let expected = if trapped { 2 } else { 1 };
        assert!((0..190).all(|vector| bench.taken(vector) == expected));
    }
}

#[test]
fn foreign_messages_in_the_table_go_nowhere() {
    let bench = Bench::direct(2);
    bench.puppet.store_u32(0, bench.entry(0, 0), 0xfee0_0000).unwrap();
    bench.puppet.store_u32(0, bench.entry(0, 2), 0x41).unwrap();
    bench.quiet(|| bench.raise(0));
    assert_eq!(bench.machine.software_device(0).unwrap().blocked(), 1);
}
