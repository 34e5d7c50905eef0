//! Makes changed vectors as they shall be, and lets the function hold back what must not fire meanwhile.

use std::io;

use pvmsi_protocol::{TableMode, VectorIndex};

use super::Switch;
use super::decide::Wanted;
use super::set::{VectorSet, Walk};
use super::wires::{Changes, Wire};
use crate::event;
use crate::routes::RoutesError;

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

    /// Makes changed vectors as they shall be: detaches, routes with one update of the routing table, attaches. In direct mode an event that waits for a vector which the guest has masked in the table meanwhile must not fire: these vectors are left for the caller to decide. The others go on when one fails; but in an attempt no route is changed then.
    pub(super) fn work_off(&mut self) -> (Vec<VectorIndex>, Result<(), RoutesError>) {
        let mut held = Vec::new();
        // What one vector leaves may be another's next.
        let binds = self.fixed.platform.binds_at_attach();
        let mut all = if binds { self.detach_unwanted() } else { Ok(()) };
        let first_new = self.first_new();
        let mut changes = Changes::default();
        let mut walk = Walk::default();
        while let Some(vector) = walk.next(&self.world.wires.changed) {
            if vector.as_usize() >= first_new {
                break;
            }
            let wire = self.world.wires.wire(vector);
            let wanted = self.wanted_for(vector, wire);
            if self.is_to_go(&wanted, wire)
                && let Err(error) = self.detach(vector)
            {
                keep_first(&mut all, error);
            } else if !wanted.is_routed(wire) {
                let route = wanted.message.map(|message| self.fixed.route_of(message));
                changes
                    .add(vector, wire, route, wanted.attached, || self.world.wires.changed.len());
            } else {
                match self.last_step(vector, wanted.attached) {
                    Ok(true) => {
                        self.world.wires.changed.remove(vector);
                    }
                    Ok(false) => held.push(vector),
                    Err(error) => keep_first(&mut all, error),
                }
            }
        }
        let ready = self.add_new(first_new, &mut changes);
        if all.is_err() && self.world.attempt.is_some() {
            return (held, all);
        }
        if let Err(error) = self.install(&changes) {
            keep_first(&mut all, error);
            return (held, all);
        }
        for &vector in &changes.unrouted {
            self.world.wires.changed.remove(vector);
        }
        for &(vector, attach) in changes.of_old() {
            match self.last_step(vector, attach) {
                Ok(true) => {
                    self.world.wires.changed.remove(vector);
                }
                Ok(false) => held.push(vector),
                Err(error) => keep_first(&mut all, error),
            }
        }
        if first_new < self.world.wires.len() {
            match self.world.wires.finish_new(&changes, &ready, &mut self.tally.counters) {
                Ok(()) => self.world.wires.changed.truncate(first_new),
                Err(error) => keep_first(&mut all, error),
            }
        }
        (held, all)
    }

    /// From this vector on, where there are so many, they came with the attempt and have no interrupts yet. No event of them
    /// waits or can come, so nothing has to be held back or taken aside when one is attached; and no
    /// `configure` is unfinished that would have to make way.
    fn first_new(&self) -> usize {
        self.world.attempt.map_or(self.world.wires.len(), |before| before.max(self.world.set_up))
    }

    /// Adds the new vectors that lack their routes; those that have them already and are to be attached.
    // Not inlined: its loop keeps all that it needs in registers.
    #[inline(never)]
    fn add_new(&self, first: usize, changes: &mut Changes) -> Vec<VectorIndex> {
        changes.reserve(self.world.wires.len().saturating_sub(first));
        let mut ready = Vec::new();
        for (index, vector) in self.world.wires.from(first) {
            let wanted = self.wanted_for(index, vector.wire);
            if !wanted.is_routed(vector.wire) {
                let route = wanted.message.map(|message| self.fixed.route_of(message));
                changes.add_new(index, vector.wire, route, wanted.attached);
            } else if wanted.attached {
                ready.push(index);
            }
        }
        ready
    }

    /// Makes one vector as it shall be, where that takes no routing update; `false` where it is not so yet.
    #[inline(always)]
    pub(super) fn work_off_one(&mut self, vector: VectorIndex) -> bool {
        let wire = self.world.wires.wire(vector);
        let wanted = self.wanted_for(vector, wire);
        wanted.is_routed(wire)
            && (!self.is_to_go(&wanted, wire) || self.detach(vector).is_ok())
            && self.last_step(vector, wanted.attached).unwrap_or(false)
    }

    /// The last step for a vector that is routed as it shall be; whether nothing is left to be done.
    #[inline(always)]
    fn last_step(&mut self, vector: VectorIndex, attach: bool) -> Result<bool, RoutesError> {
        if attach {
            if self.world.mode == TableMode::Direct && self.must_stay_held(vector) {
                return Ok(false);
            }
            self.attach(vector)?;
        }
        Ok(true)
    }

    /// One routing update; none where there is nothing to be changed.
    pub(super) fn install(&mut self, changes: &Changes) -> Result<(), RoutesError> {
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
            Ok(true) => {
                // One that was attached in advance. In an attempt its mask bit goes at the end.
                if self.world.attempt.is_none() {
                    self.let_loose(vector);
                }
                self.unblock(vector);
            }
            Ok(false) => {}
            Err(error) => {
                self.block(vector);
                return Err(error);
            }
        }
        Ok(())
    }

    fn must_stay_held(&mut self, vector: VectorIndex) -> bool {
        self.world.wires.waits(vector) && self.function.table().masked(vector).unwrap_or(true)
    }

    /// Attaches those of some vectors that may fire.
    pub(super) fn attach_these(&mut self, vectors: &[VectorIndex]) -> Result<(), RoutesError> {
        let mut all = Ok(());
        for &vector in vectors {
            let wire = self.world.wires.wire(vector);
            let wanted = self.wanted_for(vector, wire);
            if wanted.attached && wanted.is_routed(wire) {
                all = all.and(self.attach(vector));
            }
        }
        all
    }

    /// KVM can raise an event twice that is signalled at the very moment of the attach: by its
    /// wake-up and by its look at what the eventfd holds. While the table is the host's, the
    /// function holds its events back for that moment.
    #[inline(always)]
    fn attach(&mut self, vector: VectorIndex) -> Result<(), RoutesError> {
        if self.world.wires.wire(vector).is_attached() {
            self.unblock(vector);
            return Ok(());
        }
        if self.guest.unfinished.is_some() {
            self.make_way(vector);
        }
        // What has been there for a shorter time than the attempt has no events.
        let aside = self.world.attempt.is_some_and(|before| vector.as_usize() < before);
        // In an attempt the function holds it back already, and until the end.
        if !self.can_mask(vector) || self.world.quiet.contains(vector) {
            if aside {
                self.put_aside(vector);
            }
            return self.world.wires.attach(vector, &mut self.tally.counters);
        }
        let held = self.function.table().set_masked(vector, true);
        if aside {
            self.put_aside(vector);
        }
        let attached = match held {
            Ok(()) => self.world.wires.attach(vector, &mut self.tally.counters),
            Err(error) => Err(table_access(error)),
        };
        match self.function.table().set_masked(vector, false) {
            Ok(()) => {
                self.world.blocked.remove(vector);
                attached
            }
            Err(error) => {
                self.world.blocked.insert(vector);
                attached.and(Err(table_access(error)))
            }
        }
    }

    /// Detaches what was attached in advance, where one of it has the message of a vector that fires now. The unfinished `configure` attaches it again.
    #[cold]
    fn make_way(&mut self, vector: VectorIndex) {
        if let Some(unfinished) = &self.guest.unfinished
            && vector.as_usize() < unfinished.first
            && let Some(message) = self.world.wires.wire(vector).message()
            && self.world.wires.is_bound(message)
        {
            self.unroute(unfinished.first);
        }
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
    pub(super) fn can_mask(&self, vector: VectorIndex) -> bool {
        self.world.mode == TableMode::Trapped && self.can_reach(vector)
    }

    /// Whether the host can reach the vector's entry of the function's own table.
    #[inline]
    pub(super) fn can_reach(&self, vector: VectorIndex) -> bool {
        vector.as_usize() < self.world.set_up
            && self.answers()
            && self.world.wires.get(vector).is_some_and(|vector| vector.table_message.is_some())
    }

    /// Ends that the function holds a vector back on the host's behalf. In a direct table the bit is the guest's.
    pub(super) fn let_loose(&mut self, vector: VectorIndex) {
        if !self.world.quiet.remove(vector) || self.world.mode != TableMode::Trapped {
            return;
        }
        // Without a detour where nothing else is in the way.
        let free = self.world.aside.is_empty() && self.can_mask(vector) && !self.is_against(vector);
        if free && self.function.table().set_masked(vector, false).is_ok() {
            return;
        }
        self.world.blocked.insert(vector);
        self.unblock(vector);
    }

    /// Lets the function hold the events of a vector that stays attached against the host's will.
    pub(super) fn block(&mut self, vector: VectorIndex) {
        if self.can_mask(vector) {
            self.world.blocked.insert(vector);
            if let Err(error) = self.function.table().set_masked(vector, true) {
                self.complain("a mask bit could not be set", &error);
            }
        }
    }

    /// Ends that, once the vector is detached or may fire.
    pub(super) fn unblock(&mut self, vector: VectorIndex) {
        if self.world.blocked.is_empty() && self.world.aside.is_empty() {
            return;
        }
        let blocked = self.world.blocked.contains(vector);
        let aside = self.world.attempt.is_none() && self.world.aside.contains(vector);
        if !(blocked || aside) || self.is_against(vector) {
            return;
        }
        if aside {
            self.put_back(vector);
        }
        if blocked && self.can_mask(vector) {
            match self.function.table().set_masked(vector, self.world.quiet.contains(vector)) {
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

fn keep_first(all: &mut Result<(), RoutesError>, error: RoutesError) {
    if all.is_ok() {
        *all = Err(error);
    }
}

pub(super) fn table_access(source: impl Into<io::Error>) -> RoutesError {
    RoutesError::Kernel { operation: "taking or writing the vector table", source: source.into() }
}

pub(super) fn still_shown() -> io::Error {
    io::Error::other("the pages are still shown to the guest")
}
