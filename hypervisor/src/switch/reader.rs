//! What can be read: by the VMM, by calls, by accesses that exit. Nothing here changes the state.

use pvmsi_protocol::{
    CallError, Generation, Parameter, QueryFunctionAnswer, QueryVectorsRequest, Reasons,
    TableMessage, TableMode, VectorAnswer, VectorIndex, VectorState,
};

use super::decide::{self, Wanted};
use super::fixed::Fixed;
use super::guest::{Guest, LegacyEntry, Owner};
use super::set::VectorSet;
use super::wires::Wire;
use super::{Switch, World};
use crate::capability::{CONFIG_BYTES, MSIX_ENABLE, MSIX_FUNCTION_MASK};
use crate::counters::Counters;
use crate::function::{Isolation, PciFunction};
use crate::layout::{BarIndex, ENTRY_BYTES, Layout, NotMappable, PendingBits, Target};
use crate::vector_table::is_unanswered;
use crate::window::View;

/// Vector control, in an entry: little-endian, and the mask bit is its lowest.
pub(super) const CONTROL_OFFSET: u64 = 12;

/// The widest access in bytes.
const ACCESS_MAX: usize = 8;

/// Vector control: the other bits are the function's.
pub(super) const MASK_BIT: u32 = 1;

/// An entry of the table as the guest sees it: address low, address high, data, vector control.
pub(super) type Words = [u32; 4];

impl Switch {
    /// Why the table is not direct.
    pub(crate) fn reasons(&self) -> Reasons {
        let held = self.world.held.is_some();
        decide::reasons(&self.fixed, &self.guest, self.host, self.debts, held)
    }

    pub(super) fn view(&self) -> View {
        decide::view(&self.guest.placement, self.host, self.world.mode)
    }

    /// Whether the function answers accesses to its memory.
    #[inline]
    pub(super) fn answers(&self) -> bool {
        decide::answers(&self.guest.placement, self.host)
    }

    /// What a vector shall be now.
    pub(super) fn wanted(&self, vector: VectorIndex) -> Wanted {
        self.wanted_for(vector, self.world.wires.wire(vector))
    }

    /// The same, for one whose wire is known.
    #[inline(always)]
    pub(super) fn wanted_for(&self, vector: VectorIndex, wire: Wire) -> Wanted {
        decide::wanted(&self.fixed, &self.guest, self.host, self.world.mode, vector, wire)
    }

    pub(crate) fn mode(&self) -> TableMode {
        self.world.mode
    }

    pub(crate) fn assigned(&self) -> u16 {
        self.guest.owner.assigned()
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.fixed.layout
    }

    pub(crate) fn isolation(&self) -> &Isolation {
        &self.fixed.isolation
    }

    /// Why the table's pages cannot be shown.
    pub(crate) fn not_mappable(&self) -> Option<NotMappable> {
        self.fixed.not_mappable
    }

    pub(crate) fn counters(&self) -> Counters {
        self.tally.counters
    }

    /// Vectors that the guest uses, or has asked for, and that nothing on the host stands behind.
    pub(crate) fn without_interrupts(&self) -> u16 {
        match &self.guest.owner {
            Owner::Legacy(_) if !self.guest.control.enable => 0,
            Owner::Legacy(entries) => {
                let lacks = |&(index, entry): &(u16, &LegacyEntry)| {
                    !entry.masked && self.lacks_interrupt(VectorIndex(index))
                };
                // At most 2048, by construction.
                u16::try_from((0..).zip(entries).filter(lacks).count()).unwrap_or(u16::MAX)
            }
            Owner::Assigned(_) => self.tally.asked.saturating_sub(self.assigned()),
        }
    }

    /// Whether nothing stands behind a vector but what an unfinished `configure` has prepared.
    pub(super) fn lacks_interrupt(&self, vector: VectorIndex) -> bool {
        self.guest.is_prepared(vector)
            || vector.as_usize() >= self.world.set_up
            || self.world.wires.wire(vector) == Wire::None
    }

    pub(crate) fn largest_call(&self) -> u16 {
        self.tally.largest_call
    }

    pub(crate) fn generation(&self) -> Generation {
        self.tally.generation
    }

    pub(crate) fn query_function(&self) -> QueryFunctionAnswer {
        QueryFunctionAnswer {
            msi_vectors: 0,
            msix_vectors: self.fixed.vectors_offered(),
            assigned: self.assigned(),
            mode: self.world.mode,
            reasons: self.reasons(),
            generation: self.tally.generation,
            delivery: self.function.delivery(),
        }
    }

    /// What a `configure` made of the granted vectors, with the pending bits that it has taken.
    pub(crate) fn granted(
        &self,
        pending: VectorSet,
    ) -> impl ExactSizeIterator<Item = VectorAnswer> {
        (0..self.assigned()).zip(self.world.wires.all()).map(move |(index, vector)| VectorAnswer {
            table_message: vector.table_message,
            // Most often there are none.
            pending: !pending.is_empty() && pending.contains(VectorIndex(index)),
        })
    }

    /// For reads that need the function itself.
    pub(crate) fn reader(&mut self) -> Reader<'_> {
        Reader {
            fixed: &self.fixed,
            guest: &self.guest,
            answers: self.answers(),
            world: &self.world,
            counters: &mut self.tally.counters,
            other_bits: &mut self.tally.other_bits,
            function: self.function.as_mut(),
        }
    }
}

/// Reads a function: its state, which it cannot change, and the function itself.
pub(crate) struct Reader<'a> {
    fixed: &'a Fixed,
    guest: &'a Guest,
    answers: bool,
    world: &'a World,
    counters: &'a mut Counters,
    other_bits: &'a mut bool,
    function: &'a mut dyn PciFunction,
}

impl Reader<'_> {
    /// The state of a range of vectors, at most `room` of them.
    pub(crate) fn query_vectors(
        &mut self,
        QueryVectorsRequest { first, count }: QueryVectorsRequest,
        room: usize,
    ) -> Result<Vec<VectorState>, CallError> {
        if count == 0 {
            return Err(CallError::parameter(Parameter::Count));
        }
        let vectors = self.fixed.layout.vectors();
        let Some(end) = first.checked_add(count).filter(|&end| end <= vectors) else {
            return Err(CallError::vector(Parameter::Vector, first.max(vectors)));
        };
        if room == 0 {
            return Err(CallError::parameter(Parameter::AnswerRoom));
        }
        Ok((first..end).take(room).map(|index| self.vector_state(VectorIndex(index))).collect())
    }

    fn vector_state(&mut self, vector: VectorIndex) -> VectorState {
        let assigned = match &self.guest.owner {
            Owner::Legacy(_) => None,
            Owner::Assigned(vectors) => vectors.get(vector.as_usize()).copied(),
        };
        let known = self.world.wires.get(vector).and_then(|vector| vector.table_message);
        VectorState {
            assigned: assigned.is_some(),
            guest_message: assigned.and_then(|vector| vector.message),
            table_message: assigned.and(known),
            masked: self.masked(vector),
            pending: self.pending(vector),
        }
    }

    /// The mask bit that the guest would read.
    fn masked(&mut self, vector: VectorIndex) -> bool {
        match (&self.guest.owner, self.world.mode) {
            (Owner::Assigned(_), TableMode::Direct) => {
                self.function.table().masked(vector).unwrap_or(true)
            }
            (owner, _) => owner.masked(vector),
        }
    }

    /// The pending bit that the guest would read: of what waits here, and of what waits in the function, where that is known.
    fn pending(&mut self, vector: VectorIndex) -> bool {
        let known = self.fixed.layout.pending_bits() == PendingBits::InBar;
        self.world.aside.contains(vector)
            || self.world.wires.waits(vector)
            || known && self.answers && self.function.table().pending(vector).unwrap_or(false)
    }

    pub(crate) fn config_read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if offset >= CONFIG_BYTES {
            return;
        }
        self.function.config_read(offset, data);
        let registers = &self.fixed.registers;
        let mut bits = 0;
        if self.guest.control.enable {
            bits |= MSIX_ENABLE;
        }
        if self.guest.control.function_mask {
            bits |= MSIX_FUNCTION_MASK;
        }
        for (at, byte) in (offset..).zip(data) {
            if at == registers.msix_control {
                *byte = (*byte & !(MSIX_ENABLE | MSIX_FUNCTION_MASK)) | bits;
            }
            if let Some((bits, value)) = self.fixed.served(at) {
                *byte = (*byte & !bits) | value;
            }
            if let Some((_, value)) = registers.msi_unlinked.filter(|(link, _)| *link == at) {
                *byte = value;
            }
            *byte &= self.fixed.layout.bar_mask(at);
        }
    }

    /// A read of a BAR. What no register answers reads as ones.
    pub(crate) fn bar_read(&mut self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let Some(hit) = hit(&self.fixed.layout, bar, offset, data.len()) else { return };
        match hit {
            Hit::Neighbour => {
                count(&mut self.counters.neighbour_reads);
                if self.answers {
                    self.function.bar_read(bar, offset, data);
                }
            }
            Hit::Entry { vector, offset } => {
                count(&mut self.counters.table_reads);
                let mut words = self.read_entry(vector);
                let beyond = u64::try_from(data.len()).unwrap_or(u64::MAX);
                if offset.saturating_add(beyond) > CONTROL_OFFSET {
                    let [.., control] = &mut words;
                    *control |= self.other_bits(vector);
                }
                let bytes = words.into_iter().flat_map(u32::to_le_bytes);
                let skip = usize::try_from(offset).unwrap_or(usize::MAX);
                for (target, byte) in data.iter_mut().zip(bytes.skip(skip)) {
                    *target = byte;
                }
            }
            Hit::Pending { offset } => {
                count(&mut self.counters.pending_accesses);
                for (at, byte) in (offset..).zip(data) {
                    *byte = self.read_pending(at);
                }
            }
            Hit::NoRegister => count(&mut self.counters.table_reads),
        }
    }

    /// Bits of vector control beside the mask bit: the function's own, whoever has the table.
    fn other_bits(&mut self, vector: VectorIndex) -> u32 {
        if !self.answers {
            return 0;
        }
        let table = self.function.table();
        let control = table.control(vector).unwrap_or(0);
        // Ones are what nobody has answered, if the rest of the entry reads so too: a guest may
        // have written all bits of this word.
        let silent = control == u32::MAX && table.message(vector).is_ok_and(is_unanswered);
        let bits = if silent { 0 } else { control & !MASK_BIT };
        *self.other_bits |= bits != 0;
        bits
    }

    /// An entry of the table as the guest sees it, but for bits of vector control beside the mask bit.
    pub(super) fn read_entry(&mut self, vector: VectorIndex) -> Words {
        let index = vector.as_usize();
        let (address, data) = match &self.guest.owner {
            Owner::Legacy(entries) => {
                let entry = entries.get(index).copied().unwrap_or(LegacyEntry::RESET);
                (entry.message.address, entry.message.data)
            }
            Owner::Assigned(vectors) if index < vectors.len() => {
                let own = self.world.wires.get(vector).and_then(|vector| vector.table_message);
                let now = match self.world.mode {
                    TableMode::Direct => self.function.table().message(vector).ok(),
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
            let vector = vector.filter(|&vector| self.fixed.layout.has(vector));
            if vector.is_some_and(|vector| self.pending(vector)) {
                bits |= 1 << bit;
            }
        }
        bits
    }
}

/// What an access hits. No register where its last byte hits another structure than its first: an access that is not aligned can reach into two, and no hardware answers it.
pub(super) enum Hit {
    Neighbour,
    /// The offset is one of the entry.
    Entry {
        vector: VectorIndex,
        offset: u64,
    },
    /// The offset is one of the array.
    Pending {
        offset: u64,
    },
    NoRegister,
}

/// See [`Hit`]; `None` where the access leaves the BAR, is empty, or is wider than any processor makes them: that could reach across a whole structure.
#[inline(always)]
pub(super) fn hit(layout: &Layout, bar: BarIndex, offset: u64, length: usize) -> Option<Hit> {
    if length > ACCESS_MAX {
        return None;
    }
    let size = (*layout.bars().get(bar.as_usize())?)?.size;
    let beyond = u64::try_from(length).ok()?.checked_sub(1)?;
    let last = offset.checked_add(beyond).filter(|&last| last < size)?;
    Some(match layout.target(bar, offset) {
        Target::Table { vector, offset } if offset.saturating_add(beyond) < ENTRY_BYTES => {
            Hit::Entry { vector, offset }
        }
        Target::Table { .. } => Hit::NoRegister,
        Target::Pending { offset } => match layout.target(bar, last) {
            Target::Pending { .. } => Hit::Pending { offset },
            _ => Hit::NoRegister,
        },
        Target::Neighbour => match layout.target(bar, last) {
            Target::Neighbour => Hit::Neighbour,
            _ => Hit::NoRegister,
        },
    })
}

pub(super) fn count(counter: &mut u64) {
    *counter = counter.saturating_add(1);
}
