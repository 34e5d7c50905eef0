//! The account of events and mask bits, as it is printed.

use serde::Serialize;

/// What happened to the interrupts of a function while those of the host were moved.
#[derive(Default, Serialize)]
pub(crate) struct Account {
    pub(crate) host_kernel: String,
    /// In bytes.
    pub(crate) page_size: u64,
    /// `moved` or `pinned`.
    pub(crate) mode: &'static str,
    pub(crate) seconds: u64,
    /// Interrupts of the function that the service has pinned.
    pub(crate) pinned: u32,
    /// Those that it could not pin.
    pub(crate) not_pinned: u32,
    /// Interrupts that were moved: the function's, or all others.
    pub(crate) moves: u64,
    /// Times a processor was taken off.
    pub(crate) processors_off: u64,
    /// Times the table changed hands.
    pub(crate) switches: u64,
    /// Commands of the drive: each is an event.
    pub(crate) events: u64,
    /// Events that did not come while the guest had the vector unmasked.
    pub(crate) lost: u64,
    /// Of those, the ones that came after the guest had masked and unmasked the vector.
    pub(crate) held: u64,
    /// Events that came without a command.
    pub(crate) doubled: u64,
    /// Events that came while the guest had the vector masked.
    pub(crate) while_masked: u64,
    /// Mask bits that the guest has set in a direct table.
    pub(crate) masks: u64,
    /// Of those, the ones that somebody else has cleared.
    pub(crate) masks_cleared: u64,
    /// Mask bits that read as set in a direct table, and were not the guest's.
    pub(crate) masks_set: u64,
}
