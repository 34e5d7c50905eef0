//! Where a function keeps its vector table and pending bit array, as numbers computed once at attach.
//!
//! The layout is a snapshot: a function that later claims another layout is not believed (XSA-337).
//! Sources: PCI Express Base Specification, MSI-X Capability and Table Structure.

use std::ops::Range;

use pvmsi_protocol::{VECTORS_MAX, VectorIndex};
use thiserror::Error;

/// Bytes of one entry of the vector table.
pub const ENTRY_BYTES: u64 = 16;

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
