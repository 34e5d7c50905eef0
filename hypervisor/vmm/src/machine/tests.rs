//! Machines on the KVM of this host, with hand-made guests. Skipped where there is no KVM.

use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::config::FunctionConfig;
use crate::test_guest;

const CODE: u64 = 0x20_0000;
const LONG: Option<Duration> = Some(Duration::from_secs(20));

fn machine(code: &[u8], change: impl FnOnce(&mut MachineConfig)) -> Option<Machine> {
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        // As `cargo xtask test` has it: continuous integration must have what it can have.
        let may_lack =
            std::env::var_os("CI").is_none() || std::env::var_os("PVMSI_CI_WITHOUT_KVM").is_some();
        assert!(may_lack, "/dev/kvm: {error}");
        eprintln!("skipped: /dev/kvm: {error}");
        return None;
    }
    let mut config = MachineConfig::new(test_guest::elf(CODE, code));
    config.memory_bytes = 4 << 20;
    change(&mut config);
    Some(Machine::new(config).unwrap())
}

fn run(code: &[u8], change: impl FnOnce(&mut MachineConfig)) -> Option<(Machine, End)> {
    let machine = machine(code, change)?;
    machine.resume();
    let end = machine.wait(LONG).unwrap_or_else(|| {
        machine.pause();
        panic!("no end: {:?}", machine.describe_vcpus())
    });
    Some((machine, end))
}

#[test]
fn a_guest_ends_the_run_with_its_status() {
    // mov al, 7; out 0xf4, al; hlt
    let Some((machine, end)) = run(&[0xb0, 7, 0xe6, 0xf4, 0xf4], |_| {}) else { return };
    assert_eq!(end, End::Exited(7));
    assert_eq!(machine.exits().total(), 1);
    assert!(!machine.report().passed());
}

#[test]
fn a_guest_without_a_stack_reports_its_fault() {
    // ud2, without an IDT: triple fault.
    let Some((_, end)) = run(&[0x0f, 0x0b], |_| {}) else { return };
    let End::Failed(why) = end else { panic!("{end:?}") };
    assert!(why.contains("rip 0x200000"), "{why}");
}

#[test]
fn serial_output_arrives_and_is_counted() {
    // mov dx, 0x3f8; mov al, 'h'; out dx, al; mov al, 'i'; out dx, al; xor al, al; out 0xf4, al
    let code = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'h', 0xee, 0xb0, b'i', 0xee, 0x30, 0xc0, 0xe6, 0xf4];
    let Some((machine, end)) = run(&code, |_| {}) else { return };
    assert_eq!(end, End::Exited(0));
    assert_eq!(machine.serial_output(), b"hi");
    assert_eq!((machine.exits().serial, machine.exits().total()), (2, 3));
    assert!(machine.report().passed());
}

#[test]
fn every_vcpu_starts_with_its_index_and_start_info() {
    // mov [rsi*8 + 0x8000], rdi; cmp rsi, 1; jne forever; wait for vCPU 0; out 0xf4
    let code = [
        0x48, 0x89, 0x3c, 0xf5, 0x00, 0x80, 0x00, 0x00, // mov [rsi*8+0x8000], rdi
        0x48, 0x83, 0xfe, 0x01, // cmp rsi, 1
        0x75, 0xfe, // jne .
        0x48, 0x83, 0x3c, 0x25, 0x00, 0x80, 0x00, 0x00, 0x00, // cmp qword [0x8000], 0
        0x74, 0xf5, // je back
        0x30, 0xc0, 0xe6, 0xf4, // exit 0
    ];
    let Some((machine, end)) = run(&code, |config| config.cpus = 2) else { return };
    assert_eq!(end, End::Exited(0));
    for slot in 0..2 {
        let start: u64 = machine.memory().read_obj(GuestAddress(0x8000 + 8 * slot)).unwrap();
        assert_eq!(start, boot::START_INFO);
    }
}

#[test]
fn a_paused_machine_stands_still_and_goes_on() {
    // l: inc qword [0x8000]; jmp l
    let code = [0x48, 0xff, 0x04, 0x25, 0x00, 0x80, 0x00, 0x00, 0xeb, 0xf6];
    let Some(machine) = machine(&code, |config| config.cpus = 2) else { return };
    let count = || machine.memory().read_obj::<u64>(GuestAddress(0x8000)).unwrap();
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
    // inc dword [0x8000]; cmp dword [0x8000], 3; je done; mov dx, 0xcf9; mov al, 6; out dx, al; hlt
    let code = [
        0xff, 0x04, 0x25, 0x00, 0x80, 0x00, 0x00, // inc dword [0x8000]
        0x83, 0x3c, 0x25, 0x00, 0x80, 0x00, 0x00, 0x03, // cmp dword [0x8000], 3
        0x74, 0x08, // je done
        0x66, 0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, // out 0xcf9, 6
        0xf4, // hlt
        0x30, 0xc0, 0xe6, 0xf4, // done: exit 0
    ];
    let Some((machine, end)) = run(&code, |config| {
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
    // jmp .
    let Some(machine) = machine(&[0xeb, 0xfe], |config| {
        config.functions.push(FunctionConfig::software(8));
        config.cpus = 2;
    }) else {
        return;
    };
    let id = machine.functions()[0].id;
    let config = |offset| {
        let mut data = [0; 4];
        assert!(machine.service().config_read(id, offset, &mut data));
        u32::from_le_bytes(data)
    };
    let bar = config(0x10);
    assert!(memory::BAR_WINDOW.contains(&u64::from(bar)), "{bar:#x}");
    assert_eq!(config(4) & 0xffff, 0, "COMMAND");
    machine.resume();
    machine.service().config_write(id, 4, &[2, 0]);
    machine.service().config_write(id, 0x10, &0xd000_0000_u32.to_le_bytes());
    machine.memory().write_obj(0xf4_u8, GuestAddress(CODE)).unwrap();
    machine.reset();
    machine.pause();
    assert_eq!(config(0x10), bar);
    assert_eq!(config(4) & 0xffff, 0);
    assert_eq!(machine.memory().read_obj::<u8>(GuestAddress(CODE)).unwrap(), 0xeb);
    machine.reset();
    assert_eq!(machine.resets(), 2, "while paused, too");
}

#[test]
fn function_memory_exits_and_unassigned_memory_reads_as_ones() {
    // mov rax, [0xfe000000]; mov [0x8000], rax; exit 0
    let code = [
        0xb9, 0x00, 0x00, 0x00, 0xfe, // mov ecx, 0xfe000000
        0x48, 0x8b, 0x01, // mov rax, [rcx]
        0x48, 0x89, 0x04, 0x25, 0x00, 0x80, 0x00, 0x00, // mov [0x8000], rax
        0x30, 0xc0, 0xe6, 0xf4,
    ];
    let Some((machine, end)) = run(&code, |_| {}) else { return };
    assert_eq!(end, End::Exited(0));
    assert_eq!(machine.memory().read_obj::<u64>(GuestAddress(0x8000)).unwrap(), u64::MAX);
    assert_eq!(machine.exits().other, 2);
}

#[test]
fn configurations_that_make_no_machine_are_refused() {
    let refuse = |change: fn(&mut MachineConfig)| {
        let mut config = MachineConfig::new(test_guest::elf(CODE, &[0xf4]));
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
