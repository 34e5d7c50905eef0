//! The instructions of x86_64.

use core::arch::asm;

use x86_64::instructions::port::Port;

/// Guest physical address of the page that host and guest share.
pub(crate) const PAGE: usize = 0x8000;

// One instruction each, at any alignment: tests want accesses that Rust's own would not be allowed to make.
pub(crate) fn load(address: usize, width: u64) -> u64 {
    let value: u64;
    macro_rules! load {
        ($instruction:literal) => {
            // SAFETY: the test says that this address may be read.
            unsafe {
                asm!($instruction, address = in(reg) address, value = out(reg) value, options(nostack, preserves_flags));
            }
        };
    }
    match width {
        1 => load!("movzx {value:e}, byte ptr [{address}]"),
        2 => load!("movzx {value:e}, word ptr [{address}]"),
        4 => load!("mov {value:e}, dword ptr [{address}]"),
        8 => load!("mov {value}, qword ptr [{address}]"),
        _ => value = u64::MAX,
    }
    value
}

pub(crate) fn store(address: usize, width: u64, value: u64) -> u64 {
    macro_rules! store {
        ($instruction:literal) => {
            // SAFETY: the test says that this address may be written.
            unsafe {
                asm!($instruction, address = in(reg) address, value = in(reg) value, options(nostack, preserves_flags));
            }
        };
    }
    match width {
        // AL, because only some registers have a byte.
        1 => {
            // SAFETY: as above.
            unsafe {
                asm!("mov byte ptr [{address}], al", address = in(reg) address, in("rax") value, options(nostack, preserves_flags));
            }
        }
        2 => store!("mov word ptr [{address}], {value:x}"),
        4 => store!("mov dword ptr [{address}], {value:e}"),
        8 => store!("mov qword ptr [{address}], {value}"),
        _ => return u64::MAX,
    }
    0
}

#[allow(clippy::multiple_unsafe_ops_per_block, reason = "one access, of one of three widths")]
pub(crate) fn port_in(port: u16, width: u64) -> u64 {
    // SAFETY: the test says that this port may be read.
    unsafe {
        match width {
            1 => Port::<u8>::new(port).read().into(),
            2 => Port::<u16>::new(port).read().into(),
            4 => Port::<u32>::new(port).read().into(),
            _ => u64::MAX,
        }
    }
}

#[allow(clippy::multiple_unsafe_ops_per_block, reason = "one access, of one of three widths")]
pub(crate) fn port_out(port: u16, width: u64, value: u64) -> u64 {
    let [b0, b1, b2, b3, ..] = value.to_le_bytes();
    // SAFETY: the test says that this port may be written.
    unsafe {
        match width {
            1 => Port::<u8>::new(port).write(b0),
            2 => Port::<u16>::new(port).write(u16::from_le_bytes([b0, b1])),
            4 => Port::<u32>::new(port).write(u32::from_le_bytes([b0, b1, b2, b3])),
            _ => return u64::MAX,
        }
    }
    0
}

pub(crate) fn cpuid(leaf: u64, subleaf: u64) -> [u64; 4] {
    let low = |value: u64| u32::try_from(value & u64::from(u32::MAX)).unwrap_or(0);
    #[allow(unused_unsafe, reason = "safe since Rust 1.94, unsafe before")]
    // SAFETY: every x86_64 processor has CPUID.
    let result = unsafe { core::arch::x86_64::__cpuid_count(low(leaf), low(subleaf)) };
    [result.eax.into(), result.ebx.into(), result.ecx.into(), result.edx.into()]
}
