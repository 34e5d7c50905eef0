//! The one place that touches routes and irqfds: where the events of vectors lead.
//!
//! KVM delivers an event that it is attached to by the route of the event's GSI.
//! The order is always: detach, route, attach. Where a message is one vector's
//! alone, nothing is attached to one that another vector is attached to.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use pvmsi_protocol::{GuestMessage, TableMessage, VECTORS_MAX, VectorIndex};
use vmm_sys_util::eventfd::EventFd;

use super::set::VectorSet;
use crate::counters::Counters;
use crate::event;
use crate::routes::{Gsi, Route, RouteChange, Routes, RoutesError};

/// How far the way of a vector's event into the guest reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Wire {
    /// No GSI: the vector is set up only because set-up cannot grow later.
    None,
    /// A GSI that leads nowhere that matters: nothing is attached.
    Allocated(Gsi),
    /// A GSI that leads to a message; nothing is attached.
    Routed(Gsi, GuestMessage),
    /// KVM raises the GSI at each signal of the event.
    Attached(Gsi, GuestMessage),
}

impl Wire {
    pub(crate) const fn gsi(self) -> Option<Gsi> {
        match self {
            Self::None => None,
            Self::Allocated(gsi) | Self::Routed(gsi, _) | Self::Attached(gsi, _) => Some(gsi),
        }
    }

    pub(crate) const fn message(self) -> Option<GuestMessage> {
        match self {
            Self::None | Self::Allocated(_) => None,
            Self::Routed(_, message) | Self::Attached(_, message) => Some(message),
        }
    }

    pub(crate) const fn is_attached(self) -> bool {
        matches!(self, Self::Attached(..))
    }

    const fn attached(self) -> Self {
        match self {
            Self::Routed(gsi, message) => Self::Attached(gsi, message),
            other => other,
        }
    }

    const fn detached(self) -> Self {
        match self {
            Self::Attached(gsi, message) => Self::Routed(gsi, message),
            other => other,
        }
    }

    const fn without_route(self) -> Self {
        match self {
            Self::Routed(gsi, _) => Self::Allocated(gsi),
            other => other,
        }
    }

    const fn lead_to(&mut self, to: GuestMessage) {
        match self {
            Self::None => {}
            Self::Allocated(gsi) => *self = Self::Routed(*gsi, to),
            Self::Routed(_, message) | Self::Attached(_, message) => *message = to,
        }
    }
}

/// A vector that has an interrupt of its own, or is about to get one.
#[derive(Debug)]
pub(crate) struct Vector {
    pub(crate) event: EventFd,
    pub(crate) wire: Wire,
    /// What the function's table holds; absent until it could be read.
    pub(crate) table_message: Option<TableMessage>,
}

impl Vector {
    pub(crate) const fn new(event: EventFd, wire: Wire) -> Self {
        Self { event, wire, table_message: None }
    }
}

/// Vectors that get other routes, or none, with one update of the routing table.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// The update.
    table: Vec<RouteChange>,
    /// Whose routes these are, in the same order, and whether they are to be attached then.
    routed: Vec<(VectorIndex, bool)>,
    /// How many of these are not new.
    old: usize,
    /// Those that lose theirs: nothing is attached to them, so the table can keep what it has.
    pub(crate) unrouted: Vec<VectorIndex>,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        self.routed.is_empty() && self.unrouted.is_empty()
    }

    /// Those of `routed` that are not new.
    pub(crate) fn of_old(&self) -> &[(VectorIndex, bool)] {
        self.routed.get(..self.old).unwrap_or_default()
    }

    /// The changes of new vectors.
    fn of_new(&self) -> impl Iterator<Item = (&RouteChange, &(VectorIndex, bool))> {
        let table = self.table.get(self.old..).unwrap_or_default();
        table.iter().zip(self.routed.get(self.old..).unwrap_or_default())
    }

    /// Makes room for so many more vectors.
    pub(crate) fn reserve(&mut self, count: usize) {
        self.table.reserve_exact(count);
        self.routed.reserve_exact(count);
    }

    /// Adds a vector with this wire, of `most` that can come at all.
    #[inline]
    pub(crate) fn add(
        &mut self,
        vector: VectorIndex,
        wire: Wire,
        route: Option<Route>,
        attach: bool,
        most: impl FnOnce() -> usize,
    ) {
        if self.table.capacity() == 0 && route.is_some() {
            self.reserve(most());
        }
        self.add_new(vector, wire, route, attach);
        self.old = self.routed.len();
    }

    /// Adds a new vector, after all that are not. It has its route, and is attached, by [`Wires::finish_new`].
    #[inline]
    pub(crate) fn add_new(
        &mut self,
        vector: VectorIndex,
        wire: Wire,
        route: Option<Route>,
        attach: bool,
    ) {
        let Some(route) = route else { return self.unrouted.push(vector) };
        let Some(gsi) = wire.gsi() else { return };
        self.table.push(RouteChange { gsi, route });
        self.routed.push((vector, attach));
    }
}

/// So many GSIs, or as many as there are.
fn take_gsis(routes: &dyn Routes, lacking: usize) -> Vec<Gsi> {
    match u16::try_from(lacking) {
        Ok(lacking) if lacking > 0 => routes.allocate(lacking).unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// The vectors of a function, from vector 0 on, and their ways into the guest.
pub(crate) struct Wires {
    routes: Arc<dyn Routes>,
    vectors: Vec<Vector>,
    /// Ways of the vectors that come next, of which there are no events yet.
    ahead: VecDeque<Wire>,
    /// Vectors that are no more, but could not be detached: nobody else may have their GSIs.
    retired: Vec<Vector>,
    /// The messages that vectors are attached to, where each is one vector's alone.
    bound: Option<HashSet<GuestMessage>>,
    /// Vectors that may not be as guest and host want them. All others are.
    pub(crate) changed: VectorSet,
}

impl Wires {
    /// No vectors yet. `exclusive`: a message is one vector's alone.
    pub(crate) fn new(routes: Arc<dyn Routes>, exclusive: bool) -> Self {
        Self {
            routes,
            bound: exclusive.then(HashSet::new),
            vectors: Vec::new(),
            ahead: VecDeque::new(),
            retired: Vec::new(),
            changed: VectorSet::default(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.vectors.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    pub(crate) fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }

    pub(crate) fn get(&self, vector: VectorIndex) -> Option<&Vector> {
        self.vectors.get(vector.as_usize())
    }

    pub(crate) fn wire(&self, vector: VectorIndex) -> Wire {
        self.get(vector).map_or(Wire::None, |vector| vector.wire)
    }

    /// The events of those vectors of a range that there are.
    pub(crate) fn events(&self, range: Range<usize>) -> Vec<&EventFd> {
        let end = range.end.min(self.vectors.len());
        let vectors = self.vectors.get(range.start.min(end)..end).unwrap_or_default();
        vectors.iter().map(|vector| &vector.event).collect()
    }

    pub(crate) fn all(&self) -> &[Vector] {
        &self.vectors
    }

    /// The first `count` vectors with their numbers.
    pub(crate) fn first(&self, count: usize) -> impl Iterator<Item = (VectorIndex, &Vector)> {
        let vectors = self.vectors.get(..count).unwrap_or(&self.vectors);
        numbers(0).zip(vectors)
    }

    /// The vectors from `first` on with their numbers.
    pub(crate) fn from(&self, first: usize) -> impl Iterator<Item = (VectorIndex, &Vector)> {
        let vectors = self.vectors.get(first..).unwrap_or_default();
        numbers(first).zip(vectors)
    }

    pub(crate) fn first_mut(
        &mut self,
        count: usize,
    ) -> impl Iterator<Item = (VectorIndex, &mut Vector)> {
        self.range_mut(0..count)
    }

    /// Those vectors of a range that there are, with their numbers.
    pub(crate) fn range_mut(
        &mut self,
        range: Range<usize>,
    ) -> impl Iterator<Item = (VectorIndex, &mut Vector)> {
        let end = range.end.min(self.vectors.len());
        let start = range.start.min(end);
        let vectors = self.vectors.get_mut(start..end).unwrap_or_default();
        numbers(start).zip(vectors)
    }

    /// The event of a vector if it holds a signal that KVM is not going to take.
    pub(crate) fn waits(&self, vector: VectorIndex) -> bool {
        self.get(vector)
            .is_some_and(|vector| !vector.wire.is_attached() && event::is_signalled(&vector.event))
    }

    /// All vectors are to be looked at again.
    pub(crate) fn all_changed(&mut self) {
        self.changed.add_first(self.vectors.len());
    }

    /// Adds vectors with these events, without GSIs but for those that were taken ahead.
    pub(crate) fn add(&mut self, events: impl Iterator<Item = EventFd>) {
        if self.ahead.is_empty() {
            self.vectors.extend(events.map(|event| Vector::new(event, Wire::None)));
            return;
        }
        for event in events {
            let wire = self.ahead.pop_front().unwrap_or(Wire::None);
            self.vectors.push(Vector::new(event, wire));
        }
    }

    /// Takes GSIs for vectors that come next, and routes those that are to lead somewhere with *one* update of the routing table; none where all do already. How many have one then.
    ///
    /// # Errors
    /// When the kernel refuses the update; none is taken ahead then.
    pub(crate) fn route_ahead(
        &mut self,
        routes: &[Option<Route>],
        counters: &mut Counters,
    ) -> Result<usize, RoutesError> {
        let lacking = routes.len().saturating_sub(self.ahead.len());
        let gsis = take_gsis(self.routes.as_ref(), lacking);
        self.ahead.extend(gsis.into_iter().map(Wire::Allocated));
        let mut table = Vec::new();
        for (wire, route) in self.ahead.iter_mut().zip(routes) {
            match *route {
                Some(route) if wire.message() != Some(route.message) => {
                    table.extend(wire.gsi().map(|gsi| RouteChange { gsi, route }));
                    wire.lead_to(route.message);
                }
                Some(_) => {}
                None => *wire = wire.without_route(),
            }
        }
        if !table.is_empty() {
            counters.routing_updates = counters.routing_updates.saturating_add(1);
            self.routes.install(&table).inspect_err(|_| self.free_ahead())?;
        }
        Ok(self.ahead.len().min(routes.len()))
    }

    /// Whether the vectors that come next have these routes.
    pub(crate) fn is_routed_ahead(&self, routes: &[Option<Route>]) -> bool {
        self.ahead.len() >= routes.len()
            && self
                .ahead
                .iter()
                .zip(routes)
                .all(|(wire, route)| wire.message() == route.map(|route| route.message))
    }

    /// Gives back what was taken ahead.
    pub(crate) fn free_ahead(&mut self) {
        let gsis: Vec<_> = self.ahead.drain(..).filter_map(Wire::gsi).collect();
        if !gsis.is_empty() {
            self.routes.free(&gsis);
        }
    }

    /// Gives GSIs to those vectors of a range that lack one, as far as there are any. How many have one then, from its first vector on.
    pub(crate) fn allocate(&mut self, range: Range<usize>) -> usize {
        let end = range.end.min(self.vectors.len());
        let vectors = self.vectors.get_mut(range.start.min(end)..end).unwrap_or_default();
        let lacking = vectors.iter().filter(|vector| vector.wire == Wire::None).count();
        let gsis = take_gsis(self.routes.as_ref(), lacking);
        let mut gsis = gsis.into_iter();
        for (index, vector) in vectors.iter_mut().enumerate() {
            if vector.wire == Wire::None {
                let Some(gsi) = gsis.next() else { return index };
                vector.wire = Wire::Allocated(gsi);
            }
        }
        vectors.len()
    }

    /// How many vectors have a GSI.
    pub(crate) fn with_gsi(&self) -> usize {
        self.vectors.iter().filter(|vector| vector.wire != Wire::None).count()
    }

    /// Exchanges the ways of two vectors, to neither of which anything is attached.
    pub(crate) fn exchange(&mut self, one: VectorIndex, other: VectorIndex) {
        let wires = (self.wire(one), self.wire(other));
        if wires.0.is_attached() || wires.1.is_attached() {
            return;
        }
        for (vector, wire) in [(one, wires.1), (other, wires.0)] {
            if let Some(vector) = self.vectors.get_mut(vector.as_usize()) {
                vector.wire = wire;
            }
            self.changed.insert(vector);
        }
    }

    /// Gives back the GSIs of those vectors of a range that `which` names and that nothing is attached to.
    pub(crate) fn free_gsis(
        &mut self,
        range: Range<usize>,
        which: impl Fn(VectorIndex, Wire) -> bool,
    ) {
        let mut gsis = Vec::new();
        for (index, vector) in self.range_mut(range) {
            if !vector.wire.is_attached()
                && which(index, vector.wire)
                && let Some(gsi) = std::mem::replace(&mut vector.wire, Wire::None).gsi()
            {
                gsis.push(gsi);
            }
        }
        self.routes.free(&gsis);
    }

    /// Adds vectors without GSIs until there are `count`; they are as they shall be. Their events are those of `spare` and, when these are used up, new ones.
    ///
    /// # Errors
    /// When there are no more eventfds; some may have been added.
    pub(crate) fn extend(&mut self, count: usize, spare: &mut Vec<EventFd>) -> io::Result<()> {
        while self.vectors.len() < count {
            let event = spare.pop().map_or_else(event::new, Ok)?;
            self.vectors.push(Vector::new(event, Wire::None));
        }
        Ok(())
    }

    /// Gives GSIs to those vectors of a range that lack one and that `used` names, as far as there are any. Whether all have one then.
    pub(crate) fn allocate_for(
        &mut self,
        range: Range<usize>,
        used: impl Fn(VectorIndex) -> bool,
    ) -> bool {
        let lacks = |index: VectorIndex, vector: &Vector| vector.wire == Wire::None && used(index);
        let vectors = self.range_mut(range.clone());
        let lacking = vectors.filter(|(index, vector)| lacks(*index, vector)).count();
        let gsis = take_gsis(self.routes.as_ref(), lacking);
        let enough = gsis.len() == lacking;
        let mut changed = self.changed;
        let vectors = self.range_mut(range).filter(|(index, vector)| lacks(*index, vector));
        for ((index, vector), gsi) in vectors.zip(gsis) {
            vector.wire = Wire::Allocated(gsi);
            changed.insert(index);
        }
        self.changed = changed;
        enough
    }

    /// Gives vectors other routes, with *one* update of the routing table; without one where they all lose theirs.
    ///
    /// # Errors
    /// When the kernel refuses; all is then as before.
    pub(crate) fn install(
        &mut self,
        changes: &Changes,
        counters: &mut Counters,
    ) -> Result<(), RoutesError> {
        let Changes { table, unrouted, .. } = changes;
        if !table.is_empty() {
            counters.routing_updates = counters.routing_updates.saturating_add(1);
            self.routes.install(table)?;
        }
        for (change, (vector, _)) in table.iter().zip(changes.of_old()) {
            if let Some(vector) = self.vectors.get_mut(vector.as_usize()) {
                vector.wire.lead_to(change.route.message);
            }
        }
        for vector in unrouted {
            if let Some(vector) = self.vectors.get_mut(vector.as_usize()) {
                vector.wire = vector.wire.without_route();
            }
        }
        Ok(())
    }

    /// Whether another vector is in the way of attaching one to this message.
    pub(crate) fn is_bound(&self, message: GuestMessage) -> bool {
        self.bound.as_ref().is_some_and(|bound| bound.contains(&message))
    }

    /// Attaches a vector that has a route and is not attached.
    ///
    /// # Errors
    /// When the kernel refuses, or another vector is attached to the message.
    #[inline(always)]
    pub(crate) fn attach(
        &mut self,
        vector: VectorIndex,
        counters: &mut Counters,
    ) -> Result<(), RoutesError> {
        if let Some(vector) = self.vectors.get_mut(vector.as_usize())
            && let Wire::Routed(gsi, message) = vector.wire
        {
            attach(self.routes.as_ref(), &mut self.bound, &vector.event, (gsi, message))?;
            counters.attaches = counters.attaches.saturating_add(1);
            vector.wire = Wire::Attached(gsi, message);
        }
        Ok(())
    }

    /// Once their routes are installed: gives new vectors these, and attaches those that are to be, and those that are `ready` for it. The others go on when one fails.
    ///
    /// # Errors
    /// The first one.
    pub(crate) fn finish_new(
        &mut self,
        changes: &Changes,
        ready: &[VectorIndex],
        counters: &mut Counters,
    ) -> Result<(), RoutesError> {
        let mut all = Ok(());
        let mut attached: u64 = 0;
        let Self { routes, vectors, bound, .. } = self;
        for (&RouteChange { gsi, route }, &(vector, attaches)) in changes.of_new() {
            let Some(vector) = vectors.get_mut(vector.as_usize()) else { break };
            vector.wire = Wire::Routed(gsi, route.message);
            if attaches {
                match attach(routes.as_ref(), bound, &vector.event, (gsi, route.message)) {
                    Ok(()) => {
                        attached = attached.wrapping_add(1);
                        vector.wire = vector.wire.attached();
                    }
                    Err(error) => all = all.and(Err(error)),
                }
            }
        }
        counters.attaches = counters.attaches.saturating_add(attached);
        for &vector in ready {
            all = all.and(self.attach(vector, counters));
        }
        all
    }

    /// Detaches a vector; whether it was attached.
    ///
    /// # Errors
    /// When the kernel refuses; it is attached as before.
    #[inline(always)]
    pub(crate) fn detach(
        &mut self,
        vector: VectorIndex,
        counters: &mut Counters,
    ) -> Result<bool, RoutesError> {
        let Some(vector) = self.vectors.get_mut(vector.as_usize()) else { return Ok(false) };
        let Wire::Attached(gsi, message) = vector.wire else { return Ok(false) };
        self.routes.detach(&vector.event, gsi)?;
        if let Some(bound) = &mut self.bound {
            unbind(bound, message);
        }
        counters.detaches = counters.detaches.saturating_add(1);
        vector.wire = vector.wire.detached();
        Ok(true)
    }

    /// Parts with all vectors but the first `keep`, and gives their GSIs back, and those taken ahead; their events. One that is still attached is kept aside.
    pub(crate) fn retire(&mut self, keep: usize) -> Vec<EventFd> {
        self.free_ahead();
        if keep >= self.vectors.len() {
            return Vec::new();
        }
        self.changed.truncate(keep);
        let parted = self.vectors.split_off(keep);
        let (stuck, out): (Vec<_>, Vec<_>) =
            parted.into_iter().partition(|vector| vector.wire.is_attached());
        let gsis: Vec<_> = out.iter().filter_map(|vector| vector.wire.gsi()).collect();
        self.routes.free(&gsis);
        self.retired.extend(stuck);
        out.into_iter().map(|vector| vector.event).collect()
    }

    /// Detaches what could not be detached before, and gives the GSIs back.
    ///
    /// # Errors
    /// What the kernel said last. All are tried.
    pub(crate) fn release_retired(&mut self) -> Result<(), RoutesError> {
        let mut all = Ok(());
        let mut gsis = Vec::new();
        let (routes, bound) = (self.routes.as_ref(), &mut self.bound);
        self.retired.retain(|vector| {
            let Some(gsi) = vector.wire.gsi() else { return false };
            match routes.detach(&vector.event, gsi) {
                Ok(()) => {
                    gsis.push(gsi);
                    if let (Some(bound), Some(message)) = (bound.as_mut(), vector.wire.message()) {
                        bound.remove(&message);
                    }
                }
                Err(error) => {
                    all = Err(error);
                    return true;
                }
            }
            false
        });
        if !gsis.is_empty() {
            self.routes.free(&gsis);
        }
        all
    }
}

/// The attach itself.
#[inline(always)]
fn attach(
    routes: &dyn Routes,
    bound: &mut Option<HashSet<GuestMessage>>,
    event: &EventFd,
    (gsi, message): (Gsi, GuestMessage),
) -> Result<(), RoutesError> {
    let Some(bound) = bound else { return routes.attach(event, gsi) };
    may_bind(bound, message)?;
    routes.attach(event, gsi)?;
    bind(bound, message);
    Ok(())
}

/// The numbers of vectors from `first` on.
fn numbers(first: usize) -> impl Iterator<Item = VectorIndex> {
    // No function has more vectors, so that counting on cannot overflow.
    let first = u16::try_from(first).unwrap_or(VECTORS_MAX).min(VECTORS_MAX);
    (first..).map(VectorIndex)
}

// The three are not inlined, and the way of platforms where vectors share messages stays short.

/// Whether a vector can be attached to the message: two would be attached to one event of the guest's ITS.
#[cold]
#[inline(never)]
fn may_bind(bound: &HashSet<GuestMessage>, message: GuestMessage) -> Result<(), RoutesError> {
    if !bound.contains(&message) {
        return Ok(());
    }
    Err(RoutesError::Kernel {
        operation: "attaching an event of the ITS",
        source: io::Error::other("another vector of the function has it, and keeps it"),
    })
}

#[cold]
#[inline(never)]
fn bind(bound: &mut HashSet<GuestMessage>, message: GuestMessage) {
    bound.insert(message);
}

#[cold]
#[inline(never)]
fn unbind(bound: &mut HashSet<GuestMessage>, message: GuestMessage) {
    bound.remove(&message);
}

/// The vectors as a value, for the model checker.
#[cfg(feature = "model")]
impl Wires {
    pub(crate) fn retired(&self) -> &[Vector] {
        &self.retired
    }

    pub(crate) fn ahead(&self) -> impl Iterator<Item = Wire> {
        self.ahead.iter().copied()
    }

    pub(crate) fn set_ahead(&mut self, wires: impl Iterator<Item = Wire>) {
        self.ahead.clear();
        self.ahead.extend(wires);
    }

    /// Puts others in their place, made with the events of those that go; what is left of these.
    ///
    /// # Errors
    /// When one cannot be made.
    pub(crate) fn replace<E>(
        &mut self,
        make: impl FnOnce(&mut Vec<EventFd>) -> Result<(Vec<Vector>, Vec<Vector>), E>,
        spare: &mut Vec<EventFd>,
    ) -> Result<(), E> {
        let old = self.vectors.drain(..).chain(self.retired.drain(..));
        spare.extend(old.map(|vector| vector.event));
        (self.vectors, self.retired) = make(spare)?;
        if let Some(bound) = &mut self.bound {
            bound.clear();
            let all = self.vectors.iter().chain(&self.retired).map(|vector| vector.wire);
            bound.extend(all.filter(|wire| wire.is_attached()).filter_map(Wire::message));
        }
        Ok(())
    }
}
