//! The function's own table: the messages that the host's kernel has put there, and mask bits that stay.

use std::io;

use pvmsi_protocol::{TableMessage, TableMode, VectorIndex};

use super::decide;
use super::host::Debts;
use super::set::VectorSet;
use super::{Switch, World};
use crate::vector_table::{TableError, is_none};

/// How often a mask bit is looked at. The kernel changes one when it moves an interrupt: more than a few times in a row nobody asks it to.
const LOOKS: usize = 4;

impl Switch {
    /// Learns what the host has put into the table, as soon as it can be read. Of a direct table no entry that the guest has.
    ///
    /// Where an entry reads as no message, none that is read with it is believed: what a function gives for zeros may begin within an entry.
    pub(super) fn read_table_messages(&mut self) {
        if !self.answers() || self.debts.contains(Debts::UNREADABLE) {
            return;
        }
        let first = match self.world.mode {
            TableMode::Trapped => 0,
            TableMode::Direct => usize::from(self.assigned()),
        };
        let set_up = self.world.set_up;
        let unknown = self.world.wires.range_mut(first..set_up);
        let unknown = unknown.filter(|(_, vector)| vector.table_message.is_none());
        let Some(VectorIndex(first)) = unknown.map(|(index, _)| index).next() else {
            self.debts.remove(Debts::MESSAGES);
            return;
        };
        let end = u16::try_from(set_up).unwrap_or(u16::MAX);
        let mut unreadable = false;
        let read = {
            let mut vectors = self.world.wires.range_mut(usize::from(first)..set_up);
            self.function.table().messages(first..end, &mut |_, message| {
                if let Some((_, vector)) = vectors.next() {
                    debug_assert_eq!(vector.table_message, None, "those that are known come first");
                    if is_none(message) {
                        unreadable = true;
                    }
                    vector.table_message = Some(message);
                }
            })
        };
        match read {
            Ok(()) if unreadable => {
                for (_, vector) in self.world.wires.range_mut(usize::from(first)..set_up) {
                    vector.table_message = None;
                }
                self.debts.remove(Debts::MESSAGES);
                self.debts.insert(Debts::UNREADABLE);
                let error = io::Error::other("an entry reads as zeros or ones");
                self.complain("the vector table does not read as the host has written it", &error);
            }
            Ok(()) => self.debts.remove(Debts::MESSAGES),
            // Nor ever will.
            Err(TableError::Unreachable) => {}
            Err(error) => {
                self.debts.insert(Debts::MESSAGES);
                self.complain("the vector table could not be read", &error);
            }
        }
    }

    /// Whether all messages of the table are known.
    pub(super) fn knows_messages(&self) -> bool {
        self.world.wires.first(self.world.set_up).all(|(_, vector)| vector.table_message.is_some())
    }

    /// Learns the messages that the host has changed by itself.
    pub(super) fn follow_messages(&mut self) {
        let moves = decide::host_moves_messages(&self.fixed, self.world.mode);
        if !moves || !self.answers() {
            return;
        }
        let all = VectorSet::first(self.world.set_up);
        let Ok(hosts) = self.hosts_messages(&all) else { return };
        let mut moved = false;
        for ((_, vector), now) in self.world.wires.first_mut(self.world.set_up).zip(hosts) {
            if let (Some(message), Some(now)) = (&mut vector.table_message, now)
                && now != *message
            {
                *message = now;
                moved = true;
            }
        }
        if moved {
            self.tally.next_generation();
        }
    }

    /// Puts the table messages back after a reset; the mask bits too while the table is trapped, where they are the host's. `false` where it could not be written.
    pub(super) fn rewrite_table(&mut self) -> bool {
        if self.world.set_up == 0 {
            return true;
        }
        if !self.answers() {
            self.debts.insert(Debts::TABLE);
            return true;
        }
        let written = self.write_table(&VectorSet::first(self.world.set_up));
        self.debts.set(Debts::TABLE, written.is_err());
        if let Err(error) = &written {
            self.complain("the vector table could not be written", error);
        }
        written.is_ok()
    }

    /// The guest writes the vector's table message back, so the function may have lost its entry in a reset that
    /// the host has not seen.
    #[cold]
    pub(super) fn put_entry_right(&mut self, vector: VectorIndex) {
        if !self.can_reach(vector) {
            return;
        }
        let mut entry = VectorSet::default();
        entry.insert(vector);
        if let Err(error) = self.write_table(&entry) {
            self.debts.insert(Debts::TABLE);
            self.complain("the vector table could not be written", &error);
        }
    }

    fn write_table(&mut self, vectors: &VectorSet) -> Result<(), TableError> {
        let trapped = self.world.mode == TableMode::Trapped;
        let moves = decide::host_moves_messages(&self.fixed, self.world.mode);
        // What the kernel has there is right.
        let hosts = if moves { self.hosts_messages(vectors)? } else { Vec::new() };
        let World { blocked, quiet, wires, .. } = &self.world;
        let table = self.function.table();
        for index in vectors.iter() {
            let Some(message) = wires.get(index).and_then(|vector| vector.table_message) else {
                continue;
            };
            if hosts.get(index.as_usize()).copied().flatten().is_none() {
                table.set_message(index, message)?;
            }
            if trapped {
                table.set_masked(index, blocked.contains(index) || quiet.contains(index))?;
            }
        }
        Ok(())
    }

    /// The messages that the host's kernel has in the table for these vectors; none where a reset has left its traces: all clear, all ones where nobody answers, or a mask bit that the service has not set.
    fn hosts_messages(
        &mut self,
        vectors: &VectorSet,
    ) -> Result<Vec<Option<TableMessage>>, TableError> {
        let mut messages = vec![None; self.world.set_up];
        let doubtful = self.look_at_messages(vectors, &mut messages)?;
        if !doubtful.is_empty() {
            // The kernel masks an entry while it moves it.
            self.function.settle();
            self.look_at_messages(&doubtful, &mut messages)?;
        }
        Ok(messages)
    }

    /// Reads the messages of these vectors; those that may be about to change, or that a reset has masked.
    fn look_at_messages(
        &mut self,
        vectors: &VectorSet,
        messages: &mut [Option<TableMessage>],
    ) -> Result<VectorSet, TableError> {
        let World { blocked, quiet, .. } = &self.world;
        let table = self.function.table();
        let mut doubtful = VectorSet::default();
        for vector in vectors.iter() {
            let message = table.message(vector)?;
            let held_back = blocked.contains(vector) || quiet.contains(vector);
            let masked = table.masked(vector)? && !held_back;
            if masked || table.message(vector)? != message {
                doubtful.insert(vector);
            }
            let lost = doubtful.contains(vector) || is_none(message);
            if let Some(place) = messages.get_mut(vector.as_usize()) {
                *place = (!lost).then_some(message);
            }
        }
        Ok(doubtful)
    }

    /// Which of these vectors the guest, or the service, has masked in the function's table.
    ///
    /// x86 Linux sets a mask bit for microseconds when it moves an interrupt (`__irq_move_irq`), and when one arrives while
    /// its handler runs on another processor (`handle_edge_irq`). A bit that is seen set is believed
    /// when it is still set after the handlers have run.
    pub(super) fn masked_for_good(&mut self, mut masked: VectorSet) -> VectorSet {
        if !decide::host_moves_mask_bits(&self.fixed) {
            return masked;
        }
        for _ in 0..LOOKS {
            if masked.is_empty() {
                break;
            }
            self.function.settle();
            let table = self.function.table();
            let mut still = VectorSet::default();
            for vector in masked.iter() {
                // There is no other place that knows it.
                if table.masked(vector).or_else(|_| table.masked(vector)).unwrap_or(true) {
                    still.insert(vector);
                }
            }
            if still == masked {
                break;
            }
            masked = still;
        }
        masked
    }

    /// Masks these vectors in the function's table, and waits for what was under way. The host's kernel clears the bit of an interrupt that it is about to move, so it is looked at afterwards.
    ///
    /// # Errors
    /// When the table cannot be reached, or the bits do not stay.
    pub(super) fn mask_for_good(&mut self, vectors: &VectorSet) -> Result<(), TableError> {
        let mut clear = *vectors;
        for _ in 0..LOOKS {
            let table = self.function.table();
            for vector in clear.iter() {
                table.set_masked(vector, true)?;
            }
            self.function.settle();
            if !decide::host_moves_mask_bits(&self.fixed) {
                return Ok(());
            }
            let table = self.function.table();
            let set = clear;
            clear = VectorSet::default();
            for vector in set.iter() {
                if !table.masked(vector)? {
                    clear.insert(vector);
                }
            }
            if clear.is_empty() {
                return Ok(());
            }
        }
        Err(io::Error::other("the host's kernel clears mask bits as often as they are set").into())
    }

    /// The guest may have written other messages into the table that is taken back; the host's belong there.
    pub(super) fn put_messages_right(&mut self) {
        for (index, vector) in self.world.wires.first(self.world.set_up) {
            if let Some(message) = vector.table_message
                && self.function.table().message(index).ok() != Some(message)
                && self.function.table().set_message(index, message).is_err()
            {
                self.debts.insert(Debts::TABLE);
            }
        }
    }
}
