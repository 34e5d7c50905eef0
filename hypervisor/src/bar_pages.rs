//! Which pages of a BAR a guest can be shown, and which of them come and go with the table.
//!
//! For VMMs that implement [`Window`](crate::Window) themselves; [`KvmWindow`](crate::KvmWindow)
//! uses nothing else.

use std::ops::Range;

use crate::layout::{BarIndex, Layout};

/// Adjacent pages of a BAR that are shown or hidden together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BarPages {
    /// Offsets in the BAR, multiples of the host's page size.
    pub pages: Range<u64>,
    /// Whether they hold the vector table or the pending bit array: shown in direct mode only.
    pub switched: bool,
}

impl Layout {
    /// The pages of a BAR that lie in `mapped`, the page-aligned part of the BAR that the host can map: in order, without gaps, each page once. The page in which a BAR ends that is smaller is left out: something else may be decoded there.
    pub fn pages(&self, bar: BarIndex, mapped: Range<u64>) -> Vec<BarPages> {
        let page_mask = self.page_size().saturating_sub(1);
        let size = self.bars().get(bar.as_usize()).copied().flatten().map_or(0, |bar| bar.size);
        let end = mapped.end.min(size & !page_mask).max(mapped.start);
        let mut pieces = Vec::new();
        let mut add = |pages: Range<u64>, switched| {
            if pages.start < pages.end {
                pieces.push(BarPages { pages, switched });
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

    /// Whether all pages of table and pending bit array can be shown. `is_piece` says whether such a range of a BAR is one of the pieces that [`pages`](Self::pages) gave.
    pub fn can_be_direct(&self, is_piece: impl Fn(BarIndex, &Range<u64>) -> bool) -> bool {
        [self.table().0, self.pending().0]
            .into_iter()
            .all(|bar| self.switched_pages(bar).iter().all(|wanted| is_piece(bar, wanted)))
    }
}
