//! What differs between processors: discovery, the port doorbell, and how device memory is accessed.
//!
//! Everything else in this crate is the same on every architecture.

use core::ptr::NonNull;
use core::sync::atomic::{Ordering, fence};

use pvmsi_protocol::CpuidBlock;

/// Asks the processor whether the host offers the service.
///
/// x86_64: scans the CPUID hypervisor leaves (0x4000_0000 to 0x4000_ff00) for
/// PV-MSI's block; without a hypervisor, or under another one, that finds
/// nothing and has no effect. Elsewhere: `None`, the platform's device
/// description has to tell.
#[cfg(target_arch = "x86_64")]
pub fn discover() -> Option<CpuidBlock> {
    use pvmsi_protocol::CpuidLeaf;

    CpuidBlock::find(|leaf| {
        #[allow(unused_unsafe, reason = "newer compilers know it as safe")]
        // SAFETY: every x86_64 processor has CPUID, and any leaf may be asked for.
        let result = unsafe { core::arch::x86_64::__cpuid_count(leaf, 0) };
        CpuidLeaf { eax: result.eax, ebx: result.ebx, ecx: result.ecx, edx: result.edx }
    })
}

/// Asks the processor whether the host offers the service. Not on this architecture: the
/// platform's device description has to tell.
#[cfg(not(target_arch = "x86_64"))]
pub fn discover() -> Option<CpuidBlock> {
    None
}

/// Writes 32 bits to an I/O port.
///
/// # Safety
/// The caller may use the port, and the write does to this machine what the caller says it does.
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn write_port_u32(port: u16, value: u32) {
    // SAFETY: the caller's condition. Without `nomem` the compiler assumes that any memory may
    // have been read and written, which is what a doorbell does.
    unsafe {
        core::arch::asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags));
    }
}

/// Writes 32 bits to device memory, after every earlier access to memory.
///
/// # Safety
/// `register` is mapped, aligned to 4 bytes, and may be written.
pub(crate) unsafe fn write_device_u32(register: NonNull<u32>, value: u32) {
    fence(Ordering::Release);
    #[cfg(test)]
    trace::record(trace::Access::Write(register, value));
    // SAFETY: the caller's condition.
    unsafe { register.write_volatile(value) }
}

/// Reads 32 bits of device memory, before every later access to memory.
///
/// # Safety
/// `register` is mapped, aligned to 4 bytes, and may be read.
pub(crate) unsafe fn read_device_u32(register: NonNull<u32>) -> u32 {
    #[cfg(test)]
    trace::record(trace::Access::Read(register));
    // SAFETY: the caller's condition.
    let value = unsafe { register.read_volatile() };
    fence(Ordering::Acquire);
    value
}

/// The accesses to device memory of the running test, in order.
#[cfg(test)]
pub(crate) mod trace {
    use core::cell::RefCell;
    use core::ptr::NonNull;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Access {
        Read(NonNull<u32>),
        Write(NonNull<u32>, u32),
    }

    std::thread_local! {
        static ACCESSES: RefCell<Vec<Access>> = const { RefCell::new(Vec::new()) };
    }

    pub(crate) fn record(access: Access) {
        ACCESSES.with_borrow_mut(|accesses| accesses.push(access));
    }

    /// What this thread has accessed since the last call.
    pub(crate) fn take() -> Vec<Access> {
        ACCESSES.with_borrow_mut(core::mem::take)
    }
}
