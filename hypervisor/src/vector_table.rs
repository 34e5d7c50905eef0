//! A function's vector table and pending bit array, as the host reaches them.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use pvmsi_protocol::{TableMessage, VectorIndex};
use thiserror::Error;
use vm_memory::{MmapRegion, VolatileMemory};

use crate::function::BarMapping;
use crate::layout::{BarIndex, Layout, PendingBits};

/// Bit 0 of vector control; the others are the function's.
const MASK_BIT: u32 = 1;

/// The host did not get at a function's table or pending bits.
#[derive(Debug, Error)]
pub enum TableError {
    /// Nor ever will it: the pages cannot be mapped. The service then does without, as far as a function's own mask bits are an additional safety.
    #[error("the host cannot reach the function's vector table")]
    Unreachable,
    /// This time.
    #[error(transparent)]
    Access(#[from] io::Error),
}

impl From<TableError> for io::Error {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Unreachable => Self::new(io::ErrorKind::Unsupported, error),
            TableError::Access(error) => error,
        }
    }
}

/// Access to the table and the pending bit array of a [`PciFunction`](crate::PciFunction). [`MappedTable`] is the one for functions whose BARs the host has mapped.
///
/// The service calls it under the function's lock, only while memory decoding is on and the function
/// is in D0, and only for vectors that the [`Layout`] has. Each method fails with [`TableError`] when
/// the table cannot be reached; a write has then not been made.
pub trait VectorTable {
    /// The message that stands in the table for a vector that is set up. Where the function is not isolated, the host may change it at any time.
    ///
    /// # Errors
    /// See above.
    fn message(&mut self, vector: VectorIndex) -> Result<TableMessage, TableError>;

    /// The messages of vectors in a row, in order. Many are read after each set-up: worth a loop of its own where finding an entry takes longer than reading it.
    ///
    /// # Errors
    /// See above, for the first vector that cannot be read; none is read after it.
    fn messages(
        &mut self,
        vectors: Range<u16>,
        take: &mut dyn FnMut(VectorIndex, TableMessage),
    ) -> Result<(), TableError> {
        for vector in vectors.map(VectorIndex) {
            take(vector, self.message(vector)?);
        }
        Ok(())
    }

    /// Writes a message into the table.
    ///
    /// # Errors
    /// See above.
    fn set_message(&mut self, vector: VectorIndex, message: TableMessage)
    -> Result<(), TableError>;

    /// The mask bit in the table.
    ///
    /// # Errors
    /// See above.
    fn masked(&mut self, vector: VectorIndex) -> Result<bool, TableError>;

    /// Sets or clears the mask bit in the table, leaves the other bits of vector control as they are, and waits until the function has seen it.
    ///
    /// # Errors
    /// See above.
    fn set_masked(&mut self, vector: VectorIndex, masked: bool) -> Result<(), TableError>;

    /// Vector control, all bits of it. Those beside the mask bit are the function's: one with TPH keeps steering tags in bits 31 to 16.
    ///
    /// # Errors
    /// See above.
    fn control(&mut self, vector: VectorIndex) -> Result<u32, TableError>;

    /// Writes vector control, and waits until the function has seen it.
    ///
    /// # Errors
    /// See above.
    fn set_control(&mut self, vector: VectorIndex, control: u32) -> Result<(), TableError>;

    /// The bit in the function's pending bit array. Not asked for where the layout does not know where that is ([`Layout::pending_bits`]).
    ///
    /// # Errors
    /// See above.
    fn pending(&mut self, vector: VectorIndex) -> Result<bool, TableError>;
}

/// Whether this is no message that a host writes. Ones are what reads when nobody answers. An address of 0 is what a reset leaves, and what some functions give whatever was stored: the Samsung SM961 from offset 0x84 of its table on.
#[inline]
pub(crate) fn is_none(message: TableMessage) -> bool {
    matches!(message.address, 0 | u64::MAX)
}

/// Whether this is what reads when nobody answers: ones. A host writes no such message.
pub(crate) fn is_unanswered(message: TableMessage) -> bool {
    message.address == u64::MAX && message.data == u32::MAX
}

/// Table and pending bits in the mappings of a function's BARs, accessed by aligned 32-bit words.
#[derive(Clone, Debug)]
pub struct MappedTable {
    layout: Layout,
    mappings: Vec<BarMapping>,
    unmapped: Option<ReadWord>,
}

/// Reads a 32-bit word of a BAR without a mapping.
#[derive(Clone)]
struct ReadWord(Arc<dyn Fn(BarIndex, u64) -> u32 + Send + Sync>);

impl fmt::Debug for ReadWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReadWord")
    }
}

impl MappedTable {
    /// The table that `layout` describes, in these parts of the BARs. Where no part holds a word, accesses to it are [`TableError::Unreachable`].
    pub fn new(layout: Layout, mappings: Vec<BarMapping>) -> Self {
        Self { layout, mappings, unmapped: None }
    }

    /// The same, with a way to read pending bits that no mapping holds, as those of a BAR that shares its page with others: a 32-bit word, little-endian in the BAR, at an offset of a BAR. The table is never read by it.
    #[must_use]
    pub fn reading_unmapped(
        self,
        read: impl Fn(BarIndex, u64) -> u32 + Send + Sync + 'static,
    ) -> Self {
        Self { unmapped: Some(ReadWord(Arc::new(read))), ..self }
    }

    fn word(&self, bar: BarIndex, offset: u64) -> Result<Word<'_>, TableError> {
        let hit = self.mappings.iter().find_map(|mapping| {
            let at = usize::try_from(offset.checked_sub(mapping.offset)?).ok()?;
            (mapping.bar == bar && at < mapping.memory.size()).then_some((&mapping.memory, at))
        });
        let (memory, at) = hit.ok_or(TableError::Unreachable)?;
        Ok(Word { memory, at })
    }

    /// A word of an entry: address low, address high, data, vector control.
    fn entry(&self, vector: VectorIndex, word: u64) -> Result<Word<'_>, TableError> {
        let (bar, _) = self.layout.table();
        let start = self.layout.entry_offset(vector).ok_or_else(no_such_vector)?;
        self.word(bar, start.saturating_add(word.saturating_mul(4)))
    }
}

impl VectorTable for MappedTable {
    fn message(&mut self, vector: VectorIndex) -> Result<TableMessage, TableError> {
        let low = self.entry(vector, 0)?.load()?;
        let high = self.entry(vector, 1)?.load()?;
        let data = self.entry(vector, 2)?.load()?;
        Ok(TableMessage { address: u64::from(high) << 32 | u64::from(low), data })
    }

    fn set_message(
        &mut self,
        vector: VectorIndex,
        message: TableMessage,
    ) -> Result<(), TableError> {
        let [a0, a1, a2, a3, a4, a5, a6, a7] = message.address.to_le_bytes();
        self.entry(vector, 0)?.store(u32::from_le_bytes([a0, a1, a2, a3]))?;
        self.entry(vector, 1)?.store(u32::from_le_bytes([a4, a5, a6, a7]))?;
        self.entry(vector, 2)?.store(message.data)
    }

    fn masked(&mut self, vector: VectorIndex) -> Result<bool, TableError> {
        Ok(self.entry(vector, 3)?.load()? & MASK_BIT != 0)
    }

    fn set_masked(&mut self, vector: VectorIndex, masked: bool) -> Result<(), TableError> {
        let word = self.entry(vector, 3)?;
        // Some functions keep something in the other bits.
        word.store(word.load()? & !MASK_BIT | u32::from(masked))?;
        // A read's completion pushes the write, and what the function sent before, ahead of it.
        word.load().map(drop)
    }

    fn control(&mut self, vector: VectorIndex) -> Result<u32, TableError> {
        self.entry(vector, 3)?.load()
    }

    fn set_control(&mut self, vector: VectorIndex, control: u32) -> Result<(), TableError> {
        let word = self.entry(vector, 3)?;
        word.store(control)?;
        word.load().map(drop)
    }

    fn pending(&mut self, vector: VectorIndex) -> Result<bool, TableError> {
        let (bar, start) = self.layout.pending();
        let offset = start.saturating_add(u64::from(vector.0 / 32).saturating_mul(4));
        if !self.layout.has(vector) {
            return Err(no_such_vector().into());
        }
        if self.layout.pending_bits() != PendingBits::InBar {
            return Err(TableError::Unreachable);
        }
        let bits = match (self.word(bar, offset), &self.unmapped) {
            (Err(TableError::Unreachable), Some(ReadWord(read))) => read(bar, offset),
            (word, _) => word?.load()?,
        };
        Ok(bits & (1_u32 << (vector.0 % 32)) != 0)
    }
}

/// A 32-bit word of a mapping.
struct Word<'a> {
    memory: &'a Arc<MmapRegion>,
    at: usize,
}

impl Word<'_> {
    fn load(&self) -> Result<u32, TableError> {
        let word = self.memory.get_ref::<u32>(self.at).map_err(|_| TableError::Unreachable)?;
        Ok(u32::from_le(word.load()))
    }

    fn store(&self, value: u32) -> Result<(), TableError> {
        let word = self.memory.get_ref::<u32>(self.at).map_err(|_| TableError::Unreachable)?;
        word.store(value.to_le());
        Ok(())
    }
}

fn no_such_vector() -> io::Error {
    io::Error::other("the function has no such vector")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Bar;

    const PAGE: u64 = 4096;
    const BAR: BarIndex = BarIndex(2);
    /// The table fills the second page and begins a third; pending bits lie in the first.
    const TABLE: u64 = 0x1000;
    const PENDING: u64 = 0x40;
    const VECTORS: u16 = 260;

    fn table(mapped: &[(u64, usize)]) -> (MappedTable, Vec<BarMapping>) {
        let mut bars = [None; BarIndex::COUNT];
        bars[BAR.as_usize()] = Some(Bar { size: 0x4000, is_64bit: false, prefetchable: false });
        let layout = Layout::new(bars, VECTORS, (BAR, TABLE), (BAR, PENDING), PAGE).unwrap();
        let mappings: Vec<_> = mapped
            .iter()
            .map(|&(offset, length)| BarMapping {
                bar: BAR,
                offset,
                memory: Arc::new(MmapRegion::new(length).unwrap()),
            })
            .collect();
        (MappedTable::new(layout, mappings.clone()), mappings)
    }

    #[test]
    fn an_entry_is_read_and_written_where_it_lies() {
        let (mut table, mappings) = table(&[(0, 0x4000)]);
        let message = TableMessage { address: 0x1234_5678_fee0_1004, data: 0x4031 };
        let last = VectorIndex(VECTORS - 1);
        table.set_message(last, message).unwrap();
        assert_eq!(table.message(last).unwrap(), message);
        assert_eq!(table.message(VectorIndex(0)).unwrap(), TableMessage::default());
        let at = |word: usize| {
            let offset = usize::try_from(TABLE).unwrap() + usize::from(last.0) * 16 + word * 4;
            mappings[0].memory.get_ref::<u32>(offset).unwrap()
        };
        assert_eq!([0, 1, 2].map(|word| at(word).load()), [0xfee0_1004, 0x1234_5678, 0x4031]);
        // Vector control keeps the function's own bits.
        at(3).store(0xab00_0000);
        table.set_masked(last, true).unwrap();
        assert_eq!((at(3).load(), table.masked(last).unwrap()), (0xab00_0001, true));
        table.set_masked(last, false).unwrap();
        assert_eq!((at(3).load(), table.masked(last).unwrap()), (0xab00_0000, false));
        table.set_control(last, 0x1234_0001).unwrap();
        assert_eq!((at(3).load(), table.control(last).unwrap()), (0x1234_0001, 0x1234_0001));
    }

    #[test]
    fn a_pending_bit_is_the_vectors_own() {
        let (mut table, mappings) = table(&[(0, 0x4000)]);
        // Vector 33: the second bit of the second word.
        mappings[0].memory.get_ref::<u32>(0x44).unwrap().store(2);
        let pending = (0..VECTORS).filter(|&vector| table.pending(VectorIndex(vector)).unwrap());
        assert_eq!(pending.collect::<Vec<_>>(), [33]);
    }

    #[test]
    fn a_page_that_is_not_mapped_is_never_reached() {
        // The hole is the table's first page.
        let (mut table, _) = table(&[(0, 0x1000), (0x2000, 0x2000)]);
        let (hidden, shown) = (VectorIndex(0), VectorIndex(256));
        assert!(matches!(table.message(hidden), Err(TableError::Unreachable)));
        assert!(matches!(table.masked(hidden), Err(TableError::Unreachable)));
        assert!(matches!(table.set_masked(hidden, true), Err(TableError::Unreachable)));
        let message = TableMessage { address: 1, data: 2 };
        assert!(matches!(table.set_message(hidden, message), Err(TableError::Unreachable)));
        table.set_message(shown, message).unwrap();
        assert_eq!(table.message(shown).unwrap(), message);
        assert!(!table.pending(hidden).unwrap());
        let error = io::Error::from(table.masked(hidden).unwrap_err());
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn pending_bits_that_are_not_mapped_are_read_in_another_way() {
        // The hole is the page of the pending bits.
        let (table, _) = table(&[(0x1000, 0x3000)]);
        assert!(matches!(table.clone().pending(VectorIndex(33)), Err(TableError::Unreachable)));
        let mut table = table.reading_unmapped(|bar, offset| {
            assert_eq!(bar, BAR);
            if offset == PENDING + 4 { 2 } else { 0 }
        });
        let pending = (0..VECTORS).filter(|&vector| table.pending(VectorIndex(vector)).unwrap());
        assert_eq!(pending.collect::<Vec<_>>(), [33]);
        assert!(!table.masked(VectorIndex(33)).unwrap(), "the table has its mapping");
    }

    #[test]
    fn pending_bits_that_are_claimed_where_the_table_is_are_not_read() {
        let bars = [Some(Bar { size: 0x4000, is_64bit: false, prefetchable: false })];
        let mut all = [None; BarIndex::COUNT];
        all[..1].copy_from_slice(&bars);
        let layout = Layout::new(all, 4, (BarIndex(0), 0), (BarIndex(0), 0x30), PAGE).unwrap();
        let memory = Arc::new(MmapRegion::new(0x4000).unwrap());
        let mapping = BarMapping { bar: BarIndex(0), offset: 0, memory };
        let mut table = MappedTable::new(layout, vec![mapping]).reading_unmapped(|_, _| u32::MAX);
        let message = TableMessage { address: u64::MAX, data: u32::MAX };
        table.set_message(VectorIndex(3), message).unwrap();
        assert_eq!(table.message(VectorIndex(3)).unwrap(), message);
        assert!(matches!(table.pending(VectorIndex(0)), Err(TableError::Unreachable)));
    }

    #[test]
    fn a_vector_that_there_is_not_is_an_error() {
        let (mut table, _) = table(&[(0, 0x4000)]);
        for vector in [VectorIndex(VECTORS), VectorIndex(u16::MAX)] {
            assert!(matches!(table.masked(vector), Err(TableError::Access(_))));
            assert!(matches!(table.pending(vector), Err(TableError::Access(_))));
        }
    }
}
