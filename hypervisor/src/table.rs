//! Accesses to a function's BARs that exit: the trapped table, the pending bit array, and what lies beside them.

use pvmsi_protocol::{GuestMessage, TableMessage, TableMode, VectorIndex};

use vmm_sys_util::eventfd::EventFd;

use crate::layout::{BarIndex, Target};
use crate::state::{FunctionState, LegacyEntry, Owner};

/// Vector control: only bit 0 is defined.
const MASK_BIT: u32 = 1;

/// The widest access in bytes.
const ACCESS_MAX: usize = 8;

/// An entry of the table as the guest sees it: address low, address high, data, vector control.
type Words = [u32; 4];

impl FunctionState {
    /// A read of a BAR. What no register answers reads as ones.
    pub(crate) fn bar_read(&mut self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let Some(last) = self.access_end(bar, offset, data.len()) else { return };
        match (self.layout.target(bar, offset), self.layout.target(bar, last)) {
            (Target::Neighbour, Target::Neighbour) => {
                self.counters.neighbour_reads = self.counters.neighbour_reads.saturating_add(1);
                if self.accessible() {
                    self.function.bar_read(bar, offset, data);
                }
            }
            (Target::Table { vector, offset }, Target::Table { vector: end, .. })
                if vector == end =>
            {
                self.counters.table_reads = self.counters.table_reads.saturating_add(1);
                let words = self.read_entry(vector);
                let bytes = words.into_iter().flat_map(u32::to_le_bytes);
                let skip = usize::try_from(offset).unwrap_or(usize::MAX);
                for (target, byte) in data.iter_mut().zip(bytes.skip(skip)) {
                    *target = byte;
                }
            }
            (Target::Pending { offset }, Target::Pending { .. }) => {
                self.counters.pending_accesses = self.counters.pending_accesses.saturating_add(1);
                for (at, byte) in (offset..).zip(data) {
                    *byte = self.read_pending(at);
                }
            }
            // An access that is not aligned can reach into two structures; no hardware answers it.
            _ => self.counters.table_reads = self.counters.table_reads.saturating_add(1),
        }
    }

    /// A write of a BAR.
    pub(crate) fn bar_write(&mut self, bar: BarIndex, offset: u64, data: &[u8]) {
        let Some(last) = self.access_end(bar, offset, data.len()) else { return };
        match (self.layout.target(bar, offset), self.layout.target(bar, last)) {
            (Target::Neighbour, Target::Neighbour) => {
                self.counters.neighbour_writes = self.counters.neighbour_writes.saturating_add(1);
                if self.accessible() {
                    self.function.bar_write(bar, offset, data);
                }
            }
            (Target::Table { vector, offset }, Target::Table { .. }) => {
                self.counters.table_writes = self.counters.table_writes.saturating_add(1);
                self.write_entry(vector, offset, data);
            }
            (Target::Pending { .. }, Target::Pending { .. }) => {
                // Read-only.
                self.counters.pending_accesses = self.counters.pending_accesses.saturating_add(1);
            }
            _ => self.counters.table_writes = self.counters.table_writes.saturating_add(1),
        }
    }

    /// The offset of the last byte of an access; `None` where it leaves the BAR, is empty, or is wider than any processor makes them: that could reach across a whole structure.
    fn access_end(&self, bar: BarIndex, offset: u64, length: usize) -> Option<u64> {
        if length > ACCESS_MAX {
            return None;
        }
        let size = (*self.layout.bars().get(bar.as_usize())?)?.size;
        let last = offset.checked_add(u64::try_from(length).ok()?.checked_sub(1)?)?;
        (last < size).then_some(last)
    }

    fn read_entry(&mut self, vector: VectorIndex) -> Words {
        let index = vector.as_usize();
        let (address, data) = match &self.owner {
            Owner::Legacy(entries) => {
                let entry = entries.get(index).copied().unwrap_or(LegacyEntry::RESET);
                (entry.message.address, entry.message.data)
            }
            Owner::Assigned(vectors) if index < vectors.len() => {
                let own = self.vectors.get(index).and_then(|vector| vector.table_message);
                let now = match self.mode {
                    TableMode::Direct => self.function.table_message(vector).ok(),
                    TableMode::Trapped => own,
                };
                now.map_or((0, 0), |TableMessage { address, data }| (address, data))
            }
            Owner::Assigned(_) => (0, 0),
        };
        let [a0, a1, a2, a3, a4, a5, a6, a7] = address.to_le_bytes();
        let control = if self.masked(vector) { MASK_BIT } else { 0 };
        [u32::from_le_bytes([a0, a1, a2, a3]), u32::from_le_bytes([a4, a5, a6, a7]), data, control]
    }

    fn read_pending(&mut self, byte: u64) -> u8 {
        let mut bits = 0;
        for bit in 0..8_u8 {
            let number = byte.saturating_mul(8).saturating_add(u64::from(bit));
            let vector = u16::try_from(number).map(VectorIndex).ok();
            let vector = vector.filter(|&vector| self.layout.has(vector));
            if vector.is_some_and(|vector| self.pending(vector)) {
                bits |= 1 << bit;
            }
        }
        bits
    }

    /// Aligned accesses of 4 or 8 bytes are writes of the table; the specification leaves others undefined, and here they do nothing.
    fn write_entry(&mut self, vector: VectorIndex, offset: u64, data: &[u8]) {
        let aligned = match data.len() {
            4 => offset.is_multiple_of(4),
            8 => offset.is_multiple_of(8),
            _ => false,
        };
        if !aligned {
            return;
        }
        self.catch_up();
        let before = self.read_entry(vector);
        let mut words = before;
        let first = usize::try_from(offset / 4).unwrap_or(usize::MAX);
        for (word, chunk) in words.iter_mut().skip(first).zip(data.chunks_exact(4)) {
            if let Ok(chunk) = chunk.try_into() {
                *word = u32::from_le_bytes(chunk);
            }
        }
        let [low, high, data, control] = words;
        let address = u64::from(high) << 32 | u64::from(low);
        let masked = control & MASK_BIT != 0;
        let index = vector.as_usize();
        match (&mut self.owner, self.mode) {
            (Owner::Legacy(entries), _) => {
                let new = LegacyEntry { message: GuestMessage { address, data }, masked };
                let Some(entry) = entries.get_mut(index).filter(|entry| **entry != new) else {
                    return;
                };
                let unmasked = entry.masked && !masked;
                *entry = new;
                if unmasked {
                    self.set_up_legacy();
                }
                self.legacy_entry_changed(vector);
            }
            (Owner::Assigned(vectors), TableMode::Trapped) => {
                // Address and data are the host's.
                let Some(entry) = vectors.get_mut(index).filter(|entry| entry.masked != masked)
                else {
                    return;
                };
                entry.masked = masked;
                if let Err(error) = self.converge_vector(vector) {
                    self.log_routes(&error);
                }
                if self.held {
                    self.evaluate();
                }
            }
            // The access exited before the page was mapped: done on the guest's behalf.
            (Owner::Assigned(_), TableMode::Direct) => {
                // Only what was written: another vCPU may write the rest at this moment.
                let [old_low, old_high, old_data, old_control] = before;
                if [low, high, data] != [old_low, old_high, old_data] {
                    let message = TableMessage { address, data };
                    let _ = self.function.set_table_message(vector, message);
                }
                if control != old_control {
                    let _ = self.function.set_masked(vector, masked);
                }
            }
        }
    }

    fn legacy_entry_changed(&mut self, vector: VectorIndex) {
        if let Err(error) = self.converge_vector(vector) {
            self.log_routes(&error);
            // Events must not go where the vector led before.
            if let Err(error) = self.detach_misled(vector.as_usize()) {
                self.log_routes(&error);
            }
        }
    }

    /// Sets all vectors up when the first one is unmasked: the set-up of vectors one by one takes a request each, and a guest that configures needs none of it.
    pub(crate) fn set_up_legacy(&mut self) {
        let Owner::Legacy(entries) = &self.owner else { return };
        let used = self.control.enable && entries.iter().any(|entry| !entry.masked);
        if !used || !self.vectors.is_empty() {
            return;
        }
        // An unfinished `configure` has no use for its events when this succeeds.
        let unfinished = self.preparation.as_mut().map(|running| &mut running.events);
        let mut events = unfinished.map(std::mem::take).unwrap_or_default();
        let prepared = events.len();
        self.vectors = match self.new_vectors(self.layout.vectors(), &mut events) {
            Ok(vectors) => vectors,
            Err(error) => {
                self.complain("no interrupts for the function", &error);
                self.give_back(events, prepared);
                return;
            }
        };
        if let Err(error) = self.set_up_what_there_is(1, &mut events) {
            self.complain("interrupts could not be set up", &error);
            events.extend(self.retire(0));
            self.tear_down();
            self.give_back(events, prepared);
        }
    }

    /// Gives an unfinished `configure` back what it had prepared.
    fn give_back(&mut self, mut events: Vec<EventFd>, prepared: usize) {
        if let Some(unfinished) = &mut self.preparation {
            events.truncate(prepared);
            unfinished.events = events;
        }
    }
}
