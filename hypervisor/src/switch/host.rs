//! What the host itself has asked for, and what it owes: sets of kinds.

use bitflags::bitflags;

bitflags! {
    /// What the host has asked for.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub(crate) struct Host: u8 {
        /// The table is taken back, until it is allowed again.
        const REVOKED = 1 << 0;
        /// The VM is at rest, to be saved, or restored and not running yet: nothing is attached.
        const PAUSED = 1 << 1;
        /// The vectors were assigned on another host: the guest must ask for the table again.
        const MIGRATED = 1 << 2;
        /// The function has failed, or is about to be reset by others: nothing reaches it until it is repaired.
        const FROZEN = 1 << 3;
    }
}

bitflags! {
    /// What could not be done and is owed. What can be seen by comparing wishes and world needs no kind here.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub(crate) struct Debts: u16 {
        /// Configuration space could not be read when the placement was to be learnt.
        const PLACEMENT = 1 << 0;
        /// The guest's memory map is not as it should be.
        const MAP = 1 << 1;
        /// Interrupts that should be down may still be set up.
        const TAKE_DOWN = 1 << 2;
        /// The table has lost its messages while it could not be written.
        const TABLE = 1 << 3;
        /// Table messages could not be read.
        const MESSAGES = 1 << 4;
        /// The emulated table is in use, and has no interrupts.
        const LEGACY_SET_UP = 1 << 5;
        /// Handing the table over was tried while something was owed. Tried again when it has been paid.
        const HAND_OVER = 1 << 6;
        /// Putting the table's pages in was tried and failed. Guests can cause the attempt, so it is tried again only with `configure`, `restore`, `allow`, or a change of placement.
        const PAGES = 1 << 7;
        /// The service does not know yet where the function is decoded. Paid at the end of each operation.
        const PUBLISH = 1 << 8;
        /// What the table reads as after a set-up is no message. Asked for again by the next one that starts from nothing.
        const UNREADABLE = 1 << 9;
    }
}

impl Debts {
    /// What the next operation tries to pay, wherever the function is.
    pub(crate) const PAYABLE: Self = Self::PLACEMENT
        .union(Self::MAP)
        .union(Self::TAKE_DOWN)
        .union(Self::MESSAGES)
        .union(Self::LEGACY_SET_UP);
    /// What is known of the table's content, and ends with the interrupts.
    pub(crate) const CONTENT: Self = Self::TABLE.union(Self::UNREADABLE);
    /// Why the table cannot be handed over now.
    pub(crate) const NOT_MAPPABLE: Self = Self::HAND_OVER.union(Self::PAGES);
    /// What is a reason.
    pub(crate) const TRAPPING: Self = Self::NOT_MAPPABLE.union(Self::UNREADABLE);
}
