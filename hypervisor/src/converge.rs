//! Routes and attachments: which the state wants, and making them so.
//!
//! KVM delivers an event that it is attached to by the route of the event's
//! GSI. The order is always: detach, route, attach.

use std::io;

use pvmsi_protocol::{TableMode, VectorIndex};

use crate::attempt::still_shown;
use crate::counters::Counters;
use crate::event;
use crate::routes::{Route, RouteChange, Routes, RoutesError};
use crate::state::{FunctionState, Owner, Vector};

impl FunctionState {
    /// Where the vector's GSI shall lead. Legacy vectors keep their last route while they are masked: it costs an update to change it, and nothing is attached.
    pub(crate) fn wanted_route(&self, index: usize) -> Option<Route> {
        let vector = self.vectors.get(index)?;
        vector.gsi?;
        match &self.owner {
            Owner::Legacy(entries) => match entries.get(index) {
                Some(entry) if self.control.enable && !entry.masked => {
                    self.platform.route(self.id, entry.message)
                }
                _ => vector.installed,
            },
            Owner::Assigned(vectors) => self.platform.route(self.id, vectors.get(index)?.message?),
        }
    }

    /// Whether an event of the vector may reach the guest now.
    fn wanted_attached(&self, index: usize) -> bool {
        let unmasked = match &self.owner {
            Owner::Legacy(entries) => entries.get(index).is_some_and(|entry| !entry.masked),
            Owner::Assigned(vectors) => vectors
                .get(index)
                .is_some_and(|vector| self.mode == TableMode::Direct || !vector.masked),
        };
        unmasked && self.could_fire(index)
    }

    /// Whether an event of the vector may reach the guest now, or nothing but its mask bit is in the way.
    pub(crate) fn could_fire(&self, index: usize) -> bool {
        let enabled = self.control.enable && !self.control.function_mask && !self.paused;
        enabled && self.wanted_route(index).is_some()
    }

    /// Whether the vector's event is attached and keeps to a route that it shall leave.
    fn is_bound_elsewhere(&self, index: usize) -> bool {
        let attached = self.vectors.get(index).is_some_and(|vector| vector.attached);
        self.platform.binds_at_attach() && attached && !self.is_routed(index)
    }

    /// Detaches vectors whose messages are named again, where an attach binds. The function holds their events back until the attempt ends: here, and wherever an attach can fail after others have been routed or attached.
    pub(crate) fn unbind(
        &mut self,
        vectors: impl Iterator<Item = usize> + Clone,
    ) -> Result<(), RoutesError> {
        let attached = |index: usize| self.vectors.get(index).is_some_and(|vector| vector.attached);
        let rebinds = self.platform.binds_at_attach() && vectors.clone().any(attached);
        let unattached = |index: &usize| !attached(*index) && self.wanted_attached(*index);
        let named = vectors.clone().filter(unattached).count();
        // With those that an earlier failure has left over.
        let attaches = (0..self.vectors.len()).filter(unattached).count();
        let steps = attaches > 0 && (attaches > named || vectors.clone().nth(1).is_some());
        if rebinds || steps {
            self.begin_attempt(vectors.clone()).map_err(table_access)?;
        }
        if rebinds {
            vectors.into_iter().try_for_each(|index| self.detach(index))?;
        }
        Ok(())
    }

    /// Detaches, routes and attaches until all vectors are as the state wants them.
    pub(crate) fn converge(&mut self) -> Result<(), RoutesError> {
        self.detach_unwanted()?;
        self.install_routes(0..self.vectors.len())?;
        self.attach_wanted(0..self.vectors.len())
    }

    /// The same for one vector.
    pub(crate) fn converge_vector(&mut self, vector: VectorIndex) -> Result<(), RoutesError> {
        let index = vector.as_usize();
        if !self.wanted_attached(index) || self.is_bound_elsewhere(index) {
            self.detach(index)?;
        }
        let end = index.saturating_add(1).min(self.vectors.len());
        self.install_routes(index..end)?;
        self.attach_wanted(index..end)
    }

    /// For paths that cannot fail: says what went wrong, once in a while.
    pub(crate) fn converge_or_log(&mut self) {
        if let Err(error) = self.converge() {
            self.log_routes(&error);
            if (0..self.vectors.len()).any(|index| self.is_against(index)) {
                // Only where the table is the host's can the function hold back what must not fire.
                self.leave_direct();
            }
        }
    }

    /// Whether the vector is attached and must not fire: it is masked, or would go where it led before.
    pub(crate) fn is_against(&self, index: usize) -> bool {
        self.vectors.get(index).is_some_and(|vector| vector.attached)
            && !(self.wanted_attached(index) && self.is_routed(index))
    }

    /// Whether the vector's GSI leads where it shall.
    fn is_routed(&self, index: usize) -> bool {
        let installed = self.vectors.get(index).map(|vector| vector.installed);
        installed == Some(self.wanted_route(index))
    }

    /// Makes the function's own mask bits hold what must not fire, and nothing else. Only while the table is trapped: otherwise the bits are the guest's.
    pub(crate) fn hold_back(&mut self) {
        for index in 0..self.vectors.len() {
            if self.is_against(index) {
                self.block_vector(index);
            } else {
                self.unblock_vector(index);
            }
        }
    }

    /// Detaches a vector whose event would go to a message that is no longer its own.
    pub(crate) fn detach_misled(&mut self, index: usize) -> Result<(), RoutesError> {
        if self.is_routed(index) { Ok(()) } else { self.detach(index) }
    }

    pub(crate) fn log_routes(&mut self, error: &RoutesError) {
        self.complain("interrupts of the function may not arrive", error);
    }

    pub(crate) fn detach_unwanted(&mut self) -> Result<(), RoutesError> {
        // The others go on when one fails.
        let mut all = Ok(());
        for index in 0..self.vectors.len() {
            if !self.wanted_attached(index) || self.is_bound_elsewhere(index) {
                all = all.and(self.detach(index));
            }
        }
        all
    }

    fn detach(&mut self, index: usize) -> Result<(), RoutesError> {
        let Some(vector) = self.vectors.get_mut(index).filter(|vector| vector.attached) else {
            return Ok(());
        };
        if let Some(gsi) = vector.gsi {
            if let Err(error) = self.routes.detach(&vector.event, gsi) {
                self.block_vector(index);
                return Err(error);
            }
            self.counters.detaches = self.counters.detaches.saturating_add(1);
        }
        vector.attached = false;
        self.unblock_vector(index);
        Ok(())
    }

    /// The function's own mask bit of a vector, where it is the host's to write. None where the host has never read the table: there are functions whose table it cannot reach.
    pub(crate) fn own_mask(&self, index: usize) -> Option<VectorIndex> {
        let trapped = self.mode == TableMode::Trapped && self.accessible() && index < self.set_up;
        let vector = self.vectors.get(index).filter(|_| trapped)?;
        vector.table_message?;
        u16::try_from(index).ok().map(VectorIndex)
    }

    /// Lets the function hold the events of a vector that stays attached against the host's will.
    pub(crate) fn block_vector(&mut self, index: usize) {
        let number = self.own_mask(index);
        if let (Some(number), Some(vector)) = (number, self.vectors.get_mut(index)) {
            vector.blocked = true;
            if let Err(error) = self.function.set_masked(number, true) {
                self.complain("a mask bit could not be set", &error);
            }
        }
    }

    /// Ends that, once the vector is detached or may fire.
    pub(crate) fn unblock_vector(&mut self, index: usize) {
        if self.is_against(index) {
            return;
        }
        if !self.attempt {
            self.put_back(index);
        }
        let number = self.own_mask(index);
        let vector = self.vectors.get_mut(index).filter(|vector| vector.blocked);
        if let (Some(number), Some(vector)) = (number, vector) {
            match self.function.set_masked(number, vector.quiet) {
                Ok(()) => vector.blocked = false,
                Err(error) => self.complain("a mask bit could not be cleared", &error),
            }
        }
    }

    /// One routing update for all vectors of the range that get another route; none when none does. A vector that shall have none needs no update: nothing is attached to its GSI.
    pub(crate) fn install_routes(
        &mut self,
        range: std::ops::Range<usize>,
    ) -> Result<(), RoutesError> {
        self.reroute(range, Self::wanted_route)
    }

    /// The same, with the routes that `wanted` says.
    pub(crate) fn reroute(
        &mut self,
        range: std::ops::Range<usize>,
        wanted: impl Fn(&Self, usize) -> Option<Route>,
    ) -> Result<(), RoutesError> {
        let changed: Vec<_> = range
            .filter_map(|index| {
                let vector = self.vectors.get(index)?;
                let route = wanted(self, index);
                (vector.gsi.is_some() && route != vector.installed).then_some((index, route))
            })
            .collect();
        let table: Vec<_> = changed
            .iter()
            .filter_map(|&(index, route)| {
                Some(RouteChange { gsi: self.vectors.get(index)?.gsi?, route: route? })
            })
            .collect();
        if !table.is_empty() {
            self.counters.routing_updates = self.counters.routing_updates.saturating_add(1);
            self.routes.install(&table)?;
        }
        for (index, route) in changed {
            if let Some(vector) = self.vectors.get_mut(index) {
                vector.installed = route;
            }
        }
        Ok(())
    }

    /// Attaches what may fire. In direct mode an event that waits for a vector which the guest has masked in the table meanwhile must not fire: the table goes back to trapped, where its unmasking is seen.
    pub(crate) fn attach_wanted(
        &mut self,
        range: std::ops::Range<usize>,
    ) -> Result<(), RoutesError> {
        // The others go on when one fails.
        let mut all = Ok(());
        let mut held = Vec::new();
        for index in range {
            if self.mode == TableMode::Direct && self.must_stay_held(index) {
                held.push(index);
            } else if self.wanted_attached(index) && self.is_routed(index) {
                all = all.and(self.attach(index));
            }
        }
        // Last: a call that has failed by now leaves the table where it is.
        if held.is_empty() || self.attempt && all.is_err() {
            return all;
        }
        self.held = true;
        if self.attempt {
            // It may still fail: what is pending in the function stays there until the end.
            self.begin_attempt(held.iter().copied()).map_err(table_access)?;
            all = all.and(self.detach_unwanted());
        } else if !self.leave_direct() {
            return Err(table_access(still_shown()));
        }
        // The guest may have unmasked them meanwhile.
        for index in held {
            if self.wanted_attached(index) && self.is_routed(index) {
                all = all.and(self.attach(index));
            }
        }
        all
    }

    fn must_stay_held(&mut self, index: usize) -> bool {
        let waits = self
            .vectors
            .get(index)
            .is_some_and(|vector| !vector.attached && event::is_signalled(&vector.event));
        waits
            && self.wanted_attached(index)
            && u16::try_from(index)
                .is_ok_and(|index| self.function.masked(VectorIndex(index)).unwrap_or(true))
    }

    /// KVM can raise an event twice that is signalled at the very moment of the attach: by its
    /// wake-up and by its look at what the eventfd holds. While the table is the host's, the
    /// function holds its events back for that moment.
    fn attach(&mut self, index: usize) -> Result<(), RoutesError> {
        let hold = self.own_mask(index);
        let Some(vector) = self.vectors.get_mut(index).filter(|vector| !vector.attached) else {
            self.unblock_vector(index);
            return Ok(());
        };
        let mut held = Ok(());
        // In an attempt the function holds it back already, and until the end.
        let hold = hold.filter(|_| !vector.quiet);
        if let Some(number) = hold {
            vector.blocked = true;
            held = self.function.set_masked(number, true);
        }
        if self.attempt {
            vector.aside |= event::drain(&vector.event);
        }
        let attached = held
            .map_err(table_access)
            .and_then(|()| Self::attach_vector(self.routes.as_ref(), vector, &mut self.counters));
        let mut let_go = Ok(());
        if let Some(number) = hold {
            let_go = self.function.set_masked(number, false);
            vector.blocked = let_go.is_err();
        }
        attached.and(let_go.map_err(table_access))
    }

    fn attach_vector(
        routes: &dyn Routes,
        vector: &mut Vector,
        counters: &mut Counters,
    ) -> Result<(), RoutesError> {
        if let Some(gsi) = vector.gsi {
            routes.attach(&vector.event, gsi)?;
            counters.attaches = counters.attaches.saturating_add(1);
            vector.attached = true;
        }
        Ok(())
    }

    /// Detaches the events of the vectors from `first` on: their routes lead nobody anywhere then, and need no update.
    pub(crate) fn unroute(&mut self, first: usize) {
        for index in first..self.vectors.len() {
            if let Err(error) = self.detach(index) {
                self.log_routes(&error);
            } else if let Some(vector) = self.vectors.get_mut(index) {
                vector.installed = None;
            }
        }
    }
}

fn table_access(source: io::Error) -> RoutesError {
    RoutesError::Kernel { operation: "taking or writing the vector table", source }
}
