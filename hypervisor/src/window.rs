//! The *window* seam: which pages of a function the guest's memory map shows.

use std::io;

use pvmsi_protocol::TableMode;
use vm_memory::GuestAddress;

use crate::layout::BarIndex;

/// What the guest's memory map shall show of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Where each BAR is decoded; `None` while it is not (decoding off, not in D0, during a reset).
    pub bars: [Option<GuestAddress>; BarIndex::COUNT],
    /// Whether the pages of table and pending bit array are shown with the rest; those of the pending bits where they can be.
    pub table: TableMode,
}

impl View {
    /// Nothing at all.
    pub const NOTHING: Self = Self { bars: [None; BarIndex::COUNT], table: TableMode::Trapped };
}

/// The guest's memory map, as far as one function is concerned.
///
/// [`KvmWindow`](crate::KvmWindow) keeps KVM memory slots for all pages that a
/// function can map. A VMM with a memory map of its own implements this trait
/// instead.
pub trait Window: Send {
    /// Makes the memory map equal to `view`: first takes out what is not in it, then puts in what is missing. On return no vCPU can reach a page that was taken out.
    ///
    /// # Errors
    /// When a page could not be put in or taken out; the service tries a few times, and again with its next operation. A failure to put in leaves the map as it was before the call or, where that is impossible, with less in it, never with more (but see [`shows_table`](Self::shows_table)).
    fn show(&mut self, view: &View) -> io::Result<()>;

    /// Whether the pages of the table can be shown at all ([`Layout::can_be_direct`](crate::Layout::can_be_direct)). Those of the pending bit array need not be: the service answers what exits.
    fn table_can_be_direct(&self) -> bool;

    /// Whether a page of table or pending bit array is shown now. Asked when they could not be put in, and what had been put in could not be taken out: only a window to which that can happen needs this.
    fn shows_table(&self) -> bool {
        false
    }
}
