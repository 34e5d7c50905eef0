//! Where a function keeps its vector table and pending bit array, as numbers computed once at attach.
//!
//! The layout is a snapshot: a function that later claims another layout is not believed (XSA-337).
//! Sources: PCI Express Base Specification, MSI-X Capability and Table Structure.

use std::ops::Range;

use pvmsi_protocol::{VECTORS_MAX, VectorIndex};
use thiserror::Error;

use crate::capability_list::{self, MSIX};

/// Bytes of one entry of the vector table.
pub const ENTRY_BYTES: u64 = 16;

/// Where the base address registers start in configuration space.
const FIRST_BAR: u64 = 0x10;

/// The number of a base address register, 0 to 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BarIndex(pub u8);

impl BarIndex {
    /// How many base address registers a function has.
    pub const COUNT: usize = 6;

    /// The index for slices.
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
}

/// One base address register that decodes memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Size in bytes, a power of two of at least 16.
    pub size: u64,
    /// Whether the register is 64 bits wide and takes the next one too.
    pub is_64bit: bool,
    /// Whether the memory is prefetchable.
    pub prefetchable: bool,
}

/// Why a layout is not one that can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// The function has no MSI-X capability.
    #[error("the function has no MSI-X capability; PV-MSI has nothing to do for it")]
    NoMsix,
    /// 0 or more than 2048 vectors.
    #[error("the function claims {0} MSI-X vectors; 1 to 2048 are possible")]
    Vectors(u16),
    /// The BAR indicator names no memory BAR.
    #[error("the MSI-X {structure} is said to lie in BAR {bar}, which the function does not have")]
    NoSuchBar {
        /// `table` or `pending bit array`.
        structure: &'static str,
        /// The BAR index that the capability names.
        bar: u8,
    },
    /// The structure does not lie inside its BAR.
    #[error("the MSI-X {structure} at {offset:#x} does not fit its BAR of {size:#x} bytes")]
    OutsideBar {
        /// `table` or `pending bit array`.
        structure: &'static str,
        /// Where it starts in the BAR.
        offset: u64,
        /// The size of the BAR.
        size: u64,
    },
    /// Table and pending bit array overlap.
    #[error("the MSI-X table and the pending bit array overlap")]
    Overlap,
    /// The page size is not a power of two of at least 4 KiB.
    #[error("a host page of {0} bytes is not a power of two of at least 4096")]
    PageSize(u64),
}

/// What an access to a BAR hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// An entry of the vector table.
    Table {
        /// The entry.
        vector: VectorIndex,
        /// Offset in the entry, 0 to 15.
        offset: u64,
    },
    /// The pending bit array.
    Pending {
        /// Offset from its start.
        offset: u64,
    },
    /// Anything else in the BAR.
    Neighbour,
}

/// BARs, vector table and pending bit array of one function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    bars: [Option<Bar>; BarIndex::COUNT],
    vectors: u16,
    table: (BarIndex, u64),
    pending: (BarIndex, u64),
    page_size: u64,
}

impl Layout {
    /// Checks and keeps a layout. Offsets are in bytes from the start of the BAR; `page_size` is the host's, in bytes.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn new(
        bars: [Option<Bar>; BarIndex::COUNT],
        vectors: u16,
        table: (BarIndex, u64),
        pending: (BarIndex, u64),
        page_size: u64,
    ) -> Result<Self, LayoutError> {
        if vectors == 0 || vectors > VECTORS_MAX {
            return Err(LayoutError::Vectors(vectors));
        }
        if page_size < 4096 || !page_size.is_power_of_two() {
            return Err(LayoutError::PageSize(page_size));
        }
        let layout = Self { bars, vectors, table, pending, page_size };
        let inside = |structure, (bar, offset): (BarIndex, u64), length: u64| {
            let Some(Some(Bar { size, .. })) = bars.get(bar.as_usize()) else {
                return Err(LayoutError::NoSuchBar { structure, bar: bar.0 });
            };
            match offset.checked_add(length) {
                Some(end) if end <= *size => Ok(offset..end),
                _ => Err(LayoutError::OutsideBar { structure, offset, size: *size }),
            }
        };
        let table_range = inside("table", table, layout.table_bytes())?;
        let pending_range = inside("pending bit array", pending, layout.pending_bytes())?;
        let overlap = table.0 == pending.0
            && table_range.start < pending_range.end
            && pending_range.start < table_range.end;
        if overlap { Err(LayoutError::Overlap) } else { Ok(layout) }
    }

    /// Reads a layout from configuration space. `read` returns the 32-bit word at an offset, `bar_size` the size of a BAR in bytes, 0 for none.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn read(
        read: impl Fn(u64) -> u32,
        bar_size: impl Fn(BarIndex) -> u64,
        page_size: u64,
    ) -> Result<Self, LayoutError> {
        let mut bars = [None; BarIndex::COUNT];
        let mut upper_half = false;
        for (index, slot) in (0_u8..).zip(bars.iter_mut()) {
            if std::mem::take(&mut upper_half) {
                continue;
            }
            let register = read(u64::from(index).saturating_mul(4).saturating_add(FIRST_BAR));
            let size = bar_size(BarIndex(index));
            let is_64bit = register & 0b111 == 0b100;
            // Bit 0 is set for I/O ports.
            if size >= 16 && size.is_power_of_two() && register & 1 == 0 {
                *slot = Some(Bar { size, is_64bit, prefetchable: register & 0b1000 != 0 });
                upper_half = is_64bit;
            }
        }
        let capability = capability_list::walk(|at| {
            let [byte, ..] = read(at).to_le_bytes();
            byte
        })
        .into_iter()
        .find(|found| found.id == MSIX)
        .ok_or(LayoutError::NoMsix)?
        .at;
        let [_, _, control_low, control_high] = read(capability).to_le_bytes();
        let control = u16::from_le_bytes([control_low, control_high]);
        let vectors = (control & 0x7ff).saturating_add(1);
        let structure = |offset: u64| {
            let value = read(capability.saturating_add(offset));
            let [bar, ..] = (value & 0b111).to_le_bytes();
            (BarIndex(bar), u64::from(value & !0b111))
        };
        Self::new(bars, vectors, structure(4), structure(8), page_size)
    }

    /// The function's memory BARs.
    pub fn bars(&self) -> &[Option<Bar>; BarIndex::COUNT] {
        &self.bars
    }

    /// How many entries the table has.
    pub fn vectors(&self) -> u16 {
        self.vectors
    }

    /// Whether the table has such an entry.
    pub fn has(&self, vector: VectorIndex) -> bool {
        vector.0 < self.vectors
    }

    /// BAR and offset of the table.
    pub fn table(&self) -> (BarIndex, u64) {
        self.table
    }

    /// BAR and offset of the pending bit array.
    pub fn pending(&self) -> (BarIndex, u64) {
        self.pending
    }

    /// The host's page size in bytes.
    pub fn page_size(&self) -> u64 {
        self.page_size
    }

    /// Length of the table in bytes.
    pub fn table_bytes(&self) -> u64 {
        u64::from(self.vectors).saturating_mul(ENTRY_BYTES)
    }

    /// Length of the pending bit array in bytes: a bit for each vector, in 8-byte words.
    pub fn pending_bytes(&self) -> u64 {
        u64::from(self.vectors.div_ceil(64)).saturating_mul(8)
    }

    /// Where in the table's BAR an entry starts; `None` when there is no such entry.
    pub fn entry_offset(&self, vector: VectorIndex) -> Option<u64> {
        self.has(vector)
            .then(|| self.table.1.checked_add(u64::from(vector.0).checked_mul(ENTRY_BYTES)?))
            .flatten()
    }

    /// The pages of a BAR that the table or the pending bit array touch: trapped or direct as a whole. Sorted, disjoint, page aligned; they may reach past the end of a BAR that is smaller than a page.
    pub fn switched_pages(&self, bar: BarIndex) -> Vec<Range<u64>> {
        let mut ranges = Vec::with_capacity(2);
        for ((owner, offset), length) in
            [(self.table, self.table_bytes()), (self.pending, self.pending_bytes())]
        {
            if owner == bar {
                let mask = self.page_size.saturating_sub(1);
                let end = offset.saturating_add(length).saturating_add(mask) & !mask;
                ranges.push(offset & !mask..end);
            }
        }
        ranges.sort_by_key(|range| range.start);
        match ranges.as_slice() {
            [first, second] if second.start <= first.end => {
                let merged = first.start..first.end.max(second.end);
                std::iter::once(merged).collect()
            }
            _ => ranges,
        }
    }

    /// What an access at `offset` of a BAR hits.
    pub fn target(&self, bar: BarIndex, offset: u64) -> Target {
        let within = |(owner, start): (BarIndex, u64), length: u64| {
            (owner == bar).then(|| offset.checked_sub(start)).flatten().filter(|&at| at < length)
        };
        if let Some(at) = within(self.table, self.table_bytes())
            && let Ok(vector) = u16::try_from(at / ENTRY_BYTES)
        {
            return Target::Table { vector: VectorIndex(vector), offset: at % ENTRY_BYTES };
        }
        if let Some(offset) = within(self.pending, self.pending_bytes()) {
            return Target::Pending { offset };
        }
        Target::Neighbour
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAR: Bar = Bar { size: 0x4000, is_64bit: false, prefetchable: false };

    fn layout(
        vectors: u16,
        table: u64,
        pending: u64,
        page_size: u64,
    ) -> Result<Layout, LayoutError> {
        let bars = [Some(BAR), None, None, None, None, None];
        Layout::new(bars, vectors, (BarIndex(0), table), (BarIndex(0), pending), page_size)
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init)]
    fn pages_of_table_and_pending_bits_are_switched_as_a_whole() {
        let pages = |table, pending, page_size| {
            layout(65, table, pending, page_size).unwrap().switched_pages(BarIndex(0))
        };
        assert_eq!(pages(0x2000, 0x3000, 4096), [0x2000..0x4000], "adjacent pages are one range");
        assert_eq!(pages(0x0040, 0x3000, 4096), [0..0x1000, 0x3000..0x4000]);
        assert_eq!(
            pages(0x0c00, 0x3ff0, 4096),
            [0xc00 & !0xfff..0x2000, 0x3000..0x4000],
            "a table that straddles"
        );
        assert_eq!(
            pages(0x2000, 0x3000, 0x1_0000),
            [0..0x1_0000],
            "one page is larger than the BAR"
        );
        assert!(layout(65, 0, 0x3000, 4096).unwrap().switched_pages(BarIndex(1)).is_empty());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert_eq!(layout(0, 0, 0x1000, 4096), Err(LayoutError::Vectors(0)));
        assert_eq!(layout(2049, 0, 0x1000, 4096), Err(LayoutError::Vectors(2049)));
        assert_eq!(layout(64, 0, 0x3ff, 4096), Err(LayoutError::Overlap));
        assert!(matches!(layout(64, 0x3c10, 0, 4096), Err(LayoutError::OutsideBar { .. })));
        assert!(matches!(layout(64, u64::MAX - 8, 0, 4096), Err(LayoutError::OutsideBar { .. })));
        assert_eq!(layout(64, 0, 0x1000, 6000), Err(LayoutError::PageSize(6000)));
        let bars = [None; BarIndex::COUNT];
        let nowhere = Layout::new(bars, 1, (BarIndex(7), 0), (BarIndex(0), 0), 4096);
        assert!(matches!(nowhere, Err(LayoutError::NoSuchBar { bar: 7, .. })));
    }

    #[test]
    fn accesses_are_bounded_by_entries() {
        let layout = layout(3, 0x1000, 0x2000, 4096).unwrap();
        let target = |offset| layout.target(BarIndex(0), offset);
        assert_eq!(target(0x102f), Target::Table { vector: VectorIndex(2), offset: 15 });
        assert_eq!(target(0x1030), Target::Neighbour);
        assert_eq!(target(0x2007), Target::Pending { offset: 7 });
        assert_eq!(target(0x2008), Target::Neighbour);
        assert_eq!(layout.target(BarIndex(1), 0x1000), Target::Neighbour);
    }

    #[test]
    fn a_circular_capability_list_ends() {
        let read = |offset| if matches!(offset, 0x34 | 0x41) { 0x40 } else { 1 };
        assert_eq!(Layout::read(read, |_| 0x4000, 4096), Err(LayoutError::NoMsix));
    }
}
