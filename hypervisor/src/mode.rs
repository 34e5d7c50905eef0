//! The switch itself: handing the table to the guest, and taking it back.

use pvmsi_protocol::{Reasons, TableMode, VectorIndex};

use crate::event;
use crate::state::{FunctionState, Owner};

impl FunctionState {
    /// Brings the mode in line with the reasons.
    pub(crate) fn evaluate(&mut self) {
        self.held &= self.mode == TableMode::Trapped && matches!(self.owner, Owner::Assigned(_));
        let others = self.reasons().difference(Reasons::HELD_EVENT);
        match self.mode {
            TableMode::Trapped if others.is_empty() => {
                // Found out without touching the function: this comes with each call and each
                // trapped write for as long as the event waits.
                self.held = self.masked_event_waits();
                if !self.held {
                    self.enter_direct(None);
                }
            }
            // Not looked for while the table is trapped anyway, but no longer said than it is true.
            TableMode::Trapped if self.held => self.held = self.masked_event_waits(),
            TableMode::Direct if !others.is_empty() => drop(self.leave_direct()),
            _ => {}
        }
    }

    /// Whether the eventfd of a vector that only its mask bit keeps from firing, with the table trapped, holds an event.
    fn masked_event_waits(&self) -> bool {
        let Owner::Assigned(assigned) = &self.owner else { return false };
        assigned.iter().zip(&self.vectors).enumerate().any(|(index, (assigned, vector))| {
            assigned.masked
                && !vector.attached
                && self.could_fire(index)
                && event::is_signalled(&vector.event)
        })
    }

    /// Hands the table to the guest. Stays trapped where an event waits for a masked vector, unless `report` takes it, or where mapping fails.
    pub(crate) fn enter_direct(&mut self, mut report: Option<&mut [bool]>) {
        let Owner::Assigned(assigned) = &self.owner else { return };
        // From here on the function's own mask bits hold events back. Vectors that are set up but
        // not granted are nobody's: they stay masked.
        let masked: Vec<_> = (0..self.set_up)
            .filter(|&index| assigned.get(index).is_none_or(|vector| vector.masked))
            .collect();
        let granted = assigned.len();
        if !self.can_hand_over() {
            self.owing = true;
            return;
        }
        let mut given = self.write_masks(&masked, true);
        self.function.settle();
        for &index in masked.iter().filter(|&&index| index < granted) {
            let could_fire = self.could_fire(index);
            let Some(vector) = self.vectors.get(index) else { continue };
            match report.as_mut().and_then(|report| report.get_mut(index)) {
                Some(pending) => *pending |= event::drain(&vector.event),
                // What else keeps it from firing is the host's to end, and is looked at then.
                None => self.held |= could_fire && event::is_signalled(&vector.event),
            }
        }
        given &= !self.held;
        let masked_in_table = given;
        if given {
            self.mode = TableMode::Direct;
            if let Err(error) = self.attach_wanted(0..self.vectors.len()) {
                self.log_routes(&error);
                self.unmappable = true;
            } else if self.mode == TableMode::Trapped {
                // An event came for a vector that is masked: the table was taken back already.
                return;
            } else {
                self.unmappable = self.show(&self.view()).is_err();
            }
            given = !self.unmappable;
        }
        if given {
            self.handed_over();
            return;
        }
        self.mode = TableMode::Trapped;
        let taken_out = !self.unshown || self.take_out(&self.view());
        if masked_in_table && !taken_out && self.window.shows_table() {
            // The guest's stores count for as long as they reach the table.
            self.mode = TableMode::Direct;
            self.handed_over();
            return;
        }
        if let Err(error) = self.detach_unwanted() {
            self.log_routes(&error);
        }
        self.unmask(&masked);
        self.unmappable |= !self.held;
    }

    fn handed_over(&mut self) {
        self.counters.switches_to_direct = self.counters.switches_to_direct.saturating_add(1);
        self.mode_changed();
    }

    /// Tries to hand the table over again where that has failed.
    pub(crate) fn try_again(&mut self) {
        self.unmappable = false;
        self.owing = false;
    }

    /// Whether the table is as the guest shall find it.
    fn can_hand_over(&mut self) -> bool {
        self.hold_back();
        let mut set_up = self.vectors.iter().take(self.set_up);
        set_up.all(|vector| !vector.blocked && vector.table_message.is_some())
            && self.set_up == self.vectors.len()
            && !self.stale
            && !self.leftover
    }

    /// Takes the table back; `false` where its pages are still shown, and the table is direct as before. What the guest has masked is masked by the host from now on, and its events wait in eventfds.
    pub(crate) fn leave_direct(&mut self) -> bool {
        if self.mode == TableMode::Trapped {
            return true;
        }
        if !self.take_back() {
            return false;
        }
        let count = usize::from(self.assigned());
        let bits = self.read_mask_bits();
        if let Err(error) = self.detach_unwanted() {
            self.log_routes(&error);
        }
        let masked: Vec<_> = (0..self.set_up)
            .filter(|&index| index >= count || bits.get(index) == Some(&true))
            .collect();
        self.put_messages_right();
        self.unmask(&masked);
        true
    }

    /// The guest may have written other messages into the table that is taken back; the host's belong there.
    pub(crate) fn put_messages_right(&mut self) {
        for (index, vector) in (0..).zip(self.vectors.iter().take(self.set_up)) {
            let index = VectorIndex(index);
            if let Some(message) = vector.table_message
                && self.function.table_message(index).ok() != Some(message)
            {
                self.stale |= self.function.set_table_message(index, message).is_err();
            }
        }
        self.behind |= self.stale;
    }

    /// Learns the mask bits that the guest has written into the table, and returns them.
    pub(crate) fn read_mask_bits(&mut self) -> Vec<bool> {
        let bits: Vec<_> = (0..self.assigned())
            .map(|index| {
                let vector = VectorIndex(index);
                // There is no other place that knows it, and no second chance.
                let read = self.function.masked(vector).or_else(|_| self.function.masked(vector));
                read.unwrap_or(true)
            })
            .collect();
        if let Owner::Assigned(assigned) = &mut self.owner {
            for (vector, masked) in assigned.iter_mut().zip(&bits) {
                vector.masked = *masked;
            }
        }
        bits
    }

    /// Takes the table out of the guest's hands, and leaves it as it is: what waits in the function for a masked vector stays there. `false` where its pages are still shown, and the table is direct as before.
    pub(crate) fn take_back(&mut self) -> bool {
        if self.mode == TableMode::Trapped {
            return true;
        }
        self.mode = TableMode::Trapped;
        // No vCPU can touch the table after this: its mask bits are the last ones.
        if !self.take_out(&self.view()) {
            self.mode = TableMode::Direct;
            return false;
        }
        self.counters.switches_to_trapped = self.counters.switches_to_trapped.saturating_add(1);
        self.mode_changed();
        true
    }

    /// Clears the function's mask bits of these vectors, but of those that could not be detached.
    pub(crate) fn unmask(&mut self, vectors: &[usize]) {
        for &index in vectors {
            if let Some(vector) = self.vectors.get_mut(index) {
                vector.blocked = true;
            }
            self.unblock_vector(index);
        }
    }

    fn write_masks(&mut self, vectors: &[usize], masked: bool) -> bool {
        let function = &mut self.function;
        let result = vectors
            .iter()
            .filter_map(|&index| u16::try_from(index).ok())
            .map(|index| function.set_masked(VectorIndex(index), masked))
            .fold(Ok(()), Result::and);
        if let Err(error) = &result {
            self.complain("mask bits could not be written", error);
        }
        result.is_ok()
    }

    fn mode_changed(&mut self) {
        self.generation = self.generation.next();
        if self.log.allow() {
            tracing::info!(function = %self.id, mode = ?self.mode, "vector table");
        }
    }
}
