//! What differs between processors: discovery, the doorbell, and how device memory is ordered.
//!
//! Everything else in this crate is the same on every architecture.

use core::ptr::NonNull;

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub use aarch64::{Conduit, NativeDoorbell, SmcccDoorbell, discover};
#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::{Transport, load_u32, native_doorbell, store_u32};
#[cfg(target_arch = "x86_64")]
pub use x86_64::{NativeDoorbell, PortDoorbell, discover};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{Transport, load_u32, native_doorbell, store_u32};

#[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
compile_error!("PV-MSI is for x86_64 and aarch64");

/// Writes 32 bits to device memory, after every earlier access to memory.
///
/// # Safety
/// `register` is mapped, aligned to 4 bytes, and may be written.
pub(crate) unsafe fn write_device_u32(register: NonNull<u32>, value: u32) {
    #[cfg(test)]
    trace::record(trace::Access::Write(register, value));
    // SAFETY: the caller's condition.
    unsafe { store_u32(register, value) }
}

/// Reads 32 bits of device memory, before every later access to memory.
///
/// # Safety
/// `register` is mapped, aligned to 4 bytes, and may be read.
pub(crate) unsafe fn read_device_u32(register: NonNull<u32>) -> u32 {
    #[cfg(test)]
    trace::record(trace::Access::Read(register));
    // SAFETY: the caller's condition.
    unsafe { load_u32(register) }
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
