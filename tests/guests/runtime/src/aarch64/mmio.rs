//! Accesses to device memory: single instructions that a hypervisor can decode, with the barriers that keep the program's order.

use core::arch::asm;
use core::ptr::NonNull;

use safe_mmio::UniqueMmioPointer;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A value that one access moves.
pub trait Access: Copy + FromBytes + Immutable + IntoBytes {}
impl<T: Copy + FromBytes + Immutable + IntoBytes> Access for T {}

/// Reads by one instruction, before every later access to memory.
///
/// # Safety
/// `register` is mapped and aligned, and may be read.
pub(crate) unsafe fn read<T: Access>(register: *mut T) -> T {
    let Some(register) = NonNull::new(register) else { return T::new_zeroed() };
    // SAFETY: the caller's condition. It is gone before another one of the same register is made
    // on this vCPU, and the accesses of others are the device's business.
    let mut pointer = unsafe { UniqueMmioPointer::new(register) };
    // SAFETY: the caller's condition.
    let value = unsafe { pointer.read_unsafe() };
    // SAFETY: a barrier has no effect but order.
    unsafe { asm!("dmb oshld", options(nostack, preserves_flags)) };
    value
}

/// Writes by one instruction, after every earlier access to memory.
///
/// # Safety
/// `register` is mapped and aligned, and may be written.
pub(crate) unsafe fn write<T: Access>(register: *mut T, value: T) {
    let Some(register) = NonNull::new(register) else { return };
    // SAFETY: a barrier has no effect but order.
    unsafe { asm!("dmb osh", options(nostack, preserves_flags)) };
    // SAFETY: as in `read`.
    let mut pointer = unsafe { UniqueMmioPointer::new(register) };
    // SAFETY: the caller's condition.
    unsafe { pointer.write_unsafe(value) };
}
