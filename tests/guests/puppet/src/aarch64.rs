//! The instructions of arm64. It has neither ports nor CPUID.

use core::arch::asm;

/// Guest physical address of the page that host and guest share.
pub(crate) const PAGE: usize = 0x4001_0000;

// One instruction each: a compiler might choose one that KVM cannot emulate.
pub(crate) fn load(address: usize, width: u64) -> u64 {
    let value: u64;
    macro_rules! load {
        ($instruction:literal) => {
            // SAFETY: the test says that this address may be read.
            unsafe {
                asm!($instruction, "dmb osh", address = in(reg) address, value = out(reg) value, options(nostack, preserves_flags));
            }
        };
    }
    match width {
        1 => load!("ldrb {value:w}, [{address}]"),
        2 => load!("ldrh {value:w}, [{address}]"),
        4 => load!("ldr {value:w}, [{address}]"),
        8 => load!("ldr {value}, [{address}]"),
        _ => value = u64::MAX,
    }
    value
}

pub(crate) fn store(address: usize, width: u64, value: u64) -> u64 {
    macro_rules! store {
        ($instruction:literal) => {
            // SAFETY: the test says that this address may be written.
            unsafe {
                asm!("dmb osh", $instruction, address = in(reg) address, value = in(reg) value, options(nostack, preserves_flags));
            }
        };
    }
    match width {
        1 => store!("strb {value:w}, [{address}]"),
        2 => store!("strh {value:w}, [{address}]"),
        4 => store!("str {value:w}, [{address}]"),
        8 => store!("str {value}, [{address}]"),
        _ => return u64::MAX,
    }
    0
}

pub(crate) fn port_in(_port: u16, _width: u64) -> u64 {
    u64::MAX
}

pub(crate) fn port_out(_port: u16, _width: u64, _value: u64) -> u64 {
    u64::MAX
}

pub(crate) fn cpuid(_leaf: u64, _subleaf: u64) -> [u64; 4] {
    [u64::MAX; 4]
}
