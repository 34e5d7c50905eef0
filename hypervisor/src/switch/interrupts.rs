//! The function's interrupts: set up with one request, taken down with one; its own MSI-X Enable.

use std::ops::Range;

use pvmsi_protocol::{TableMode, VectorIndex};
use vmm_sys_util::eventfd::EventFd;

use super::decide;
use super::guest::Owner;
use super::host::Debts;
use super::reader::count;
use super::set::VectorSet;
use super::{Switch, World};
use crate::capability::{self, MSIX_ENABLE};
use crate::event;
use crate::function::SetUpError;
use crate::routes::RoutesError;

/// What the log says where there are fewer vectors than were asked for.
pub(super) const SHORT_OF_INTERRUPTS: &str = "vectors of the function stay without interrupts";

impl Switch {
    /// One interrupt set-up for the first vectors.
    pub(super) fn set_up_interrupts(&mut self, vectors: usize) -> Result<(), SetUpError> {
        self.set_up_from(0, vectors)
    }

    /// The same, where those before `first` are set up and shall not be touched.
    pub(super) fn set_up_from(&mut self, first: usize, vectors: usize) -> Result<(), SetUpError> {
        let events = self.world.wires.events(first..vectors);
        let start = VectorIndex(u16::try_from(first).unwrap_or(u16::MAX));
        count(&mut self.tally.counters.interrupt_setups);
        self.function.set_up_interrupts(start, &events)?;
        // Vectors that stay set up keep their messages, even where the table has lost them.
        let kept = self.world.set_up.min(vectors);
        self.world.set_up = vectors;
        self.world.enabled |= vectors > 0;
        if first == 0 {
            self.debts.remove(Debts::TAKE_DOWN.union(Debts::UNREADABLE));
        }
        let all = self.world.wires.len();
        for (_, vector) in self.world.wires.range_mut(kept..all) {
            vector.table_message = None;
        }
        self.read_table_messages();
        Ok(())
    }

    /// Sets all vectors up or, where the host is short of interrupts, as many as it has; the others go, and leave their events in `spare`. At least `least`. Those before `first` are already, and are not touched.
    pub(super) fn set_up_what_there_is(
        &mut self,
        first: usize,
        least: usize,
        spare: &mut Vec<EventFd>,
    ) -> Result<(), SetUpError> {
        let vectors = self.set_up_most(first, least, self.world.wires.len())?;
        if vectors < least {
            let available = u16::try_from(vectors).unwrap_or(u16::MAX);
            return Err(SetUpError::TooFew { available, guess: false });
        }
        spare.extend(self.retire(vectors));
        Ok(())
    }

    /// Sets up all of the first `most` vectors, or as many as the host has interrupts for; how many are set up then. Those before `first` are already, and are not touched.
    ///
    /// One request, most often. Where the kernel says how many there are, that is the second; where it does not, they
    /// are found: by halves until it has as many, and where a set-up can grow from there up, to within a
    /// sixteenth. A guess does not miss `least`.
    ///
    /// # Errors
    /// When not one can be had, or when the kernel refuses for another reason.
    pub(super) fn set_up_most(
        &mut self,
        first: usize,
        least: usize,
        most: usize,
    ) -> Result<usize, SetUpError> {
        let Err(mut error) = self.set_up_from(first, most) else { return Ok(most) };
        if error.available().is_some() {
            self.complain(SHORT_OF_INTERRUPTS, &error);
        }
        let mut has_not = most;
        // Ends: what lies between the two becomes less each time.
        while let Some(available) = error.available() {
            let enough = if error.is_guess() && least < has_not { least } else { 0 };
            let next = available.max(enough);
            if next <= first || next >= has_not {
                break;
            }
            match self.set_up_from(first, next) {
                Ok(()) if error.is_guess() => return Ok(self.grow_set_up(next, has_not)),
                Ok(()) => return Ok(next),
                Err(now) => (has_not, error) = (next, now),
            }
        }
        let has = first.min(self.world.set_up);
        if has > 0 && error.available().is_some() { Ok(has) } else { Err(error) }
    }

    /// Adds to `has` vectors that are set up, as long as that is worth a request, where the host has fewer than `has_not`; how many there are then.
    fn grow_set_up(&mut self, mut has: usize, mut has_not: usize) -> usize {
        let one_more = u16::try_from(has).unwrap_or(u16::MAX).saturating_add(1);
        let grows = self.function.set_up_count(one_more) == one_more;
        while grows && has_not.saturating_sub(has) > (has >> 4).saturating_add(1) {
            let next = has.midpoint(has_not);
            match self.set_up_from(has, next) {
                Ok(()) => has = next,
                Err(error) if error.available().is_some() => has_not = next,
                Err(error) => {
                    self.complain(SHORT_OF_INTERRUPTS, &error);
                    break;
                }
            }
        }
        has
    }

    /// Gives interrupts to the vectors of the emulated table that are unmasked and have none. It takes over what an unfinished `configure` has prepared of them.
    pub(super) fn set_up_legacy(&mut self) {
        self.debts.remove(Debts::LEGACY_SET_UP);
        // Otherwise an unfinished `configure` goes on from what it has.
        if self.without_interrupts() > 0
            && let Some(last) = decide::last_used(&self.guest)
        {
            let used = last.as_usize().saturating_add(1);
            self.set_up_emulated(used, 0..used);
        }
    }

    /// The same for one vector that is unmasked.
    pub(super) fn set_up_used(&mut self, vector: VectorIndex) {
        if self.lacks_interrupt(vector) {
            let index = vector.as_usize();
            let used = index.saturating_add(1);
            self.set_up_emulated(used, index..used);
        }
    }

    /// Sets up `used` vectors of the emulated table, as far as there are interrupts and the operator allows; those of `routed` that are unmasked get GSIs. A vector beyond those that somebody has unmasked costs the host nothing where set-up can grow; where it cannot, the kernel has allocated all since Enable, for to grow by clearing it would lose what arrives meanwhile.
    fn set_up_emulated(&mut self, used: usize, routed: Range<usize>) {
        self.detach_prepared();
        self.world.wires.free_ahead();
        let used = u16::try_from(used).unwrap_or(u16::MAX);
        let wanted = self.function.set_up_count(used).max(used);
        let wanted = usize::from(wanted.min(self.fixed.vectors_allowed()));
        // An unfinished `configure` has no use for its events when this succeeds.
        let mut events = std::mem::take(&mut self.world.spare);
        let prepared = events.len();
        let there = self.world.wires.len();
        if let Err(error) = self.world.wires.extend(wanted, &mut events) {
            self.complain("no interrupts for the function", &error);
        }
        let all = self.world.wires.len();
        // Where they are set up, those that come are added, and nothing of the others is touched.
        let first = if self.world.set_up == there { there } else { 0 };
        let set_up = if self.world.set_up == all {
            Ok(())
        } else {
            self.set_up_what_there_is(first, there.max(1), &mut events)
        };
        match set_up {
            Ok(()) => {
                if let Some(unfinished) = &mut self.guest.unfinished {
                    // None of these is prepared any more: they are there for the emulated table, too.
                    unfinished.first = unfinished.first.max(wanted.min(self.world.wires.len()));
                }
            }
            Err(error) => {
                self.complain("interrupts could not be set up", &error);
                events.extend(self.retire(there));
                if there == 0 {
                    self.tear_down();
                }
                self.debts.insert(Debts::LEGACY_SET_UP);
            }
        }
        if let Owner::Legacy(entries) = &self.guest.owner {
            let used = |vector: VectorIndex| {
                entries.get(vector.as_usize()).is_some_and(|entry| !entry.masked)
            };
            if !self.world.wires.allocate_for(routed, used) {
                self.complain("no interrupts for the function", &RoutesError::Exhausted);
                self.debts.insert(Debts::LEGACY_SET_UP);
            }
        }
        if self.guest.unfinished.is_some() {
            // Some of them were prepared, and are no more.
            self.world.wires.all_changed();
            events.truncate(prepared);
            self.world.spare = events;
        }
    }

    /// The vectors from here on are there only for an unfinished `configure`.
    pub(super) fn first_prepared(&self) -> usize {
        let all = self.world.wires.len();
        self.guest.unfinished.as_ref().map_or(all, |unfinished| unfinished.first.min(all))
    }

    /// Detaches what an unfinished `configure` has attached in advance: before the function's mask bits may be lost.
    pub(super) fn detach_prepared(&mut self) {
        if self.guest.unfinished.is_some() {
            self.unroute(self.first_prepared());
        }
    }

    /// Takes down what an unfinished `configure` has prepared: the interrupts are as they were before it. What the emulated table was to hold until it is used waits in its eventfds by now, so where there is something the table gets its interrupts.
    pub(super) fn drop_prepared(&mut self) {
        self.world.wires.free_ahead();
        let first = self.first_prepared();
        if first == self.world.wires.len() {
            return;
        }
        self.unroute(first);
        let enabled = decide::enabled(&self.guest, first);
        let down = if enabled { self.set_up_from(first, first) } else { self.set_enabled(false) };
        if let Err(error) = down {
            self.complain("interrupts could not be taken down", &error);
            if first == 0 {
                self.debts.insert(Debts::TAKE_DOWN);
            }
            VectorSet::first(self.world.set_up)
                .iter()
                .skip(first)
                .for_each(|vector| self.block(vector));
        }
        if first == 0 {
            // Whatever became of the request: the next set-up starts from nothing.
            self.world.set_up = 0;
            self.debts.remove(Debts::CONTENT);
        }
        // After that nothing more is signalled.
        let waiting: Vec<_> = self
            .world
            .wires
            .first(self.world.wires.len())
            .skip(first)
            .filter(|(_, vector)| event::drain(&vector.event))
            .map(|(index, _)| index)
            .collect();
        self.retire(first);
        if !self.guest.owner.is_assigned() && !waiting.is_empty() {
            let end = waiting.last().map_or(0, |vector| vector.as_usize().saturating_add(1));
            self.set_up_emulated(end, 0..end);
            for vector in waiting {
                if let Some(vector) = self.world.wires.get(vector) {
                    event::signal(&vector.event);
                }
            }
            // They are masked, and so as they shall be.
            if let Err(error) = self.detach_unwanted() {
                self.complain_of_routes(&error);
            }
        }
    }

    /// Makes the function's own MSI-X Enable follow the guest's.
    pub(super) fn follow_enable(&mut self) {
        let wanted = decide::enabled(&self.guest, self.world.wires.len());
        if let Err(error) = self.set_enabled(wanted) {
            self.complain("MSI-X Enable of the function does not follow the guest's", &error);
        }
    }

    /// One request where the function's own MSI-X Enable is another; none otherwise. Clearing it takes all interrupts down.
    pub(super) fn set_enabled(&mut self, enabled: bool) -> Result<(), SetUpError> {
        let stands = self.world.enabled == enabled;
        if stands && (enabled || !self.debts.contains(Debts::TAKE_DOWN)) {
            return Ok(());
        }
        count(&mut self.tally.counters.enable_changes);
        self.function.set_enabled(enabled)?;
        self.world.enabled = enabled;
        if !enabled {
            self.debts.remove(Debts::TAKE_DOWN);
        }
        Ok(())
    }

    /// Puts everything back into a table that the function may have lost. `false` where that could not be done; it is owed.
    pub(super) fn recover_table(&mut self) -> bool {
        // Of a direct table the mask bits are the guest's.
        if self.world.mode == TableMode::Direct || !self.wants_set_up() {
            self.follow_messages();
            return self.rewrite_table();
        }
        if let Err(error) = self.set_up_anew() {
            self.complain("interrupts could not be set up again", &error);
            self.debts.insert(Debts::TAKE_DOWN.union(Debts::TABLE));
            return false;
        }
        // All is written, but for mask bits that hold something back.
        self.debts.remove(Debts::TABLE);
        self.hold_back();
        true
    }

    /// The same for a reset that nobody has seen, if there was one. What does not answer now is looked at when it does.
    pub(super) fn recover_unseen(&mut self) -> bool {
        if self.answers() { self.recover_table() } else { self.rewrite_table() }
    }

    /// Whether only another set-up makes a reset good: the function has lost its MSI-X Enable, or a message that could not be read cannot be written back.
    pub(super) fn wants_set_up(&mut self) -> bool {
        !self.knows_messages() || self.has_lost_enable()
    }

    /// Whether MSI-X is off in the function although the host's kernel has it on: a reset of its physical function does that, or its own BIST.
    fn has_lost_enable(&mut self) -> bool {
        // Ones, where nothing can be read, tell nothing.
        self.world.enabled
            && self.answers()
            && capability::byte(self.function.as_mut(), self.fixed.registers.msix_control)
                & MSIX_ENABLE
                == 0
    }

    /// The host's kernel writes the table, whose mask bits are the host's, and MSI-X Enable, as it does for a function that it has just got.
    fn set_up_anew(&mut self) -> Result<(), SetUpError> {
        let vectors = self.world.set_up;
        // It unmasks them.
        self.detach_prepared();
        // Messages that were known may be others then.
        self.tally.next_generation();
        if self.has_lost_enable() {
            // It sets what it takes for clear.
            self.set_enabled(false)?;
            self.world.set_up = 0;
        } else {
            self.set_up_interrupts(0)?;
        }
        if vectors > 0 { self.set_up_interrupts(vectors) } else { Ok(()) }
    }

    /// Takes all interrupts down: no route, no event, no GSI, no set-up; and the function's own MSI-X Enable, where the guest's is clear. One request does both. Goes on where a step fails.
    pub(super) fn tear_down(&mut self) {
        self.unroute(0);
        let down = if !self.guest.control.enable {
            self.set_enabled(false)
        } else if self.world.set_up > 0 || self.debts.contains(Debts::TAKE_DOWN) {
            self.set_up_interrupts(0)
        } else {
            Ok(())
        };
        if let Err(error) = down {
            self.complain("interrupts could not be taken down", &error);
            self.debts.insert(Debts::TAKE_DOWN);
            // Events wait in the function, as if nothing were set up.
            let set_up = VectorSet::first(self.world.set_up);
            set_up.iter().for_each(|vector| self.block(vector));
        }
        // Whatever became of the request: the next set-up starts from nothing.
        self.world.set_up = 0;
        self.debts.remove(Debts::CONTENT | Debts::LEGACY_SET_UP);
        self.retire(0);
    }

    /// Parts with all vectors but the first `keep`; their events.
    pub(super) fn retire(&mut self, keep: usize) -> Vec<EventFd> {
        if keep < self.world.wires.len() {
            self.unroute(keep);
        }
        let events = self.world.wires.retire(keep);
        let World { blocked, quiet, aside, .. } = &mut self.world;
        for set in [blocked, quiet, aside] {
            set.truncate(keep);
        }
        events
    }

    /// Gives back the GSIs of vectors that are set up only because set-up cannot grow.
    pub(super) fn free_spare_gsis(&mut self) {
        if let Owner::Assigned(assigned) = &self.guest.owner {
            let spare = assigned.len()..self.first_prepared();
            if !spare.is_empty() {
                self.world.wires.free_gsis(spare, |_, _| true);
            }
        }
    }

    /// Gives back the GSIs that a `configure` which has failed took for vectors of the emulated table.
    pub(super) fn free_unused_gsis(&mut self) {
        let prepared = self.first_prepared();
        if let Owner::Legacy(entries) = &self.guest.owner {
            self.world.wires.free_gsis(0..prepared, |vector, wire| {
                let masked = entries.get(vector.as_usize()).is_none_or(|entry| entry.masked);
                masked && wire.message().is_none()
            });
        }
    }

    /// An unfinished `configure` cannot go on, and all interrupts are taken down next.
    pub(super) fn forget_unfinished(&mut self) {
        self.guest.unfinished = None;
        self.world.spare.clear();
    }
}
