//! The last MiB of RAM, which the tests see as RAM from address 0 on.

use core::ptr::NonNull;

use pvmsi_conformance::host::{RAM_BYTES, Ram};
use pvmsi_guest_runtime::memory;

/// The area, for all machines.
#[derive(Debug)]
pub(crate) struct TestRam {
    start: NonNull<u8>,
    first_page: u64,
}

// SAFETY: memory that the host and other vCPUs share; a buffer of it has one user at a time.
unsafe impl Send for TestRam {}
// SAFETY: as above.
unsafe impl Sync for TestRam {}

impl TestRam {
    /// Takes it; once.
    pub(crate) fn take() -> Option<Self> {
        let area = memory::allocate_last(usize::try_from(RAM_BYTES).ok()?)?;
        Some(Self { start: area.start(), first_page: area.physical() >> 12 })
    }

    /// What a guest writes to the doorbell for a page number of the tests. What is no RAM for them is none for the host.
    pub(crate) fn page(&self, page: u64) -> u64 {
        page.saturating_add(self.first_page)
    }

    /// The same for a doorbell of 32 bits.
    pub(crate) fn page_32(&self, page: u32) -> u32 {
        u32::try_from(self.page(page.into())).unwrap_or(u32::MAX)
    }

    fn place(&self, address: u64) -> Option<*mut u8> {
        let offset = usize::try_from(address).ok().filter(|_| address < RAM_BYTES)?;
        Some(self.start.as_ptr().wrapping_add(offset))
    }
}

/// How many bytes of so many are RAM.
fn room(address: u64, bytes: usize) -> usize {
    usize::try_from(RAM_BYTES.saturating_sub(address)).unwrap_or(0).min(bytes)
}

impl Ram for TestRam {
    fn read(&self, address: u64, data: &mut [u8]) {
        let (inside, beyond) = data.split_at_mut(room(address, data.len()));
        if let Some(place) = self.place(address) {
            // SAFETY: inside the area. The host writes there while a doorbell is rung, and not now.
            unsafe { inside.as_mut_ptr().copy_from(place, inside.len()) };
        }
        beyond.fill(0xff);
    }

    fn write(&self, address: u64, data: &[u8]) {
        let (inside, _) = data.split_at(room(address, data.len()));
        if let Some(place) = self.place(address) {
            // SAFETY: inside the area, which no Rust object occupies.
            unsafe { place.copy_from(inside.as_ptr(), inside.len()) };
        }
    }
}
