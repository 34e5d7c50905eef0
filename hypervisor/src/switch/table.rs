//! Writes of a function's BARs that exit: the trapped table, and what lies beside it.

use pvmsi_protocol::{GuestMessage, TableMessage, TableMode, VectorIndex};

use super::Switch;
use super::guest::{LegacyEntry, Owner};
use super::host::Debts;
use super::operation::{Decoded, Operation};
use super::reader::{CONTROL_OFFSET, Hit, MASK_BIT, count, hit};
use crate::layout::BarIndex;

impl Switch {
    /// A write of a BAR.
    pub(crate) fn bar_write(&mut self, decoded: &Decoded, bar: BarIndex, offset: u64, data: &[u8]) {
        let Some(hit) = hit(&self.fixed.layout, bar, offset, data.len()) else { return };
        let counters = &mut self.tally.counters;
        match hit {
            Hit::Neighbour => {
                count(&mut counters.neighbour_writes);
                if self.answers() {
                    self.function.bar_write(bar, offset, data);
                }
            }
            // Read-only.
            Hit::Pending { .. } => {
                count(&mut counters.pending_accesses);
            }
            Hit::Entry { vector, offset } => {
                count(&mut counters.table_writes);
                // The specification leaves others undefined, and here they do nothing.
                let aligned = match data.len() {
                    4 => offset.is_multiple_of(4),
                    8 => offset.is_multiple_of(8),
                    _ => false,
                };
                if aligned {
                    Operation::begin(self, decoded).write_entry(vector, offset, data);
                }
            }
            Hit::NoRegister => count(&mut counters.table_writes),
        }
    }
}

impl Operation<'_> {
    // What a mask bit goes through, from here to `Wires::attach`, is inlined: eight calls in a row would
    // save and restore their registers, which costs a tenth of the exit's instructions.
    /// An aligned write of 4 or 8 bytes of an entry.
    #[inline(always)]
    fn write_entry(mut self, vector: VectorIndex, offset: u64, data: &[u8]) {
        let index = vector.as_usize();
        let control = control(offset, data);
        if self.world.mode == TableMode::Trapped {
            if let Some(control) = control
                && (control > MASK_BIT || self.tally.other_bits)
            {
                self.write_other_bits(vector, control & !MASK_BIT);
            }
            if offset != CONTROL_OFFSET && self.guest.owner.is_assigned() {
                self.put_entry_right(vector);
            }
            if let Owner::Assigned(vectors) = &mut self.guest.owner {
                // Address and data are the host's: only the mask bit is written.
                if let Some(masked) = control.map(is_masked)
                    && let Some(entry) = vectors.get_mut(index)
                    && entry.masked != masked
                {
                    entry.masked = masked;
                    self.vector_changed(vector);
                }
                return;
            }
        }
        let before = self.reader().read_entry(vector);
        let mut words = before;
        let first = usize::try_from(offset / 4).unwrap_or(usize::MAX);
        for (word, chunk) in words.iter_mut().skip(first).zip(data.chunks_exact(4)) {
            if let Ok(chunk) = chunk.try_into() {
                *word = u32::from_le_bytes(chunk);
            }
        }
        let [low, high, data, mask] = words;
        let address = u64::from(high) << 32 | u64::from(low);
        let masked = is_masked(mask);
        match &mut self.guest.owner {
            Owner::Legacy(entries) => {
                let new = LegacyEntry { message: GuestMessage { address, data }, masked };
                let Some(entry) = entries.get_mut(index).filter(|entry| **entry != new) else {
                    return;
                };
                let unmasked = entry.masked && !masked;
                *entry = new;
                if unmasked && self.guest.control.enable {
                    self.set_up_used(vector);
                } else if self.debts.contains(Debts::LEGACY_SET_UP)
                    && self.without_interrupts() == 0
                {
                    // It was this one that lacked something.
                    self.debts.remove(Debts::LEGACY_SET_UP);
                }
                self.vector_changed(vector);
            }
            // The access exited before the page was mapped: done on the guest's behalf.
            Owner::Assigned(_) => {
                // Only what was written: another vCPU may write the rest at this moment.
                let [old_low, old_high, old_data, _] = before;
                if [low, high, data] != [old_low, old_high, old_data] {
                    let message = TableMessage { address, data };
                    let _ = self.function.table().set_message(vector, message);
                }
                if let Some(control) = control {
                    let _ = self.function.table().set_control(vector, control);
                }
            }
        }
    }

    /// Bits of vector control beside the mask bit are the function's, whoever has the table.
    #[cold]
    fn write_other_bits(&mut self, vector: VectorIndex, bits: u32) {
        self.tally.other_bits = true;
        if self.answers()
            && let Ok(control) = self.function.table().control(vector)
            && control & !MASK_BIT != bits
        {
            let _ = self.function.table().set_control(vector, control & MASK_BIT | bits);
        }
    }

    #[inline(always)]
    fn vector_changed(&mut self, vector: VectorIndex) {
        if vector.as_usize() < self.world.wires.len() {
            // Most often a mask bit, and no other vector has anything to be done.
            if self.world.wires.changed.is_empty() && self.work_off_one(vector) {
                return;
            }
            self.world.wires.changed.insert(vector);
        }
        self.converge_or_owe();
    }
}

/// What an aligned write of 4 or 8 bytes of an entry writes to vector control, the last word; `None` where it ends before.
#[inline(always)]
fn control(offset: u64, data: &[u8]) -> Option<u32> {
    let bytes =
        data.last_chunk().filter(|_| offset == CONTROL_OFFSET || data.len() == 8 && offset == 8);
    bytes.map(|bytes| u32::from_le_bytes(*bytes))
}

fn is_masked(control: u32) -> bool {
    control & MASK_BIT != 0
}
