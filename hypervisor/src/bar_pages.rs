//! Which pages of a BAR a guest can be shown, and which of them come and go with the table.
//!
//! For VMMs that implement [`Window`](crate::Window) themselves; [`KvmWindow`](crate::KvmWindow)
//! uses nothing else.

use std::ops::Range;

use crate::layout::{BarIndex, Layout, NotMappable, PendingBits};

/// Adjacent pages of a BAR that are shown or hidden together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BarPages {
    /// Offsets in the BAR, multiples of the host's page size.
    pub pages: Range<u64>,
    /// Whether they hold the vector table or the pending bit array: shown in direct mode only.
    pub switched: bool,
    /// Whether they hold the vector table, which is direct only where they are shown. All others stay trapped where they cannot be.
    pub table: bool,
}

impl Layout {
    /// The pages of a BAR that lie in `mapped`, the page-aligned part of the BAR that the host can map: in order, without gaps, each page once. The page in which a BAR ends that is smaller is left out, for something else may be decoded there; a BAR that has a page of its own is as large as that ([`with_own_pages`](Self::with_own_pages)).
    pub fn pages(&self, bar: BarIndex, mapped: Range<u64>) -> Vec<BarPages> {
        let page_mask = self.page_size().saturating_sub(1);
        let size = self.bar(bar).map_or(0, |bar| bar.size);
        let end = mapped.end.min(size & !page_mask).max(mapped.start);
        let table = (self.table().0 == bar).then(|| self.table_pages());
        let mut pieces = Vec::new();
        let mut add = |pages: Range<u64>, switched| {
            if pages.start < pages.end {
                let table = table
                    .as_ref()
                    .is_some_and(|table| pages.start < table.end && table.start < pages.end);
                pieces.push(BarPages { pages, switched, table });
            }
        };
        let mut next = mapped.start;
        for switched in self.switched_pages(bar) {
            let clamp = |at: u64| at.clamp(mapped.start, end);
            let (from, to) = (clamp(switched.start), clamp(switched.end));
            add(next..from, false);
            add(from..to, true);
            next = next.max(to);
        }
        add(next..end, false);
        pieces
    }

    /// Whether the table can be direct, with these pieces of BARs, which [`pages`](Self::pages) gave: one of them holds all of the table's pages, and the table is not where the pending bits are said to be. Pending bits that no piece holds stay trapped.
    pub fn can_be_direct<'a>(
        &self,
        pieces: impl IntoIterator<Item = (BarIndex, &'a BarPages)>,
    ) -> bool {
        let table = self.table_pages();
        self.pending_bits() != PendingBits::OverTable
            && pieces.into_iter().any(|(bar, BarPages { pages, .. })| {
                bar == self.table().0 && pages.start <= table.start && table.end <= pages.end
            })
    }

    /// Why the table cannot be direct, whatever else is so; `window` is what [`Window::table_can_be_direct`](crate::Window::table_can_be_direct) says.
    pub fn not_mappable(&self, window: bool) -> Option<NotMappable> {
        let (bar, page_size) = (self.table().0, self.page_size());
        let size = self.bar(bar).map_or(0, |bar| bar.size);
        if self.pending_bits() == PendingBits::OverTable {
            Some(NotMappable::OverPendingBits)
        } else if window {
            None
        } else if size < page_size {
            Some(NotMappable::SmallBar { bar, size, page_size })
        } else {
            Some(NotMappable::Refused { page_size })
        }
    }
}
