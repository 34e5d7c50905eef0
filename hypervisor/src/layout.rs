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
/// Set in a base address register that is none of memory.
const IO_PORTS: u32 = 1;

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

/// Why nobody can serve a function. Its words say what is so; [`remedy`](Self::remedy) what the host can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// The function has no MSI-X capability.
    #[error("the function has no MSI-X capability; PV-MSI has nothing to do for it")]
    NoMsix,
    /// 0 or more than 2048 vectors.
    #[error("the function claims {0} MSI-X vectors; 1 to 2048 are possible")]
    Vectors(u16),
    /// The BAR indicator names what no function has as memory.
    #[error("the MSI-X table is said to lie in BAR {}, which is no memory of its own", .0.0)]
    NoSuchBar(BarIndex),
    /// The BAR indicator names a BAR that has no memory on this host.
    #[error("the MSI-X table is said to lie in BAR {}, which has no memory on this host", .0.0)]
    NotAssigned(BarIndex),
    /// The table does not lie inside its BAR.
    #[error("the MSI-X table at {offset:#x} does not fit its BAR of {size:#x} bytes")]
    OutsideBar {
        /// Where it starts in the BAR.
        offset: u64,
        /// The size of the BAR.
        size: u64,
    },
    /// The page size is not a power of two of at least 4 KiB.
    #[error("a host page of {0} bytes is not a power of two of at least 4096")]
    PageSize(u64),
}

impl LayoutError {
    /// What the host can do.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::NoMsix => "without a vector table nothing can be done, nor need be",
            Self::NotAssigned(_) => {
                "where the kernel's log says that the BAR could not be assigned, boot the host with pci=realloc, or \
                 enlarge the firmware's window for MMIO"
            }
            Self::Vectors(_) | Self::NoSuchBar(_) | Self::OutsideBar { .. } => {
                "none but other firmware of the function: nobody can serve its MSI-X"
            }
            Self::PageSize(_) => "use a kernel with pages of 4K, 16K or 64K",
        }
    }
}

/// What is to be made of the place that a function names for its pending bits. Some name one that cannot be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PendingBits {
    /// They are there.
    InBar,
    /// In no memory BAR, or not inside it. Nobody knows where they are, and the table is as good as any.
    Nowhere,
    /// Where the table is, at least in part. Nobody knows which bytes are which.
    OverTable,
}

/// Why the pages of a table cannot be shown. Its words say what is so; [`remedy`](Self::remedy) what the host can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotMappable {
    /// See [`PendingBits::OverTable`].
    #[error("the function says that its pending bits lie where its table is")]
    OverPendingBits,
    /// Something else may be decoded in the rest of the page, so that VFIO does not map it: the BAR does not start the page, or the rest of it is another's.
    #[error("BAR {} of {size} bytes, which holds the table, does not have a page of {page_size} bytes of its own", .bar.0)]
    SmallBar {
        /// The table's BAR.
        bar: BarIndex,
        /// Its size in bytes.
        size: u64,
        /// The host's page size in bytes.
        page_size: u64,
    },
    /// VFIO, or the VMM's memory map, does not map them.
    #[error("the pages of {page_size} bytes that hold the table cannot be mapped")]
    Refused {
        /// The host's page size in bytes.
        page_size: u64,
    },
}

impl NotMappable {
    /// What the host can do. `function` is the function's address there.
    pub fn remedy(&self, function: impl std::fmt::Display) -> String {
        match self {
            Self::OverPendingBits => {
                "none but other firmware of the function: its interrupts work, and its table stays trapped".to_owned()
            }
            Self::SmallBar { page_size, .. } => {
                let order = page_size.trailing_zeros();
                format!(
                    "boot the host with pci=resource_alignment={order}@{function}, have the firmware align BARs to \
                     pages, or use a kernel with smaller pages"
                )
            }
            Self::Refused { .. } => {
                "bind it to a driver that lets vector tables be mapped: vfio-pci, since Linux 4.16".to_owned()
            }
        }
    }
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
    /// As a guest sees them.
    bars: [Option<Bar>; BarIndex::COUNT],
    /// Which of them are larger for a guest than the function has them.
    grown: [bool; BarIndex::COUNT],
    vectors: u16,
    table: (BarIndex, u64),
    pending: (BarIndex, u64),
    pending_bits: PendingBits,
    page_size: u64,
}

impl Layout {
    /// Checks and keeps a layout. Offsets are in bytes from the start of the BAR; `page_size` is the host's, in bytes. The pending bits may be anywhere: see [`pending_bits`](Self::pending_bits).
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
        let layout = Self {
            bars,
            grown: [false; BarIndex::COUNT],
            vectors,
            table,
            pending,
            pending_bits: PendingBits::InBar,
            page_size,
        };
        let (bar, offset) = table;
        let Some(Bar { size, .. }) = layout.bar(bar) else {
            return Err(layout.without_memory(bar));
        };
        match offset.checked_add(layout.table_bytes()) {
            Some(end) if end <= size => {}
            _ => return Err(LayoutError::OutsideBar { offset, size }),
        }
        let pending_bits = layout.judge_pending_bits();
        Ok(Self { pending_bits, ..layout })
    }

    /// Why a BAR has no memory.
    fn without_memory(&self, bar: BarIndex) -> LayoutError {
        let below = bar.0.checked_sub(1).and_then(|below| self.bar(BarIndex(below)));
        let upper_half = below.is_some_and(|below| below.is_64bit);
        if upper_half || bar.as_usize() >= BarIndex::COUNT {
            LayoutError::NoSuchBar(bar)
        } else {
            LayoutError::NotAssigned(bar)
        }
    }

    fn judge_pending_bits(&self) -> PendingBits {
        let ((table_bar, table), (bar, offset)) = (self.table, self.pending);
        let end = offset.saturating_add(self.pending_bytes());
        let table_end = table.saturating_add(self.table_bytes());
        if bar == table_bar && table < end && offset < table_end {
            PendingBits::OverTable
        } else if self.bar(bar).is_some_and(|bar| end <= bar.size) {
            PendingBits::InBar
        } else {
            PendingBits::Nowhere
        }
    }

    /// The same layout, where each BAR that is smaller than a page of the host is a page large for the guest, if `has_page` says that the host can map the whole page in which it starts. So the BAR has a page of its own in the guest as it has in the host, and the page can be shown. [`VfioFunction`](crate::VfioFunction) does this with what VFIO maps.
    ///
    /// VFIO maps such a page where the BAR starts it and nobody has the rest, which it then reserves (Linux `vfio_pci_probe_mmaps`): what the guest reaches there is decoded by nobody.
    #[must_use]
    pub fn with_own_pages(mut self, has_page: impl Fn(BarIndex) -> bool) -> Self {
        for (index, (slot, grown)) in (0..).zip(self.bars.iter_mut().zip(&mut self.grown)) {
            if let Some(bar) = slot
                && bar.size < self.page_size
                && has_page(BarIndex(index))
            {
                bar.size = self.page_size;
                *grown = true;
            }
        }
        self
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
        let register =
            |bar: BarIndex| read(u64::from(bar.0).saturating_mul(4).saturating_add(FIRST_BAR));
        let mut bars = [None; BarIndex::COUNT];
        let mut upper_half = false;
        for (index, slot) in (0_u8..).zip(bars.iter_mut()) {
            if std::mem::take(&mut upper_half) {
                continue;
            }
            let register = register(BarIndex(index));
            let size = bar_size(BarIndex(index));
            let is_64bit = register & 0b111 == 0b100;
            if size >= 16 && size.is_power_of_two() && register & IO_PORTS == 0 {
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
        let table = structure(4);
        if table.0.as_usize() < BarIndex::COUNT && register(table.0) & IO_PORTS != 0 {
            return Err(LayoutError::NoSuchBar(table.0));
        }
        Self::new(bars, vectors, table, structure(8), page_size)
    }

    /// The function's memory BARs, as a guest sees them.
    pub fn bars(&self) -> &[Option<Bar>; BarIndex::COUNT] {
        &self.bars
    }

    /// One of them.
    pub fn bar(&self, bar: BarIndex) -> Option<Bar> {
        self.bars.get(bar.as_usize()).copied().flatten()
    }

    /// Whether a BAR is larger for a guest than the function has it: see [`with_own_pages`](Self::with_own_pages).
    pub fn is_grown(&self, bar: BarIndex) -> bool {
        self.grown.get(bar.as_usize()).is_some_and(|&grown| grown)
    }

    /// The bits that a guest may see of a byte of configuration space. Of a BAR that is grown the address bits below its size are clear, whatever is written: so it is found to be as large.
    pub(crate) fn bar_mask(&self, at: u64) -> u8 {
        let Some(offset) = at.checked_sub(FIRST_BAR) else { return u8::MAX };
        let Ok(bar) = u8::try_from(offset / 4).map(BarIndex) else { return u8::MAX };
        if !self.is_grown(bar) {
            return u8::MAX;
        }
        // The lowest four bits say what kind of BAR it is. A page that is larger than 4 GiB there is not.
        let below = self.page_size.saturating_sub(1) & !0xf;
        let [b0, b1, b2, b3, ..] = (!below).to_le_bytes();
        match offset % 4 {
            0 => b0,
            1 => b1,
            2 => b2,
            _ => b3,
        }
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

    /// BAR and offset of the pending bit array, as the function claims them.
    pub fn pending(&self) -> (BarIndex, u64) {
        self.pending
    }

    /// What is to be made of that claim. Where it is not [`InBar`](PendingBits::InBar), the function's own pending bits cannot be read, and a guest that looks where they should be finds those of the events that the service holds.
    pub fn pending_bits(&self) -> PendingBits {
        self.pending_bits
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

    /// The pages of the table's BAR that the table touches, page aligned.
    pub fn table_pages(&self) -> Range<u64> {
        let (_, offset) = self.table;
        self.whole_pages(offset..offset.saturating_add(self.table_bytes()))
    }

    /// The pages of a BAR that the table or the pending bit array touch: trapped or direct as a whole. Sorted, disjoint, page aligned; they may reach past the end of a BAR that is smaller than a page. Where the pending bits are not inside the BAR, they have no page.
    pub fn switched_pages(&self, bar: BarIndex) -> Vec<Range<u64>> {
        let mut ranges = Vec::with_capacity(2);
        if self.table.0 == bar {
            ranges.push(self.table_pages());
        }
        let (owner, start) = self.pending;
        if owner == bar {
            let size = self.bar(bar).map_or(0, |bar| bar.size);
            let end = start.saturating_add(self.pending_bytes()).min(size);
            if start < end {
                ranges.push(self.whole_pages(start..end));
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

    fn whole_pages(&self, bytes: Range<u64>) -> Range<u64> {
        let mask = self.page_size.saturating_sub(1);
        bytes.start & !mask..bytes.end.saturating_add(mask) & !mask
    }

    /// What an access at `offset` of a BAR hits; the table, where pending bits are said to be there, too.
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
        assert!(matches!(layout(64, 0x3c10, 0, 4096), Err(LayoutError::OutsideBar { .. })));
        assert!(matches!(layout(64, u64::MAX - 8, 0, 4096), Err(LayoutError::OutsideBar { .. })));
        assert_eq!(layout(64, 0, 0x1000, 6000), Err(LayoutError::PageSize(6000)));
        let bars = [None; BarIndex::COUNT];
        let nowhere = Layout::new(bars, 1, (BarIndex(7), 0), (BarIndex(0), 0), 4096);
        assert_eq!(nowhere, Err(LayoutError::NoSuchBar(BarIndex(7))));
        let missing = Layout::new(bars, 1, (BarIndex(0), 0), (BarIndex(0), 0), 4096);
        assert_eq!(missing, Err(LayoutError::NotAssigned(BarIndex(0))));
        let text = LayoutError::NotAssigned(BarIndex(0)).remedy();
        assert!(text.contains("pci=realloc") && text.contains("window for MMIO"), "{text}");
        let wide = [Some(Bar { is_64bit: true, ..BAR }), None, None, None, None, None];
        let upper = Layout::new(wide, 1, (BarIndex(1), 0), (BarIndex(0), 0), 4096);
        assert_eq!(upper, Err(LayoutError::NoSuchBar(BarIndex(1))));
    }

    #[test]
    fn pending_bits_may_be_claimed_anywhere() {
        let claim =
            |vectors, table, pending| layout(vectors, table, pending, 4096).unwrap().pending_bits();
        assert_eq!(claim(64, 0, 0x1000), PendingBits::InBar);
        assert_eq!(claim(64, 0, 0x400), PendingBits::InBar);
        assert_eq!(claim(64, 0, 0x3ff), PendingBits::OverTable);
        assert_eq!(claim(1, 0, 0), PendingBits::OverTable);
        assert_eq!(claim(64, 0, 0x3ff8), PendingBits::InBar);
        assert_eq!(claim(65, 0, 0x3ff8), PendingBits::Nowhere);
        assert_eq!(claim(65, 0, u64::MAX), PendingBits::Nowhere);
        let bars = [Some(BAR), None, None, None, None, None];
        for bar in [1, 7] {
            let layout = Layout::new(bars, 4, (BarIndex(0), 0), (BarIndex(bar), 0), 4096).unwrap();
            assert_eq!(layout.pending_bits(), PendingBits::Nowhere);
            assert!(layout.switched_pages(BarIndex(bar)).is_empty());
            assert_eq!(layout.target(BarIndex(bar), 0), Target::Pending { offset: 0 });
        }
        // The table is read where both are claimed.
        let both = layout(32, 0x80, 0x270, 4096).unwrap();
        let entry = Target::Table { vector: VectorIndex(31), offset: 0 };
        assert_eq!(both.target(BarIndex(0), 0x270), entry);
    }

    #[test]
    fn a_table_behind_io_ports_is_nobodys() {
        let words: [(u64, u32); 5] =
            [(0x10, 0xe001), (0x34, 0x40), (0x40, 0x0003_0011), (0x44, 0), (0x48, 0)];
        let read = |offset: u64| {
            let word = words.iter().find(|(at, _)| *at == offset & !3).map_or(0, |(_, word)| *word);
            word >> (offset % 4 * 8)
        };
        let layout = Layout::read(read, |_| 0x100, 4096);
        assert_eq!(layout, Err(LayoutError::NoSuchBar(BarIndex(0))));
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init)]
    fn a_small_bar_gets_a_page_where_the_host_has_one() {
        let small = layout(65, 0x2000, 0x3000, 0x1_0000).unwrap();
        let refused = small.clone().with_own_pages(|_| false);
        assert_eq!(refused, small);
        let grown = small.with_own_pages(|bar| bar == BarIndex(0));
        assert_eq!(grown.bar(BarIndex(0)).unwrap().size, 0x1_0000);
        assert!(grown.is_grown(BarIndex(0)) && !grown.is_grown(BarIndex(1)));
        assert!(!grown.is_grown(BarIndex(9)));
        let large = layout(65, 0x2000, 0x3000, 4096).unwrap();
        assert_eq!(large.clone().with_own_pages(|_| true), large);
        // What a page adds to a BAR does not make a claim true.
        let outside = layout(8, 0, 0x8000, 0x1_0000).unwrap().with_own_pages(|_| true);
        assert_eq!(outside.pending_bits(), PendingBits::Nowhere);
        assert_eq!(outside.switched_pages(BarIndex(0)), [0..0x1_0000]);
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
