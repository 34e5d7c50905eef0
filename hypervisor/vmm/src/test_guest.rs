//! Hand-made guests, and machines on this host's KVM that run them. Tests are skipped where there is no KVM.

use std::time::Duration;

use kvm_ioctls::Kvm;

use crate::arch::{ELF_MACHINE, LOAD_MIN};
use crate::config::MachineConfig;
use crate::control::End;
use crate::machine::Machine;

/// Where the code of a test lies.
pub(crate) const CODE: u64 = LOAD_MIN + 0x10_0000;
/// `KVM_GET_API_VERSION`, since Linux 2.6.22.
const API_VERSION: i32 = 12;
/// Patience for busy hosts.
pub(crate) const LONG: Option<Duration> = Some(Duration::from_secs(20));

/// A machine for this code, not running yet; `None` where this host cannot run one.
pub(crate) fn machine(code: &[u8], change: impl FnOnce(&mut MachineConfig)) -> Option<Machine> {
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        // As `cargo xtask test` has it: continuous integration must have what it can have.
        let may_lack =
            std::env::var_os("CI").is_none() || std::env::var_os("PVMSI_CI_WITHOUT_KVM").is_some();
        assert!(may_lack, "/dev/kvm: {error}");
        eprintln!("skipped: /dev/kvm: {error}");
        return None;
    }
    // What runs this test is not this host's processor, and cannot use its KVM (qemu-user).
    if Kvm::new().unwrap().get_api_version() != API_VERSION {
        eprintln!("skipped: /dev/kvm does not answer");
        return None;
    }
    let mut config = MachineConfig::new(elf(CODE, code));
    config.memory_bytes = 4 << 20;
    change(&mut config);
    Some(Machine::new(config).unwrap())
}

/// Runs the code to its end.
pub(crate) fn run(code: &[u8], change: impl FnOnce(&mut MachineConfig)) -> Option<(Machine, End)> {
    let machine = machine(code, change)?;
    machine.resume();
    let end = machine.wait(LONG).unwrap_or_else(|| {
        machine.pause();
        panic!("no end: {:?}", machine.describe_vcpus())
    });
    Some((machine, end))
}

/// An ELF64 program with one segment that holds `code`, entered at its start.
pub(crate) fn elf(address: u64, code: &[u8]) -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend(2_u16.to_le_bytes());
    file.extend(ELF_MACHINE.to_le_bytes());
    file.extend(1_u32.to_le_bytes());
    file.extend(address.to_le_bytes());
    file.extend(64_u64.to_le_bytes());
    file.extend(0_u64.to_le_bytes());
    file.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes());
    file.extend(7_u32.to_le_bytes());
    let size = u64::try_from(code.len()).unwrap();
    for word in [HEADERS, address, address, size, size, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}
