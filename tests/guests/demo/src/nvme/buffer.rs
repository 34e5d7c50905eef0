//! Memory for the reads of one queue, and what the disk must hold.

use pvmsi_guest_runtime::memory::{self, PAGE};

use super::queue;

/// What each 8-byte word of the disk is combined with: it holds its own byte offset exclusive-or this.
const PATTERN: u64 = 0x5650_4d53_4950_4d53;

/// Bytes of one read at most: 32 pages.
pub(crate) const READ_BYTES: usize = 128 << 10;

/// Reads under way on one queue.
pub(crate) const DEPTH: usize = 4;

/// Memory for one read, and the list of its pages but the first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffer {
    /// Where the data arrive.
    pub(crate) data: memory::Area,
    list: memory::Area,
}

impl Buffer {
    /// The buffers of one queue. `None` when the RAM is used up.
    pub(crate) fn several() -> Option<[Self; DEPTH]> {
        let new = || {
            let buffer =
                Self { data: memory::allocate(READ_BYTES)?, list: memory::allocate(PAGE)? };
            for index in 0..READ_BYTES / PAGE {
                let page = buffer
                    .data
                    .physical()
                    .checked_add(u64::try_from(index.checked_add(1)?.checked_mul(PAGE)?).ok()?)?;
                let [b0, b1, b2, b3, b4, b5, b6, b7] = page.to_le_bytes();
                let at = index.checked_mul(2)?;
                queue::word(buffer.list, at).write(u32::from_le_bytes([b0, b1, b2, b3]));
                queue::word(buffer.list, at | 1).write(u32::from_le_bytes([b4, b5, b6, b7]));
            }
            Some(buffer)
        };
        Some([new()?, new()?, new()?, new()?])
    }

    /// PRP entry 2 of a read of so many bytes: nothing, the second page, or the list.
    pub(crate) fn second(&self, bytes: u64) -> u64 {
        match bytes.div_ceil(PAGE as u64) {
            0 | 1 => 0,
            2 => self.data.physical().wrapping_add(PAGE as u64),
            _ => self.list.physical(),
        }
    }

    /// Compares what was read with what the disk holds from `offset` on; returns the bytes of words that differ, and spoils the buffer, so that data that do not arrive next time are noticed.
    pub(crate) fn wrong_bytes(&self, offset: u64, bytes: u64) -> u64 {
        let words = usize::try_from(bytes / 8).unwrap_or(0).min(READ_BYTES / 8);
        let start = self.data.start().cast::<u64>();
        // SAFETY: the area has READ_BYTES bytes, any of them is a number, and
        // its read is complete: nobody else accesses it now.
        let words = unsafe { core::slice::from_raw_parts_mut(start.as_ptr(), words) };
        let mut wrong = 0u64;
        let mut expected = offset;
        for word in words {
            if *word != (expected ^ PATTERN).to_le() {
                wrong = wrong.wrapping_add(8);
            }
            *word = 0;
            expected = expected.wrapping_add(8);
        }
        wrong
    }
}
