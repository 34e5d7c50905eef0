//! The function's own table: the messages that the host's kernel has put there.

use pvmsi_protocol::{TableMessage, TableMode, VectorIndex};

use super::Switch;
use super::decide;
use super::host::Debts;
use crate::vector_table::{TableError, VectorTable};

impl Switch {
    /// Learns what the host has put into the table, as soon as it can be read. Of a direct table no entry that the guest has.
    pub(super) fn read_table_messages(&mut self) {
        if !self.guest.placement.answers() {
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
        let read = {
            let mut vectors = self.world.wires.range_mut(usize::from(first)..set_up);
            self.function.table().messages(first..end, &mut |_, message| {
                // Those that are known stay, even where the table has lost them.
                if let Some((_, vector)) = vectors.next() {
                    vector.table_message.get_or_insert(message);
                }
            })
        };
        match read {
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
        if !moves || !self.guest.placement.answers() {
            return;
        }
        let table = self.function.table();
        let (blocked, quiet) = (self.world.blocked, self.world.quiet);
        let mut moved = false;
        for (index, vector) in self.world.wires.first_mut(self.world.set_up) {
            let Some(message) = &mut vector.table_message else { continue };
            let held_back = blocked.contains(index) || quiet.contains(index);
            if let Ok(Some(now)) = hosts_message(table, index, held_back)
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
        if !self.guest.placement.answers() {
            self.debts.insert(Debts::TABLE);
            return true;
        }
        let trapped = self.world.mode == TableMode::Trapped;
        let moving = decide::host_moves_messages(&self.fixed, self.world.mode);
        let (blocked, quiet) = (self.world.blocked, self.world.quiet);
        let table = self.function.table();
        let written = self.world.wires.first(self.world.set_up).try_for_each(|(index, vector)| {
            let Some(message) = vector.table_message else { return Ok(()) };
            let held_back = blocked.contains(index) || quiet.contains(index);
            if !moving || hosts_message(table, index, held_back)?.is_none() {
                table.set_message(index, message)?;
            }
            if trapped { table.set_masked(index, held_back) } else { Ok(()) }
        });
        self.debts.set(Debts::TABLE, written.is_err());
        if let Err(error) = &written {
            self.complain("the vector table could not be written", error);
        }
        written.is_ok()
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

/// The message that the host's kernel has in an entry; `None` where a reset has left its traces: all clear, all ones where nobody answers, a change meanwhile, or a mask bit that the service has not set.
fn hosts_message(
    table: &mut dyn VectorTable,
    vector: VectorIndex,
    held_back: bool,
) -> Result<Option<TableMessage>, TableError> {
    let message = table.message(vector)?;
    let masked = table.masked(vector)? && !held_back;
    let stands = table.message(vector)? == message;
    let lost = masked || !stands || matches!(message.address, 0 | u64::MAX);
    Ok((!lost).then_some(message))
}
