//! Memory that devices and the host may reach: what follows the image and the stacks, handed out once.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::arch;

/// Bytes of a page; all areas start at one.
pub const PAGE: usize = 4096;

static NEXT: AtomicUsize = AtomicUsize::new(0);
static END: AtomicUsize = AtomicUsize::new(0);

/// A zeroed area of pages. Its address is its guest physical address.
#[derive(Clone, Copy, Debug)]
pub struct Area {
    start: NonNull<u8>,
    bytes: usize,
}

impl Area {
    /// The first byte.
    pub fn start(self) -> NonNull<u8> {
        self.start
    }

    /// Length in bytes.
    pub fn bytes(self) -> usize {
        self.bytes
    }

    /// The guest physical address.
    pub fn physical(self) -> u64 {
        self.start.addr().get() as u64
    }
}

pub(crate) fn initialise(ram_end: u64) {
    NEXT.store(arch::image_end().next_multiple_of(PAGE), Ordering::Relaxed);
    END.store(usize::try_from(ram_end).unwrap_or(0), Ordering::Relaxed);
}

/// Hands out so many bytes, rounded up to pages and zeroed. They are never taken back. `None` when the RAM is used up.
pub fn allocate(bytes: usize) -> Option<Area> {
    allocate_aligned(bytes, PAGE)
}

/// As [`allocate`], from a multiple of `alignment` on, which is at least a page.
pub fn allocate_aligned(bytes: usize, alignment: usize) -> Option<Area> {
    let bytes = bytes.checked_next_multiple_of(PAGE)?;
    let end = END.load(Ordering::Relaxed);
    let start = |next: usize| next.checked_next_multiple_of(alignment);
    let next = NEXT
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
            start(next)?.checked_add(bytes).filter(|&after| after <= end)
        })
        .ok()?;
    let start = start(next)?;
    let start = NonNull::new(core::ptr::with_exposed_provenance_mut::<u8>(start))?;
    // SAFETY: RAM behind image and stacks, below the end that the machine gave, and handed out to nobody else.
    unsafe { start.write_bytes(0, bytes) };
    Some(Area { start, bytes })
}

/// As [`allocate`], but at the end of the RAM: what follows the area is no RAM. Once at most.
pub fn allocate_last(bytes: usize) -> Option<Area> {
    let bytes = bytes.checked_next_multiple_of(PAGE)?;
    let next = NEXT.load(Ordering::Relaxed);
    let take = |end: usize| end.checked_sub(bytes).filter(|&start| start >= next);
    let end = END.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
    let start = core::ptr::with_exposed_provenance_mut::<u8>(end.checked_sub(bytes)?);
    let start = NonNull::new(start)?;
    // SAFETY: RAM behind what has been handed out, and handed out to nobody else from now on.
    unsafe { start.write_bytes(0, bytes) };
    Some(Area { start, bytes })
}

/// Moves a value into memory of its own, where it stays: what several vCPUs share. `None` when the RAM is used up.
pub fn place<T>(value: T) -> Option<&'static T> {
    place_mut(value).map(|place| &*place)
}

/// As [`place`], for one owner at a time.
pub fn place_mut<T>(value: T) -> Option<&'static mut T> {
    let mut place = allocate(size_of::<T>())?.start().cast::<T>();
    if !place.is_aligned() {
        return None;
    }
    // SAFETY: aligned, long enough, and handed out to nobody else.
    unsafe { place.write(value) };
    // SAFETY: written above, and never taken back.
    Some(unsafe { place.as_mut() })
}
