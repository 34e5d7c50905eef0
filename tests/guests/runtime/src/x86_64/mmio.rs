//! Accesses to device memory. The processor keeps their order.

/// A value that one access moves.
pub trait Access: Copy {}
impl<T: Copy> Access for T {}

/// Reads by one instruction.
///
/// # Safety
/// `register` is mapped and aligned, and may be read.
pub(crate) unsafe fn read<T: Access>(register: *const T) -> T {
    // SAFETY: the caller's condition.
    unsafe { register.read_volatile() }
}

/// Writes by one instruction.
///
/// # Safety
/// `register` is mapped and aligned, and may be written.
pub(crate) unsafe fn write<T: Access>(register: *mut T, value: T) {
    // SAFETY: the caller's condition.
    unsafe { register.write_volatile(value) }
}
