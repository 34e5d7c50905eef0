//! Registers of devices in the identity map.
//!
//! Accesses happen in the order of the program, with each other and with
//! memory, as far as the processor does not keep it by itself; only a write
//! followed by a read of something else needs a fence.

use crate::arch::mmio;

/// A value that one access moves.
pub trait Width: mmio::Access {}
impl Width for u8 {}
impl Width for u16 {}
impl Width for u32 {}
impl Width for u64 {}

/// A register, or a word of memory that a device shares.
#[derive(Debug)]
pub struct Register<T>(*mut T);

impl<T> Clone for Register<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Register<T> {}

// SAFETY: an address; what concurrent accesses do is the device's business, not the language's.
unsafe impl<T> Send for Register<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Register<T> {}

impl<T: Width> Register<T> {
    /// The register at a guest physical address.
    ///
    /// # Safety
    /// 1. `address` is not 0, aligned for `T` and inside the identity map.
    /// 2. No access through the register touches memory that Rust code holds references to.
    pub unsafe fn at(address: usize) -> Self {
        Self(core::ptr::with_exposed_provenance_mut(address))
    }

    /// Reads it, by one instruction.
    pub fn read(self) -> T {
        // SAFETY: the conditions of `at`.
        unsafe { mmio::read(self.0) }
    }

    /// Writes it, by one instruction.
    pub fn write(self, value: T) {
        // SAFETY: the conditions of `at`.
        unsafe { mmio::write(self.0, value) }
    }
}
