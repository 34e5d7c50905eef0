//! The guest's memory map as far as the function is concerned: which addresses are mapped.

use std::ops::Range;

use pvmsi_hypervisor::{BarIndex, Layout, View};
use pvmsi_protocol::TableMode;

/// How the function's BAR is laid out.
pub(super) struct Mapping {
    bar_bytes: u64,
    /// The pages of the BAR that come and go with the mode.
    table_pages: Vec<Range<u64>>,
}

impl Mapping {
    pub(super) fn new(layout: &Layout) -> Self {
        let bar_bytes = layout.bars().iter().flatten().next().map_or(0, |bar| bar.size);
        let table_pages = layout.switched_pages(BarIndex(0));
        Self { bar_bytes, table_pages }
    }

    /// The offset in the function's first BAR, if the page of this address is mapped.
    pub(super) fn offset(&self, shown: &View, address: u64) -> Option<u64> {
        let start = (*shown.bars.first()?)?;
        let offset = address.checked_sub(start.0).filter(|&offset| offset < self.bar_bytes)?;
        let direct = shown.table == TableMode::Direct;
        let of_table = self.table_pages.iter().any(|pages| pages.contains(&offset));
        (direct || !of_table).then_some(offset)
    }
}
