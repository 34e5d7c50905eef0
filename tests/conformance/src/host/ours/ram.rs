//! Guest RAM, and a second processor of the guest that acts between the host's accesses to it.

use std::cell::RefCell;

use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion,
    GuestMemoryRegionBytes, GuestRegionCollection, GuestUsize, MemoryRegionAddress, VolatileSlice,
};

use super::super::{RAM_BYTES, Ram};

pub(super) fn new() -> Result<GuestMemoryMmap, Box<dyn std::error::Error>> {
    Ok(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), usize::try_from(RAM_BYTES)?)])?)
}

impl Ram for GuestMemoryMmap {
    fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        // What lies beyond the end keeps the ones.
        let _ = Bytes::read(self, data, GuestAddress(address));
    }

    fn write(&self, address: u64, data: &[u8]) {
        let _ = Bytes::write(self, data, GuestAddress(address));
    }
}

/// What the other processor does before an access.
type Watcher<'w> = &'w mut dyn FnMut(&dyn Ram);

/// Runs `act` with memory that calls `watcher` before each access. `true`: it was watched.
pub(super) fn watched(
    ram: &GuestMemoryMmap,
    watcher: Watcher<'_>,
    act: impl FnOnce(&GuestRegionCollection<WatchedRegion<'_>>),
) -> bool {
    let region = WatchedRegion { ram, watcher: RefCell::new(watcher) };
    GuestRegionCollection::from_regions(vec![region]).map(|memory| act(&memory)).is_ok()
}

/// All of RAM. Whoever accesses it asks for a slice first, and then the watcher runs.
pub(super) struct WatchedRegion<'w> {
    ram: &'w GuestMemoryMmap,
    watcher: RefCell<Watcher<'w>>,
}

impl GuestMemoryRegion for WatchedRegion<'_> {
    type B = ();

    fn len(&self) -> GuestUsize {
        RAM_BYTES
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(0)
    }

    fn bitmap(&self) {}

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, ()>, GuestMemoryError> {
        (self.watcher.borrow_mut())(self.ram);
        GuestMemoryBackend::get_slice(self.ram, GuestAddress(offset.0), count)
    }
}

impl GuestMemoryRegionBytes for WatchedRegion<'_> {}
