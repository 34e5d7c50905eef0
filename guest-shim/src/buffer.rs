//! The memory that carries calls, and when the guest may look at it.
//!
//! The host writes a call buffer only while the doorbell is rung. Between two
//! rings the buffer is ordinary memory that this crate owns, so plain
//! references to it are sound as long as none lives across a ring. That is
//! what the borrows here enforce: every access borrows the buffer, and ringing
//! borrows it mutably.

use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{Ordering, fence};

use pvmsi_protocol::{BUFFER_ALIGNMENT, BUFFER_MAX, BufferPage, Header};

use crate::Doorbell;

/// Memory for calls: 4 KiB to 64 KiB, physically contiguous, owned by one [`Client`](crate::Client).
///
/// 4 KiB serve every call except `configure` and `update` of some hundred vectors;
/// [`bytes_for`](Self::bytes_for) says how much those need. One processor can use one buffer at a
/// time: give each processor its own client, or share one client behind the kernel's lock.
pub struct CallBuffer<'b> {
    start: NonNull<u8>,
    length: usize,
    page: BufferPage,
    memory: PhantomData<&'b mut [u8]>,
}

// SAFETY: the buffer owns its memory exclusively, as a `&mut [u8]` does (condition 2 of `new`).
unsafe impl Send for CallBuffer<'_> {}

impl<'b> CallBuffer<'b> {
    /// A buffer of `length` bytes at `start`, which the guest's memory holds at the guest physical address `physical`.
    ///
    /// `None` when the address is not a multiple of 4096 or not below 16 TiB, or the length is not
    /// between 4096 and 65,536.
    ///
    /// # Safety
    /// 1. `start` is valid for reads and writes of `length` bytes for `'b`, and initialised.
    /// 2. Nothing else in the guest reads or writes that memory during `'b`.
    /// 3. `physical` is where that memory begins in the guest's physical address space, and it is contiguous there. Otherwise the host overwrites other memory.
    /// 4. The memory is ordinary, cached RAM, and the host writes to it only while a doorbell is rung with its page number (the protocol promises that).
    pub unsafe fn new(start: NonNull<u8>, length: usize, physical: u64) -> Option<Self> {
        if !(BUFFER_ALIGNMENT..=BUFFER_MAX).contains(&length) {
            return None;
        }
        let page = BufferPage::from_address(physical)?;
        Some(Self { start, length, page, memory: PhantomData })
    }

    /// Bytes of call buffer that a `configure` or an `update` of `vectors` vectors needs at most. 2048 vectors need less than 40 KiB.
    pub const fn bytes_for(vectors: u16) -> usize {
        // Head, list length and the widest encoding of an item, of `configure`'s request
        // (17 bytes), its answer (17 bytes) and `update`'s request (18 bytes).
        (vectors as usize).saturating_mul(18).saturating_add(Header::SIZE + 32)
    }

    /// Length in bytes.
    pub const fn length(&self) -> usize {
        self.length
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: conditions 1 and 2 of `new`; `ring` needs the buffer mutably, so the host does
        // not write while this reference lives (condition 4).
        unsafe { core::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and the borrow is exclusive.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }

    /// Hands the buffer over to the host and takes it back.
    pub(crate) fn ring(&mut self, doorbell: &impl Doorbell) {
        // The host, on whichever processor it runs, must see the request; the guest must not
        // read the answer early. Fences order the compiler as well as the processor.
        fence(Ordering::SeqCst);
        doorbell.ring(self.page);
        fence(Ordering::SeqCst);
    }
}

impl fmt::Debug for CallBuffer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallBuffer")
            .field("physical", &self.page.address())
            .field("length", &self.length)
            .finish()
    }
}
