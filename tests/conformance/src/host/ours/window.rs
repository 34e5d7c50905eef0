//! The guest's memory map as far as the function is concerned: which addresses are mapped.

use std::io;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use pvmsi_hypervisor::{BarIndex, Layout, View, Window};
use pvmsi_protocol::TableMode;

/// What the guest has mapped, and how the function's BAR is laid out.
pub(super) struct Mapping {
    bar_bytes: u64,
    /// The pages of the BAR that come and go with the mode.
    table_pages: Vec<Range<u64>>,
    shown: View,
}

impl Mapping {
    pub(super) fn new(layout: &Layout) -> Self {
        let bar_bytes = layout.bars().iter().flatten().next().map_or(0, |bar| bar.size);
        let table_pages = layout.switched_pages(BarIndex(0));
        Self { bar_bytes, table_pages, shown: View::NOTHING }
    }

    /// The offset in the function's first BAR, if the page of this address is mapped.
    pub(super) fn offset(&self, address: u64) -> Option<u64> {
        let start = (*self.shown.bars.first()?)?;
        let offset = address.checked_sub(start.0).filter(|&offset| offset < self.bar_bytes)?;
        let direct = self.shown.table == TableMode::Direct;
        let of_table = self.table_pages.iter().any(|pages| pages.contains(&offset));
        (direct || !of_table).then_some(offset)
    }
}

pub(super) struct RecordedWindow {
    mapping: Arc<RwLock<Mapping>>,
    mappable: bool,
}

impl RecordedWindow {
    pub(super) fn new(mapping: Arc<RwLock<Mapping>>, mappable: bool) -> Self {
        Self { mapping, mappable }
    }
}

impl Window for RecordedWindow {
    fn show(&mut self, view: &View) -> io::Result<()> {
        self.mapping.write().unwrap_or_else(PoisonError::into_inner).shown = *view;
        Ok(())
    }

    fn table_can_be_direct(&self) -> bool {
        self.mappable
    }
}
