//! Machines on the KVM of this host, with hand-made guests. Skipped where there is no KVM.

use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::arch::BAR_WINDOW;
use crate::arch::programs::{self, TEST_PAGE};
use crate::config::FunctionConfig;
use crate::test_guest::{self, CODE, LONG, machine, run};

#[test]
fn a_guest_ends_the_run_with_its_status() {
    let Some((machine, end)) = run(&programs::exit_7(), |_| {}) else { return };
    assert_eq!(end, End::Exited(7));
    assert_eq!(machine.exits().total(), 1);
    assert!(!machine.report().passed());
}

#[test]
fn a_vcpu_that_cannot_go_on_says_where_it_stands() {
    let Some((_, end)) = run(&programs::stuck(), |_| {}) else { return };
    let End::Failed(why) = end else { panic!("{end:?}") };
    assert!(why.contains(&format!("{CODE:#x}")), "{why}");
}

#[test]
fn serial_output_arrives_and_is_counted() {
    let Some((machine, end)) = run(&programs::hi(), |_| {}) else { return };
    assert_eq!(end, End::Exited(0));
    assert_eq!(machine.serial_output(), b"hi");
    assert_eq!((machine.exits().serial, machine.exits().total()), (2, 3));
    assert!(machine.report().passed());
}

#[test]
fn a_paused_machine_stands_still_and_goes_on() {
    let Some(machine) = machine(&programs::count(), |config| config.cpus = 2) else { return };
    let count = || machine.memory().read_obj::<u64>(GuestAddress(TEST_PAGE)).unwrap();
    assert_eq!(count(), 0, "created paused");
    for _ in 0..20 {
        let before = count();
        machine.resume();
        while count() == before {
            machine.kick();
            std::thread::yield_now();
        }
        machine.pause();
        let then = count();
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(count(), then);
    }
    assert_eq!(machine.exits().total(), 0, "the host's interruptions do not count");
    machine.stop();
    assert_eq!(machine.wait(LONG), Some(End::Stopped));
}

#[test]
fn a_reset_by_the_guest_starts_it_again() {
    let Some((machine, end)) = run(&programs::reset_twice(), |config| {
        config.functions.push(FunctionConfig::software(8));
        config.cpus = 1;
    }) else {
        return;
    };
    assert_eq!(end, End::Exited(0));
    assert_eq!(machine.resets(), 2);
}

#[test]
fn a_reset_by_the_host_brings_bars_and_program_back() {
    let Some(machine) = machine(&programs::spin(), |config| {
        config.functions.push(FunctionConfig::software(8));
        config.cpus = 2;
    }) else {
        return;
    };
    let function = &machine.functions()[0].handle;
    let config = |offset| {
        let mut data = [0; 4];
        function.config_read(offset, &mut data).unwrap();
        u32::from_le_bytes(data)
    };
    let bar = config(0x10);
    assert!(BAR_WINDOW.contains(&u64::from(bar)), "{bar:#x}");
    assert_eq!(config(4) & 0xffff, 0, "COMMAND");
    machine.resume();
    function.config_write(4, &[2, 0]).unwrap();
    function.config_write(0x10, &(bar + 0x10_0000).to_le_bytes()).unwrap();
    machine.memory().write_obj(0xf4_u8, GuestAddress(CODE)).unwrap();
    machine.reset();
    machine.pause();
    assert_eq!(config(0x10), bar);
    assert_eq!(config(4) & 0xffff, 0);
    let first: u8 = machine.memory().read_obj(GuestAddress(CODE)).unwrap();
    assert_eq!(first, programs::spin()[0]);
    machine.reset();
    assert_eq!(machine.resets(), 2, "while paused, too");
}

#[test]
fn function_memory_exits_and_unassigned_memory_reads_as_ones() {
    let Some((machine, end)) = run(&programs::load_from_nowhere(), |_| {}) else { return };
    assert_eq!(end, End::Exited(0));
    assert_eq!(machine.memory().read_obj::<u64>(GuestAddress(TEST_PAGE)).unwrap(), u64::MAX);
    assert_eq!(machine.exits().other, 2);
}

#[test]
fn configurations_that_make_no_machine_are_refused() {
    let refuse = |change: fn(&mut MachineConfig)| {
        let mut config = MachineConfig::new(test_guest::elf(CODE, &programs::spin()));
        change(&mut config);
        Machine::new(config).err().map(|error| error.is_usage())
    };
    assert_eq!(refuse(|config| config.cpus = 0), Some(true));
    assert_eq!(refuse(|config| config.cpus = 255), Some(true));
    assert_eq!(
        refuse(|config| config.functions = vec![FunctionConfig::software(1); 256]),
        Some(true)
    );
}
