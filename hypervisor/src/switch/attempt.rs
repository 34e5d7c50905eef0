//! While a call can still fail: nothing of what it tries may show before it is certain.
//!
//! An attempt can start with the function holding events back, by its own mask
//! bits, and it takes what eventfds hold aside before they are attached. So
//! routes and attachments can change, and change back, without an event
//! that goes where the call had wanted it to go and has failed. At the end the
//! events are let go: to where they belong by then. An `update` that is one
//! routing update, or one with a single attach, needs no part of the function:
//! either fails as a whole.

use std::io;
use std::ops::{Deref, DerefMut};

use pvmsi_protocol::{Generation, GuestMessage, TableMode, VectorIndex};
use smallvec::SmallVec;

use super::Switch;
use super::converge::{still_shown, table_access};
use super::guest::{Owner, Unfinished};
use super::host::Debts;
use super::set::{VectorSet, Walk};
use super::wires::{Changes, Wire};
use crate::routes::RoutesError;

/// A change that can still fail. [`commit`](Self::commit) keeps it; dropping it rolls everything back but the mask bits that the guest has changed meanwhile.
pub(super) struct Attempt<'a> {
    switch: &'a mut Switch,
    mode: TableMode,
    generation: Generation,
    undo: Undo,
    done: bool,
}

type Messages = SmallVec<[(VectorIndex, Option<GuestMessage>); 1]>;

/// What a roll-back needs.
enum Undo {
    /// The messages that vectors had, the last change last.
    Messages(Messages),
    /// Who owned the vectors, what was unfinished, how many vectors there were, and where those of an emulated table led: a masked one has the route that it had last.
    Owner {
        owner: Owner,
        unfinished: Option<Unfinished>,
        vectors: usize,
        messages: Vec<Option<GuestMessage>>,
        /// Vectors of an emulated table whose GSIs others have got: whose, and who.
        gathered: Vec<(VectorIndex, VectorIndex)>,
    },
}

impl Deref for Attempt<'_> {
    type Target = Switch;

    fn deref(&self) -> &Switch {
        self.switch
    }
}

impl DerefMut for Attempt<'_> {
    fn deref_mut(&mut self) -> &mut Switch {
        self.switch
    }
}

impl<'a> Attempt<'a> {
    /// Starts an attempt, before which there were so many vectors.
    pub(super) fn begin(switch: &'a mut Switch, vectors: usize) -> Self {
        switch.world.attempt = Some(vectors);
        let (mode, generation) = (switch.world.mode, switch.tally.generation);
        Self { switch, mode, generation, undo: Undo::Messages(Messages::new()), done: false }
    }

    /// Lets the function hold back these vectors, and what is masked in a direct table: that is the host's from here on.
    ///
    /// # Errors
    /// When the table cannot be taken back or written.
    pub(super) fn hold(&mut self, vectors: impl Iterator<Item = VectorIndex>) -> io::Result<()> {
        if self.world.mode == TableMode::Direct {
            if !self.take_back() {
                return Err(still_shown());
            }
            let granted = usize::from(self.guest.owner.assigned());
            let mut masked = self.read_mask_bits();
            self.put_messages_right();
            // What is set up and not granted was masked when the table was handed over.
            let set_up = VectorSet::first(self.world.set_up);
            for vector in set_up.iter().skip(granted) {
                masked.insert(vector);
            }
            masked.truncate(self.world.set_up);
            let mut twice = VectorSet::default();
            for vector in masked.iter() {
                if self.world.wires.waits(vector) {
                    twice.insert(vector);
                } else {
                    self.world.quiet.insert(vector);
                }
            }
            // An event waits at the host already: one that waits in the function joins it.
            self.unmask(&twice);
        }
        let mut masked = VectorSet::default();
        for vector in vectors {
            if self.can_mask(vector) && self.world.quiet.insert(vector) {
                masked.insert(vector);
            }
        }
        // What was under way arrives before anything is drained, routed or attached.
        Ok(self.mask_for_good(&masked)?)
    }

    /// Gives the vectors another owner, and an unfinished `configure` its end: what it has prepared is the owner's.
    pub(super) fn assign(&mut self, owner: Owner) {
        let vectors = self.world.attempt.unwrap_or(0);
        let messages = match &self.guest.owner {
            Owner::Legacy(_) => {
                self.world.wires.first(vectors).map(|(_, vector)| vector.wire.message()).collect()
            }
            Owner::Assigned(_) => Vec::new(),
        };
        let owner = std::mem::replace(&mut self.guest.owner, owner);
        let unfinished = self.guest.unfinished.take();
        self.undo = Undo::Owner { owner, unfinished, vectors, messages, gathered: Vec::new() };
        self.world.wires.all_changed();
    }

    /// Where GSIs are short, vectors of an emulated table that are not granted give theirs to granted ones that have none.
    ///
    /// # Errors
    /// When the kernel does not detach one.
    pub(super) fn gather(&mut self, granted: usize) -> Result<(), RoutesError> {
        let has = |switch: &Switch, vector| switch.world.wires.wire(vector) != Wire::None;
        let lacking = VectorSet::of_first(granted, |index| !has(self, number(index)));
        let mut behind = granted..self.world.wires.len();
        for to in lacking.iter() {
            let Some(from) = behind.rfind(|&index| has(self, number(index))) else { break };
            let from = number(from);
            self.detach(from)?;
            self.switch.world.wires.exchange(from, to);
            if let Undo::Owner { gathered, .. } = &mut self.undo {
                gathered.push((from, to));
            }
        }
        Ok(())
    }

    /// Gives an assigned vector another message.
    pub(super) fn set_message(&mut self, vector: VectorIndex, message: GuestMessage) {
        if let Owner::Assigned(assigned) = &mut self.switch.guest.owner
            && let Some(assigned) = assigned.get_mut(vector.as_usize())
        {
            let old = assigned.message.replace(message);
            self.switch.world.wires.changed.insert(vector);
            if let Undo::Messages(messages) = &mut self.undo {
                messages.push((vector, old));
            }
        }
    }

    /// Detaches vectors whose messages are named again, where an attach binds. The function holds their events back until the attempt ends: here, and wherever an attach can fail after others have been routed or attached.
    ///
    /// # Errors
    /// When the kernel refuses, or the table cannot be taken back.
    pub(super) fn unbind(&mut self, named: &VectorSet) -> Result<(), RoutesError> {
        let binds = self.fixed.platform.binds_at_attach();
        let rebinds = binds && named.iter().any(|vector| self.is_attached(vector));
        // With those that an earlier failure has left over.
        let mut attaches: usize = 0;
        let mut others = named.iter().nth(1).is_some();
        for vector in self.world.wires.changed.iter() {
            if !self.is_attached(vector) && self.wanted(vector).attached {
                attaches = attaches.saturating_add(1);
                others |= !named.contains(vector);
            }
        }
        if rebinds || attaches > 0 && others {
            self.hold(named.iter()).map_err(table_access)?;
        }
        if rebinds {
            named.iter().try_for_each(|vector| self.detach(vector))?;
        }
        Ok(())
    }

    fn is_attached(&self, vector: VectorIndex) -> bool {
        self.world.wires.wire(vector).is_attached()
    }

    /// Makes changed vectors as they shall be.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn converge(&mut self) -> Result<(), RoutesError> {
        let (held, mut all) = self.work_off();
        // Last: a call that has failed by now leaves the table where it is.
        if let Some(&first) = held.first()
            && all.is_ok()
        {
            self.world.held = Some(first);
            // It may still fail: what is pending in the function stays there until the end.
            self.hold(held.iter().copied()).map_err(table_access)?;
            all = self.detach_unwanted();
            // The guest may have unmasked them meanwhile.
            all = all.and(self.attach_these(&held));
        }
        all
    }

    /// Keeps what was done, and brings the mode in line. What the guest has masked stays in the function's hands where the table is direct again.
    pub(super) fn commit(mut self) {
        self.done = true;
        self.end();
    }

    /// Keeps what was done, with the table trapped: all events go where they belong now.
    pub(super) fn commit_trapped(mut self) {
        self.done = true;
        self.world.attempt = None;
        self.let_go(|_, _| true);
        self.put_all_back();
    }

    fn end(&mut self) {
        self.world.attempt = None;
        // What is set up and not granted counts as masked.
        self.let_go(|owner, vector| !owner.is_assigned() || !owner.masked(vector));
        self.put_all_back();
        self.evaluate();
        self.let_go(|_, _| true);
    }

    /// Ends the function's part for vectors of which the guest's mask bit says so.
    fn let_go(&mut self, which: fn(&Owner, VectorIndex) -> bool) {
        let mut walk = Walk::default();
        while let Some(vector) = walk.next(&self.world.quiet) {
            // What was attached in advance waits for the `configure` that it was attached for.
            let in_advance = self.guest.is_prepared(vector) && self.is_attached(vector);
            if !in_advance && which(&self.guest.owner, vector) {
                self.let_loose(vector);
            }
        }
    }

    fn roll_back(&mut self) {
        match std::mem::replace(&mut self.undo, Undo::Messages(Messages::new())) {
            Undo::Messages(messages) => self.restore_messages(messages),
            Undo::Owner { owner, unfinished, vectors, messages, gathered } => {
                self.guest.owner = owner;
                self.guest.unfinished = unfinished;
                self.restore_owned(vectors, &messages, &gathered);
            }
        }
        if let Err(error) = self.converge() {
            self.complain_of_routes(&error);
            if self.any_is_against() {
                // Only where the table is the host's can the function hold back what must not fire.
                self.leave_direct();
            }
        }
        self.end();
        if self.world.mode == self.mode {
            // A call that fails has not changed the generation, although the table was trapped for a moment.
            self.tally.generation = self.generation;
        }
    }

    /// Takes the former messages back; the mask bits of today stay.
    fn restore_messages(&mut self, messages: Messages) {
        let Owner::Assigned(assigned) = &mut self.switch.guest.owner else { return };
        for (vector, message) in messages.into_iter().rev() {
            if let Some(assigned) = assigned.get_mut(vector.as_usize()) {
                assigned.message = message;
            }
            self.switch.world.wires.changed.insert(vector);
        }
    }

    /// As before the attempt, when there were so many vectors; the events of the others are for the next attempt.
    fn restore_owned(
        &mut self,
        vectors: usize,
        messages: &[Option<GuestMessage>],
        gathered: &[(VectorIndex, VectorIndex)],
    ) {
        self.world.wires.all_changed();
        // What was attached in advance may lead elsewhere by now: its repetition attaches it again.
        self.detach_prepared();
        let mut detached = self.detach_unwanted();
        for &(from, to) in gathered.iter().rev() {
            let gives = self.detach(to);
            if gives.is_err() {
                // It keeps what is attached to it, and the other gets another one.
                self.debts.insert(Debts::LEGACY_SET_UP);
            }
            detached = detached.and(gives);
            self.switch.world.wires.exchange(from, to);
        }
        self.world.wires.all_changed();
        let routes = self.former_routes(messages);
        let undone = detached.and_then(|()| self.install(&routes));
        if let Err(error) = undone {
            self.complain_of_routes(&error);
        }
        let events = self.retire(vectors);
        self.world.spare.extend(events);
        if self.debts.contains(Debts::TABLE) {
            self.rewrite_table();
        }
    }

    /// The routes that differ from those before the attempt.
    fn former_routes(&self, messages: &[Option<GuestMessage>]) -> Changes {
        let wires = &self.world.wires;
        let mut changes = Changes::default();
        for (index, vector) in wires.first(wires.len()) {
            let message = match &self.guest.owner {
                Owner::Legacy(_) => messages.get(index.as_usize()).copied().flatten(),
                Owner::Assigned(_) => self.wanted_for(index, vector.wire).message,
            };
            if message != vector.wire.message() {
                let route = message.map(|message| self.fixed.route_of(message));
                changes.add(index, vector.wire, route, false, || wires.len());
            }
        }
        changes
    }
}

fn number(index: usize) -> VectorIndex {
    VectorIndex(u16::try_from(index).unwrap_or(u16::MAX))
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What a seam has left half done cannot be undone through it.
            self.world.attempt = None;
        } else if !self.done {
            self.roll_back();
        }
    }
}
