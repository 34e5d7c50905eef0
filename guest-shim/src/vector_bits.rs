//! One bit for each vector of a function, changed without locks.

use core::sync::atomic::{AtomicU32, Ordering};

use pvmsi_protocol::{VECTORS_MAX, VectorIndex};

const WORDS: usize = VECTORS_MAX as usize / 32;

/// A bit for each of 2048 vectors. A vector beyond them has no bit: it reads as clear.
#[derive(Debug)]
pub(crate) struct VectorBits([AtomicU32; WORDS]);

impl VectorBits {
    pub(crate) const fn new() -> Self {
        Self([const { AtomicU32::new(0) }; WORDS])
    }

    /// Sets the bit; says whether it was set before.
    pub(crate) fn set(&self, vector: VectorIndex) -> bool {
        self.word(vector).is_some_and(|(word, bit)| word.fetch_or(bit, Ordering::SeqCst) & bit != 0)
    }

    /// Clears the bit; says whether it was set before. Of several processors that clear one bit, one is told so.
    pub(crate) fn clear(&self, vector: VectorIndex) -> bool {
        self.word(vector)
            .is_some_and(|(word, bit)| word.fetch_and(!bit, Ordering::SeqCst) & bit != 0)
    }

    pub(crate) fn get(&self, vector: VectorIndex) -> bool {
        self.word(vector).is_some_and(|(word, bit)| word.load(Ordering::SeqCst) & bit != 0)
    }

    /// Sets all bits, or clears them.
    pub(crate) fn fill(&self, set: bool) {
        for word in &self.0 {
            word.store(if set { u32::MAX } else { 0 }, Ordering::SeqCst);
        }
    }

    fn word(&self, vector: VectorIndex) -> Option<(&AtomicU32, u32)> {
        Some((self.0.get(vector.as_usize() / 32)?, 1 << (vector.0 % 32)))
    }
}
