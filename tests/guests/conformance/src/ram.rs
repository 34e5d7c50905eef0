//! The last MiB of RAM, which the tests see as RAM from address 0 on.

use core::ptr::NonNull;

use pvmsi_conformance::host::{RAM_BYTES, Ram};
use pvmsi_guest_runtime::memory;

/// Page numbers of the tests are below this where there is RAM.
const PAGES: u64 = RAM_BYTES >> 12;

/// The area, for all machines.
#[derive(Debug)]
pub(crate) struct TestRam {
    start: NonNull<u8>,
    first_page: u64,
}

// SAFETY: accessed by volatile accesses alone, as memory that the host and other vCPUs share.
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

    fn byte(&self, address: u64) -> Option<*mut u8> {
        let offset = usize::try_from(address).ok().filter(|_| address < PAGES << 12)?;
        Some(self.start.as_ptr().wrapping_add(offset))
    }
}

impl Ram for TestRam {
    fn read(&self, address: u64, data: &mut [u8]) {
        for (at, byte) in (address..).zip(data) {
            // SAFETY: inside the area.
            *byte = self.byte(at).map_or(0xff, |place| unsafe { place.read_volatile() });
        }
    }

    fn write(&self, address: u64, data: &[u8]) {
        for (at, byte) in (address..).zip(data) {
            if let Some(place) = self.byte(at) {
                // SAFETY: inside the area, which no Rust object occupies.
                unsafe { place.write_volatile(*byte) };
            }
        }
    }
}
