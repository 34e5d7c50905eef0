//! The guest's memory map as far as the function is concerned: which addresses are mapped.

use pvmsi_hypervisor::{BarIndex, BarPages, Layout, View};
use pvmsi_protocol::TableMode;

/// How the function's BAR is laid out.
pub(super) struct Mapping {
    pages: Vec<BarPages>,
    /// Whether pages of the pending bits that hold nothing of the table can be mapped.
    pending: bool,
}

impl Mapping {
    pub(super) fn new(layout: &Layout, pending: bool) -> Self {
        let bar = BarIndex(0);
        let bytes = layout.bar(bar).map_or(0, |bar| bar.size);
        Self { pages: layout.pages(bar, 0..bytes), pending }
    }

    /// The offset in the function's first BAR, if the page of this address is mapped.
    pub(super) fn offset(&self, shown: &View, address: u64) -> Option<u64> {
        let start = (*shown.bars.first()?)?;
        let offset = address.checked_sub(start.0)?;
        let piece = self.pages.iter().find(|piece| piece.pages.contains(&offset))?;
        let direct = shown.table == TableMode::Direct && (piece.table || self.pending);
        (direct || !piece.switched).then_some(offset)
    }
}
