//! The vector table and the pending bit array, as registers.
//!
//! Source: PCI Local Bus Specification 3.0, section 6.8.2: entries of 16
//! bytes, accessed 32 bits at a time.

use core::ptr::NonNull;

use pvmsi_protocol::{GuestMessage, VectorIndex};

use crate::arch;

const ENTRY_WORDS: usize = 4;
const ADDRESS_LOW: usize = 0;
const ADDRESS_HIGH: usize = 1;
const DATA: usize = 2;
const VECTOR_CONTROL: usize = 3;

/// The mask bit in vector control; the other bits are not ours to change.
pub(crate) const MASK: u32 = 1;

/// The mapped registers of one function. Accesses outside of them do nothing.
#[derive(Debug)]
pub(crate) struct VectorTable {
    entries: NonNull<u32>,
    pending: Option<NonNull<u32>>,
    size: u16,
}

// SAFETY: device registers have no owner among threads; every access is one volatile load or
// store of 32 bits.
unsafe impl Send for VectorTable {}
// SAFETY: as above; no method relies on another not running at the same time.
unsafe impl Sync for VectorTable {}

impl VectorTable {
    /// # Safety
    /// As [`MsiX::new`](crate::MsiX::new), with `size` entries.
    pub(crate) const unsafe fn new(
        entries: NonNull<u32>,
        pending: Option<NonNull<u32>>,
        size: u16,
    ) -> Self {
        Self { entries, pending, size }
    }

    /// Number of entries.
    pub(crate) const fn size(&self) -> u16 {
        self.size
    }

    /// Writes address and data. The entry must be masked.
    pub(crate) fn write_message(&self, vector: VectorIndex, message: GuestMessage) {
        let [low @ .., h0, h1, h2, h3] = message.address.to_le_bytes();
        self.write(vector, ADDRESS_LOW, u32::from_le_bytes(low));
        self.write(vector, ADDRESS_HIGH, u32::from_le_bytes([h0, h1, h2, h3]));
        self.write(vector, DATA, message.data);
    }

    pub(crate) fn vector_control(&self, vector: VectorIndex) -> u32 {
        self.register(vector, VECTOR_CONTROL).map_or(0, |register| {
            // SAFETY: `register` gives only registers inside the mapped table.
            unsafe { arch::read_device_u32(register) }
        })
    }

    pub(crate) fn write_vector_control(&self, vector: VectorIndex, value: u32) {
        self.write(vector, VECTOR_CONTROL, value);
    }

    /// The pending bit of a vector; `None` without a mapped pending bit array.
    pub(crate) fn is_pending(&self, vector: VectorIndex) -> Option<bool> {
        let array = self.pending.filter(|_| vector.0 < self.size)?;
        // SAFETY: the array has a bit for each of `size` entries and is mapped whole.
        let word = unsafe { array.add(vector.as_usize() / 32) };
        // SAFETY: as above.
        let bits = unsafe { arch::read_device_u32(word) };
        Some(bits & (1 << (vector.0 % 32)) != 0)
    }

    fn write(&self, vector: VectorIndex, word: usize, value: u32) {
        if let Some(register) = self.register(vector, word) {
            // SAFETY: `register` gives only registers inside the mapped table.
            unsafe { arch::write_device_u32(register, value) }
        }
    }

    fn register(&self, vector: VectorIndex, word: usize) -> Option<NonNull<u32>> {
        if vector.0 >= self.size || word >= ENTRY_WORDS {
            return None;
        }
        let index = vector.as_usize().checked_mul(ENTRY_WORDS)?.checked_add(word)?;
        // SAFETY: the index lies inside the table, which is mapped whole (condition 1 of `new`).
        Some(unsafe { self.entries.add(index) })
    }
}
