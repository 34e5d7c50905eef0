//! The switch itself: handing the table to the guest, and taking it back.

use pvmsi_protocol::{Reasons, TableMode, VectorIndex};

use super::Switch;
use super::converge::{still_shown, table_access};
use super::guest::Owner;
use super::host::{Debts, Host};
use super::set::VectorSet;
use crate::event;
use crate::routes::RoutesError;

impl Switch {
    /// Brings the mode in line with the reasons.
    #[inline(always)]
    pub(super) fn evaluate(&mut self) {
        let trapped = self.world.mode == TableMode::Trapped;
        let assigned = self.guest.owner.is_assigned();
        if !trapped || !assigned {
            self.world.held = None;
        }
        if trapped && !assigned {
            return;
        }
        let others = self.reasons().difference(Reasons::HELD_EVENT);
        if trapped && others.is_empty() {
            // Found out without touching the function: this comes with each operation for as
            // long as the event waits.
            self.world.held = self.masked_event_waits();
            if self.world.held.is_none() {
                self.enter_direct(None);
            }
        } else if trapped && self.world.held.is_some() {
            // Not looked for while the table is trapped anyway, but no longer said than it is true.
            self.world.held = self.masked_event_waits();
        } else if !trapped && !others.is_empty() {
            self.leave_direct();
        }
    }

    /// A vector that only its mask bit keeps from firing, with the table trapped, and whose eventfd holds an event.
    fn masked_event_waits(&self) -> Option<VectorIndex> {
        let waits = |vector: &VectorIndex| {
            self.guest.owner.masked(*vector)
                && self.wanted(*vector).could_fire
                && self.world.wires.waits(*vector)
        };
        // The one that was found last most likely still does.
        self.world
            .held
            .filter(waits)
            .or_else(|| (0..self.guest.owner.assigned()).map(VectorIndex).find(waits))
    }

    /// Hands the table to the guest. Stays trapped where an event waits for a masked vector, unless `report` takes it, or where mapping fails.
    pub(super) fn enter_direct(&mut self, mut report: Option<&mut VectorSet>) {
        // The mask bits that hold it back are the guest's from here on.
        self.detach_prepared();
        let Owner::Assigned(assigned) = &self.guest.owner else { return };
        let granted = assigned.len();
        // From here on the function's own mask bits hold events back. Vectors that are set up but
        // not granted are nobody's: they stay masked.
        let masked = VectorSet::of_first(self.world.set_up, |vector| {
            assigned.get(vector).is_none_or(|vector| vector.masked)
        });
        let mut own = masked;
        own.truncate(granted);
        if !self.can_hand_over(&masked) {
            self.debts.insert(Debts::HAND_OVER);
            return;
        }
        let mut given = self.mask(&masked);
        for index in own.iter() {
            let Some(vector) = self.world.wires.get(index) else { continue };
            if let Some(pending) = &mut report {
                if event::drain(&vector.event) {
                    pending.insert(index);
                }
            } else if self.wanted(index).could_fire && self.world.wires.waits(index) {
                // What else keeps it from firing is the host's to end, and is looked at then.
                self.world.held = Some(index);
            }
        }
        given &= self.world.held.is_none();
        let masked_in_table = given;
        if given {
            self.world.mode = TableMode::Direct;
            self.world.wires.changed.extend(&own);
            if let Err(error) = self.converge() {
                self.complain_of_routes(&error);
                given = false;
            } else if self.world.mode == TableMode::Trapped {
                // An event came for a vector that is masked: the table was taken back already.
                return;
            } else {
                given = self.show().is_ok();
            }
        }
        if given {
            self.world.blocked = VectorSet::default();
            self.tally.mode_changed(self.fixed.id, TableMode::Direct);
            return;
        }
        self.world.mode = TableMode::Trapped;
        self.world.wires.changed.extend(&own);
        let taken_out = !self.debts.contains(Debts::MAP) || self.take_out(&self.view());
        if masked_in_table && !taken_out && self.pages.shows_table() {
            // The guest's stores count for as long as they reach the table.
            self.world.mode = TableMode::Direct;
            self.world.blocked = VectorSet::default();
            self.debts.insert(Debts::PAGES);
            self.tally.mode_changed(self.fixed.id, TableMode::Direct);
            return;
        }
        if let Err(error) = self.detach_unwanted() {
            self.complain_of_routes(&error);
        }
        self.unmask(&masked);
        if self.world.held.is_none() || masked_in_table {
            self.debts.insert(Debts::PAGES);
        }
    }

    /// Whether the table is as the guest shall find it, once these vectors are masked in it.
    fn can_hand_over(&mut self, masked: &VectorSet) -> bool {
        self.hold_back();
        self.world.blocked.iter().all(|vector| masked.contains(vector))
            && self.knows_messages()
            && self.world.set_up == self.world.wires.len()
            && !self.debts.intersects(Debts::TABLE.union(Debts::TAKE_DOWN))
    }

    /// Masks these vectors in the function's table; whether they are.
    fn mask(&mut self, vectors: &VectorSet) -> bool {
        let masked = self.mask_for_good(vectors);
        if let Err(error) = &masked {
            self.complain("mask bits could not be written", error);
            // What is looked at next has arrived.
            self.function.settle();
        }
        masked.is_ok()
    }

    /// Makes changed vectors as they shall be. Takes the table back where an event waits for a vector that the guest has masked in it: there its unmasking is seen.
    #[inline(always)]
    fn converge(&mut self) -> Result<(), RoutesError> {
        let (held, all) = self.work_off();
        let Some(&first) = held.first() else { return all };
        self.world.held = Some(first);
        if !self.leave_direct() {
            return Err(table_access(still_shown()));
        }
        // The guest may have unmasked them meanwhile.
        all.and(self.attach_these(&held))
    }

    /// The same, for operations that cannot fail. What does is owed: the vectors stay changed.
    pub(super) fn converge_or_owe(&mut self) {
        if self.world.wires.changed.is_empty() {
            return;
        }
        let Err(error) = self.converge() else { return };
        self.complain_of_routes(&error);
        // Events must not go where the vector led before.
        if let Err(error) = self.detach_misled() {
            self.complain_of_routes(&error);
        }
        if self.any_is_against() {
            // Only where the table is the host's can the function hold back what must not fire.
            self.leave_direct();
        }
    }

    /// Takes the table back; `false` where its pages are still shown, and the table is direct as before. What the guest has masked is masked by the host from now on, and its events wait in eventfds.
    pub(super) fn leave_direct(&mut self) -> bool {
        if self.world.mode == TableMode::Trapped {
            return true;
        }
        if !self.take_back() {
            return false;
        }
        let granted = usize::from(self.guest.owner.assigned());
        let mut masked = self.read_mask_bits();
        if let Err(error) = self.detach_unwanted() {
            self.complain_of_routes(&error);
        }
        for vector in VectorSet::first(self.world.set_up).iter().skip(granted) {
            masked.insert(vector);
        }
        masked.truncate(self.world.set_up);
        self.put_messages_right();
        self.unmask(&masked);
        true
    }

    /// Learns the mask bits that the guest has written into the table; which of its vectors are masked.
    pub(super) fn read_mask_bits(&mut self) -> VectorSet {
        let table = self.function.table();
        // There is no other place that knows it, and no second chance.
        let masked = VectorSet::of_first(usize::from(self.guest.owner.assigned()), |vector| {
            let vector = VectorIndex(u16::try_from(vector).unwrap_or(u16::MAX));
            table.masked(vector).or_else(|_| table.masked(vector)).unwrap_or(true)
        });
        let masked = self.masked_for_good(masked);
        if let Owner::Assigned(assigned) = &mut self.guest.owner {
            for (index, assigned) in (0..).map(VectorIndex).zip(assigned) {
                assigned.masked = masked.contains(index);
            }
        }
        self.world.wires.changed.extend(&masked);
        masked
    }

    /// Takes the table out of the guest's hands, and leaves it as it is: what waits in the function for a masked vector stays there. `false` where its pages are still shown, and the table is direct as before.
    pub(super) fn take_back(&mut self) -> bool {
        if self.world.mode == TableMode::Trapped {
            return true;
        }
        self.world.mode = TableMode::Trapped;
        // No vCPU can touch the table after this: its mask bits are the last ones.
        if !self.take_out(&self.view()) {
            self.world.mode = TableMode::Direct;
            return false;
        }
        self.tally.mode_changed(self.fixed.id, TableMode::Trapped);
        true
    }

    /// Back to the default: no vector assigned, table trapped, every entry as after power-on.
    pub(super) fn become_default(&mut self) {
        self.forget_unfinished();
        // Not by `leave_direct`: it unmasks the function, and what it would emit goes with its event.
        if !self.take_back() {
            // Ownership ends all the same; the pages are taken out as soon as that is possible.
            self.world.mode = TableMode::Trapped;
        }
        self.tear_down();
        self.guest.owner = Owner::default_of(self.fixed.layout.vectors());
        self.world.held = None;
        self.host.remove(Host::MIGRATED);
        self.debts.remove(Debts::NOT_MAPPABLE);
        self.tally.next_generation();
    }
}
