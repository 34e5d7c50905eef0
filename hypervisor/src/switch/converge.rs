//! Makes changed vectors as they shall be, and lets the function hold back what must not fire meanwhile.

use std::io;

use pvmsi_protocol::{TableMode, VectorIndex};

use super::Switch;
use super::decide::Wanted;
use super::set::{VectorSet, Walk};
use super::wires::Wire;
use crate::event;
use crate::routes::{Route, RoutesError};

impl Switch {
    /// Whether a vector is attached and must not fire.
    fn is_against(&self, vector: VectorIndex) -> bool {
        let wire = self.world.wires.wire(vector);
        wire.is_attached() && self.wanted_for(vector, wire).is_against(wire)
    }

    /// Whether an attached vector is one that must not fire.
    pub(super) fn any_is_against(&self) -> bool {
        self.world.wires.changed.iter().any(|vector| self.is_against(vector))
    }

    /// Whether a vector with this wire is to be detached: it must not fire, or keeps to a route that it shall leave.
    fn is_to_go(&self, wanted: &Wanted, wire: Wire) -> bool {
        wire.is_attached()
            && (!wanted.attached
                || self.fixed.platform.binds_at_attach() && !wanted.is_routed(wire))
    }

    /// Detaches changed vectors that must not fire, or keep to a route that they shall leave. The others go on when one fails.
    pub(super) fn detach_unwanted(&mut self) -> Result<(), RoutesError> {
        let mut all = Ok(());
        let mut walk = Walk::default();
        while let Some(vector) = walk.next(&self.world.wires.changed) {
            let wire = self.world.wires.wire(vector);
            let wanted = self.wanted_for(vector, wire);
            if self.is_to_go(&wanted, wire) {
                all = all.and(self.detach(vector));
            }
            if wanted.is_met(self.world.wires.wire(vector)) {
                self.world.wires.changed.remove(vector);
            }
        }
        all
    }

    /// Detaches what must not fire and gives changed vectors the routes that they shall have, with one routing update; none when none gets another route. One that could not be detached stays as it is; in an attempt, all do. The others go on when one fails.
    pub(super) fn reroute(&mut self) -> Result<(), RoutesError> {
        let mut all = Ok(());
        let mut changes = Vec::new();
        let mut walk = Walk::default();
        while let Some(vector) = walk.next(&self.world.wires.changed) {
            let wire = self.world.wires.wire(vector);
            let wanted = self.wanted_for(vector, wire);
            if self.is_to_go(&wanted, wire) {
                let detached = self.detach(vector);
                let stays = detached.is_err();
                all = all.and(detached);
                if stays {
                    continue;
                }
            }
            if !wanted.is_routed(wire) {
                changes
                    .push((vector, wanted.message.and_then(|message| self.fixed.route(message))));
            } else if !wanted.attached {
                self.world.wires.changed.remove(vector);
            }
        }
        if all.is_ok() || self.world.attempt.is_none() {
            all = all.and(self.install(&changes));
        }
        all
    }

    /// One routing update; none where there is nothing to be changed.
    pub(super) fn install(
        &mut self,
        changes: &[(VectorIndex, Option<Route>)],
    ) -> Result<(), RoutesError> {
        if changes.is_empty() {
            return Ok(());
        }
        self.world.wires.install(changes, &mut self.tally.counters)
    }

    /// Detaches changed vectors that lead where they shall not, on whatever platform.
    pub(super) fn detach_misled(&mut self) -> Result<(), RoutesError> {
        let mut all = Ok(());
        let mut walk = Walk::default();
        while let Some(vector) = walk.next(&self.world.wires.changed) {
            let wire = self.world.wires.wire(vector);
            if wire.is_attached() && !self.wanted_for(vector, wire).is_routed(wire) {
                all = all.and(self.detach(vector));
            }
        }
        all
    }

    pub(super) fn detach(&mut self, vector: VectorIndex) -> Result<(), RoutesError> {
        match self.world.wires.detach(vector, &mut self.tally.counters) {
            Ok(true) => self.unblock(vector),
            Ok(false) => {}
            Err(error) => {
                self.block(vector);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Attaches what may fire, and forgets that vectors have changed which are as they shall be. In direct mode an event that waits for a vector which the guest has masked in the table meanwhile must not fire: these vectors are left for the caller to decide. The others go on when one fails.
    pub(super) fn attach_wanted(&mut self) -> (Vec<VectorIndex>, Result<(), RoutesError>) {
        let direct = self.world.mode == TableMode::Direct;
        let mut held = Vec::new();
        let mut all = Ok(());
        let mut walk = Walk::default();
        while let Some(vector) = walk.next(&self.world.wires.changed) {
            let wire = self.world.wires.wire(vector);
            let wanted = self.wanted_for(vector, wire);
            if !wanted.is_routed(wire) {
                continue;
            }
            if wanted.attached && direct && self.must_stay_held(vector, wire) {
                held.push(vector);
                continue;
            }
            let done = if wanted.attached {
                let attached = self.attach(vector, wire);
                let done = attached.is_ok();
                all = all.and(attached);
                done
            } else {
                wanted.is_met(wire)
            };
            if done {
                self.world.wires.changed.remove(vector);
            }
        }
        (held, all)
    }

    fn must_stay_held(&mut self, vector: VectorIndex, wire: Wire) -> bool {
        !wire.is_attached()
            && self.world.wires.waits(vector)
            && self.function.masked(vector).unwrap_or(true)
    }

    /// Attaches those of some vectors that may fire.
    pub(super) fn attach_these(&mut self, vectors: &[VectorIndex]) -> Result<(), RoutesError> {
        let mut all = Ok(());
        for &vector in vectors {
            let wire = self.world.wires.wire(vector);
            let wanted = self.wanted_for(vector, wire);
            if wanted.attached && wanted.is_routed(wire) {
                all = all.and(self.attach(vector, wire));
            }
        }
        all
    }

    /// KVM can raise an event twice that is signalled at the very moment of the attach: by its
    /// wake-up and by its look at what the eventfd holds. While the table is the host's, the
    /// function holds its events back for that moment.
    fn attach(&mut self, vector: VectorIndex, wire: Wire) -> Result<(), RoutesError> {
        if wire.is_attached() {
            self.unblock(vector);
            return Ok(());
        }
        // In an attempt the function holds it back already, and until the end.
        let hold = self.is_masked_by_host(vector) && !self.world.quiet.contains(vector);
        let mut held = Ok(());
        if hold {
            self.world.blocked.insert(vector);
            held = self.function.set_masked(vector, true);
        }
        // What has been there for a shorter time than the attempt has no events.
        if self.world.attempt.is_some_and(|before| vector.as_usize() < before) {
            self.put_aside(vector);
        }
        let attached = held
            .map_err(table_access)
            .and_then(|()| self.world.wires.attach(vector, &mut self.tally.counters));
        let mut let_go = Ok(());
        if hold {
            let_go = self.function.set_masked(vector, false);
            if let_go.is_ok() {
                self.world.blocked.remove(vector);
            }
        }
        attached.and(let_go.map_err(table_access))
    }

    /// Takes what the event of a vector holds, until the attempt ends.
    fn put_aside(&mut self, vector: VectorIndex) {
        if self.world.wires.get(vector).is_some_and(|vector| event::drain(&vector.event)) {
            self.world.aside.insert(vector);
        }
    }

    /// Gives an event back what was taken aside: if it is attached, it fires.
    fn put_back(&mut self, vector: VectorIndex) {
        if self.world.aside.remove(vector)
            && let Some(vector) = self.world.wires.get(vector)
        {
            event::signal(&vector.event);
        }
    }

    /// Gives back all that was taken aside.
    pub(super) fn put_all_back(&mut self) {
        let mut walk = Walk::default();
        while let Some(vector) = walk.next(&self.world.aside) {
            // One that could not be detached would fire: it gets its event back when it may, or is detached.
            if !self.is_against(vector) {
                self.put_back(vector);
            }
        }
    }

    /// Detaches the vectors from `first` on, for good: their routes lead nobody anywhere then, and need no update.
    pub(super) fn unroute(&mut self, first: usize) {
        for vector in VectorSet::first(self.world.wires.len()).iter().skip(first) {
            if let Err(error) = self.detach(vector) {
                self.complain_of_routes(&error);
            }
        }
    }

    pub(super) fn complain_of_routes(&mut self, error: &RoutesError) {
        self.complain("interrupts of the function may not arrive", error);
    }

    /// Whether the function's own mask bit of a vector is the host's to write. Not where the host has never read the table: there are functions whose table it cannot reach.
    pub(super) fn is_masked_by_host(&self, vector: VectorIndex) -> bool {
        self.world.mode == TableMode::Trapped
            && vector.as_usize() < self.world.set_up
            && self.guest.placement.answers()
            && self.world.wires.get(vector).is_some_and(|vector| vector.table_message.is_some())
    }

    /// Lets the function hold the events of a vector that stays attached against the host's will.
    pub(super) fn block(&mut self, vector: VectorIndex) {
        if self.is_masked_by_host(vector) {
            self.world.blocked.insert(vector);
            if let Err(error) = self.function.set_masked(vector, true) {
                self.complain("a mask bit could not be set", &error);
            }
        }
    }

    /// Ends that, once the vector is detached or may fire.
    pub(super) fn unblock(&mut self, vector: VectorIndex) {
        let blocked = self.world.blocked.contains(vector);
        let aside = self.world.attempt.is_none() && self.world.aside.contains(vector);
        if !(blocked || aside) || self.is_against(vector) {
            return;
        }
        if aside {
            self.put_back(vector);
        }
        if blocked && self.is_masked_by_host(vector) {
            match self.function.set_masked(vector, self.world.quiet.contains(vector)) {
                Ok(()) => {
                    self.world.blocked.remove(vector);
                }
                Err(error) => self.complain("a mask bit could not be cleared", &error),
            }
        }
    }

    /// Clears the function's mask bits of these vectors, but of those that could not be detached.
    pub(super) fn unmask(&mut self, vectors: &VectorSet) {
        self.world.blocked.extend(vectors);
        vectors.iter().for_each(|vector| self.unblock(vector));
    }

    /// Makes the function's own mask bits hold what must not fire, and nothing else. Only while the table is trapped: otherwise the bits are the guest's.
    pub(super) fn hold_back(&mut self) {
        let mut vectors = self.world.wires.changed;
        vectors.extend(&self.world.blocked);
        vectors.extend(&self.world.aside);
        for vector in vectors.iter() {
            if self.is_against(vector) {
                self.block(vector);
            } else {
                self.unblock(vector);
            }
        }
    }
}

pub(super) fn table_access(source: io::Error) -> RoutesError {
    RoutesError::Kernel { operation: "taking or writing the vector table", source }
}

pub(super) fn still_shown() -> io::Error {
    io::Error::other("the pages are still shown to the guest")
}
