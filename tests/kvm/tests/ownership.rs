//! Release, resets and the loss of MSI-X Enable on real KVM: each returns or restores as the protocol says.

use pvmsi_kvm_tests::*;
use pvmsi_protocol::{CallId, Reasons, TableMode};

fn assert_default(bench: &Bench) {
    let status = bench.status();
    assert_eq!((status.assigned, status.mode), (0, TableMode::Trapped));
    assert!(status.reasons.contains(Reasons::NOT_ASSIGNED));
}

fn assert_standard_table_works(bench: &Bench) {
    bench.control(ENABLE);
    let before = bench.status().counters;
    bench.program(1, message(1));
    assert!(bench.status().counters.since(&before).table_writes >= 5, "the table is trapped");
    bench.raise_and_take(1);
    bench.mask(1);
    bench.quiet(|| bench.raise(1));
    assert!(bench.pending(1));
    let taken = bench.taken(1);
    bench.unmask(1);
    bench.wait_taken(1, taken + 1);
}

#[test]
fn release_returns_to_the_default() {
    let bench = Bench::direct(4);
    bench.raise_and_take(1);
    bench.call(CallId::Release, &[]).unwrap();
    assert_default(&bench);
    bench.quiet(|| bench.raise(0));
    assert_standard_table_works(&bench);
}

#[test]
fn clearing_msix_enable_returns_to_the_default() {
    let bench = Bench::direct(4);
    bench.control(0);
    assert_default(&bench);
    bench.quiet(|| bench.raise(0));
    assert_standard_table_works(&bench);
    bench.control(0);
    bench.control(ENABLE);
    assert_eq!(bench.configure(4).mode, TableMode::Direct, "and it can be had again");
    bench.raise_and_take(3);
}

#[test]
fn a_function_level_reset_keeps_the_configuration() {
    let bench = Bench::direct(4);
    bench.mask(2);
    let table = || -> Vec<_> {
        (0..16).map(|word| bench.puppet.load_u32(0, bench.entry(0, word)).unwrap()).collect()
    };
    let before = table();
    bench.config_write_u16(DEVICE_CONTROL, 0x8000);
    assert_eq!(table(), before, "table messages and mask bits are restored by the host");
    assert_eq!(bench.status().mode, TableMode::Direct);
    bench.raise_and_take(0);
    bench.quiet(|| bench.raise(2));
    bench.unmask(2);
    bench.wait_taken(2, 1);
}

#[test]
fn a_back_door_reset_is_mended_by_restore() {
    let bench = Bench::direct(4);
    let before = bench.puppet.load_u32(0, bench.entry(3, 2)).unwrap();
    bench.puppet.store_u32(0, bench.bar + 0x18, 1).unwrap();
    while !bench.masked(3) {
        std::thread::yield_now();
    }
    bench.call(CallId::Restore, &[]).unwrap();
    assert_eq!(bench.puppet.load_u32(0, bench.entry(3, 2)).unwrap(), before);
    bench.unmask(3);
    bench.raise_and_take(3);
}

#[test]
fn machine_reset_is_power_on() {
    let mut bench = Bench::direct(4);
    bench.raise_and_take(0);
    bench.reset();
    assert_default(&bench);
    assert_eq!(bench.config_read_u32(0x90) >> 16 & u32::from(ENABLE | FUNCTION_MASK), 0);
    assert!(bench.masked(0));
    assert_standard_table_works(&bench);
}

#[test]
fn the_guest_can_reset_the_machine_itself() {
    let bench = Bench::direct(4);
    Puppet::prepare(bench.machine.memory()).unwrap();
    let resets = bench.machine.resets();
    // The command never ends: the guest that was told starts anew.
    drop(bench.puppet.port_out(0, 0xcf9, Width::Byte, 6));
    while bench.machine.resets() == resets {
        std::thread::yield_now();
    }
    Puppet::attach(bench.machine.memory().clone(), 2).unwrap();
    assert_default(&bench);
}

#[test]
fn decoding_and_power_state_take_the_pages_away_and_bring_them_back() {
    let bench = Bench::direct(4);
    bench.mask(1);
    for (register, off, on) in [(0x04, 0x0004, 0x0006), (POWER, 3, 0)] {
        bench.config_write_u16(register, off);
        assert_eq!(bench.puppet.load_u32(0, bench.bar).unwrap(), u32::MAX, "nobody answers");
        bench.raise_and_take(0);
        bench.config_write_u16(register, on);
        assert_eq!(bench.status().mode, TableMode::Direct);
        assert!(bench.masked(1) && !bench.masked(0));
    }
}

#[test]
fn a_bar_can_move_under_a_direct_table() {
    let bench = Bench::direct(4);
    let moved = bench.bar + 0x100_0000;
    bench.mask(2);
    bench.config_write_u32(0x10, u32::try_from(moved).unwrap());
    assert_eq!(bench.status().mode, TableMode::Direct);
    assert_eq!(bench.puppet.load_u32(0, bench.bar).unwrap(), u32::MAX, "the old place is empty");
    let control = moved + entry_word(2, 3);
    assert_eq!(bench.puppet.load_u32(0, control).unwrap(), 1, "still masked");
    bench.raise_and_take(0);
}
