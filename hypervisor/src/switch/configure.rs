//! `configure`: gives vectors to the guest.
//!
//! Checks its whole request first and then acts; a call that fails leaves
//! route, table, mask, mode and generation as they were.

use std::io;
use std::ops::Range;

use pvmsi_protocol::{
    Busy, CallError, ConfigureRequest, DecodeError, GuestMessage, Kind, Parameter, Reasons,
    Sequence, TableMode, VECTORS_MAX, VectorIndex, VectorSetup,
};
use thiserror::Error;

use super::Switch;
use super::attempt::Attempt;
use super::decide;
use super::guest::{Owner, Unfinished};
use super::host::{Debts, Host};
use super::interrupts::SHORT_OF_INTERRUPTS;
use super::operation::Operation;
use super::reader::count;
use super::set::VectorSet;
use super::shared::ByMessage;
use super::wires::Changes;
use crate::event;
use crate::function::SetUpError;
use crate::policy::Policy;
use crate::routes::{Route, RoutesError};

/// What a guest is told to wait before it repeats a busy `configure`, in microseconds.
const BUSY_DELAY_US: u32 = 100;

/// A step of a `configure` that failed.
#[derive(Debug, Error)]
enum StepError {
    #[error(transparent)]
    Routes(#[from] RoutesError),
    #[error("the vector table could not be taken back or written")]
    Table(#[source] io::Error),
    #[error("interrupts could not be set up")]
    SetUp(#[source] SetUpError),
}

impl StepError {
    /// For how many vectors the host has interrupts and routes, if it was for want of them. Routes do not tell: half of the `granted` ones is what to try next.
    fn available(&self, granted: usize) -> Option<usize> {
        match self {
            Self::SetUp(error) => error.available(),
            Self::Routes(RoutesError::Exhausted) => Some(granted / 2),
            _ => None,
        }
    }
}

impl Operation<'_> {
    /// Sets vectors up, at most `bound` in one go. What was pending of them, for the guest to deliver.
    ///
    /// # Errors
    /// Nothing has changed then, but for what is prepared when the answer is *busy*.
    pub(crate) fn configure(
        mut self,
        request: &ConfigureRequest<'_>,
        bound: u16,
    ) -> Result<VectorSet, CallError> {
        let setups = self.check_configure(request)?;
        let target = request.requested.min(self.fixed.vectors_offered());
        if target == 0 {
            return Err(CallError::Denied);
        }
        let starts = self.check_sequence(request, &setups)?;
        let before = if starts { self.guest.unfinished.clone() } else { None };
        if starts && self.fixed.platform.binds_at_attach() {
            // To what a message meant then.
            self.detach_prepared();
        }
        let set_up = self.world.set_up;
        let granted = self
            .prepare(request, &setups, target, usize::from(bound.max(1)))
            .and_then(|Goal { target, wanted }| self.grant(request, setups, target, wanted));
        let more = self.world.set_up.saturating_sub(set_up);
        let more = u16::try_from(more).unwrap_or(u16::MAX);
        self.tally.largest_call = self.tally.largest_call.max(more);
        if let Err(error) = granted {
            let busy = matches!(error, CallError::Busy(_));
            if starts && !busy {
                if before.is_none() {
                    self.drop_prepared();
                    self.world.spare.clear();
                }
                self.guest.unfinished = before;
            }
            self.free_spare_gsis();
            self.free_unused_gsis();
            return Err(error);
        }
        self.world.spare.clear();
        self.world.wires.free_ahead();
        count(&mut self.tally.counters.configures);
        self.tally.asked = target;
        self.tally.next_generation();
        self.world.held = None;
        self.debts.remove(Debts::NOT_MAPPABLE | Debts::LEGACY_SET_UP);
        self.host.remove(Host::MIGRATED);

        let mut pending = VectorSet::default();
        if self.reasons().is_empty() {
            self.enter_direct(Some(&mut pending));
        }
        if self.world.mode == TableMode::Trapped {
            // What was attached in advance for a direct table.
            let blocked = self.world.blocked;
            self.world.wires.changed.extend(&blocked);
            self.converge_or_owe();
            // What was under way is one event with what waits.
            self.function.settle();
            self.take_pending(&mut pending);
        }
        Ok(pending)
    }

    /// Checks a `configure` and lists its vectors.
    fn check_configure(
        &self,
        request: &ConfigureRequest<'_>,
    ) -> Result<Vec<VectorSetup>, CallError> {
        // All of the list, before anything is done.
        let setups = listed(request)?;
        if self.fixed.policy.policy == Policy::Off {
            return Err(CallError::Denied);
        }
        if request.kind != Kind::MsiX {
            return Err(CallError::parameter(Parameter::Kind));
        }
        if request.requested == 0
            || request.requested > self.fixed.layout.vectors()
            || request.vectors.len() > request.requested
        {
            return Err(CallError::parameter(Parameter::Count));
        }
        let undeliverable = |setup: &VectorSetup| {
            setup.message.is_some_and(|message| self.fixed.route(message).is_none())
        };
        if let Some(index) = setups.iter().position(undeliverable) {
            let index = u16::try_from(index).unwrap_or(u16::MAX);
            return Err(CallError::vector(Parameter::Message, index));
        }
        if self.fixed.platform.binds_at_attach() {
            let vectors = (0..).map(VectorIndex).zip(&setups);
            ByMessage::new(vectors.filter_map(|(vector, setup)| Some((vector, setup.message?))))
                .map_err(|vector| CallError::vector(Parameter::SharedMessage, vector.0))?;
        }
        Ok(setups)
    }

    /// Whether a `configure` starts anew; it can also continue the unfinished one.
    fn check_sequence(
        &self,
        request: &ConfigureRequest<'_>,
        setups: &[VectorSetup],
    ) -> Result<bool, CallError> {
        if request.sequence == Sequence::START {
            return Ok(true);
        }
        let continues = self.guest.unfinished.as_ref().is_some_and(|running| {
            running.sequence == request.sequence
                && running.kind == request.kind
                && running.requested == request.requested
                && running.setups == setups
        });
        if continues { Ok(false) } else { Err(CallError::parameter(Parameter::Sequence)) }
    }

    /// Does what can be done in advance for at most `bound` vectors, and is *busy* where more than that is left. Else what is to be granted now: fewer where the host has no more.
    fn prepare(
        &mut self,
        request: &ConfigureRequest<'_>,
        setups: &[VectorSetup],
        target: u16,
        bound: usize,
    ) -> Result<Goal, CallError> {
        let wanted = usize::from(self.function.set_up_count(target).max(target));
        let target = usize::from(target);
        let there = self.world.wires.len();
        let lacking = wanted.saturating_sub(there);
        // Vectors that are set up set the function's own MSI-X Enable: not before the guest has.
        let grows = wanted == target
            && self.guest.control.enable
            && self.world.set_up == there
            && !self.debts.contains(Debts::TAKE_DOWN);
        if !grows {
            // All interrupts come with one request, in the last step: until then there are events.
            self.world.spare.truncate(lacking);
            let lacking = lacking.saturating_sub(self.world.spare.len());
            let made = self.make_events(lacking.min(bound));
            if made && lacking > bound {
                let first = self.first_prepared();
                self.begin_unfinished(request, setups, first);
                return Err(self.busy(wanted, lacking.saturating_sub(bound)));
            }
            return Ok(Goal { target, wanted });
        }
        self.world.spare.truncate(lacking);
        let first = self.first_prepared();
        let mut unready: Vec<_> = VectorSet::first(there.min(target))
            .iter()
            .skip(first)
            .filter(|&vector| !self.is_ready(vector, asked(setups, vector)))
            .collect();
        let todo = unready.len().saturating_add(lacking);
        if todo == 0 || todo <= bound && request.sequence == Sequence::START {
            self.make_events(lacking.saturating_sub(self.world.spare.len()));
            return Ok(Goal { target, wanted });
        }
        self.begin_unfinished(request, setups, first);
        let routes = self.routes_of(there..target, setups);
        if !self.world.wires.is_routed_ahead(&routes) {
            let Switch { world, tally, .. } = &mut *self as &mut Switch;
            let updates = tally.counters.routing_updates;
            let routable = match world.wires.route_ahead(&routes, &mut tally.counters) {
                Ok(routable) => routable,
                Err(error) => {
                    self.complain("configure failed on the way", &error);
                    return Err(CallError::Hardware);
                }
            };
            if routable < lacking {
                // A short grant, in the same way.
                let target = u16::try_from(there.saturating_add(routable)).unwrap_or(u16::MAX);
                return self.prepare(request, setups, target, bound);
            }
            if self.tally.counters.routing_updates > updates {
                // It takes long enough to be a call of its own.
                return Err(self.busy(wanted, todo));
            }
        }
        unready.truncate(bound);
        let new = lacking.min(bound.saturating_sub(unready.len()));
        let done = unready.len().saturating_add(new);
        match self.take_further(unready, new, setups) {
            Ok(true) => Err(self.busy(wanted, todo.saturating_sub(done))),
            Ok(false) => {
                let target = target.min(self.world.wires.len());
                Ok(Goal { target, wanted: target })
            }
            Err(error) => {
                self.complain("configure failed on the way", &error);
                Err(CallError::Hardware)
            }
        }
    }

    /// Where vectors of a range shall lead.
    fn routes_of(&self, range: Range<usize>, setups: &[VectorSetup]) -> Vec<Option<Route>> {
        range.map(|index| Some(self.fixed.route_of(setups.get(index)?.message?))).collect()
    }

    /// More spare events; whether there are as many as that.
    fn make_events(&mut self, count: usize) -> bool {
        for _ in 0..count {
            match event::new() {
                Ok(event) => self.world.spare.push(event),
                Err(error) => {
                    self.complain("no more eventfds; raise the limit of open files", &error);
                    return false;
                }
            }
        }
        true
    }

    /// From now on vectors from `first` on are prepared for this `configure`.
    fn begin_unfinished(
        &mut self,
        request: &ConfigureRequest<'_>,
        setups: &[VectorSetup],
        first: usize,
    ) {
        if request.sequence == Sequence::START {
            self.guest.unfinished = Some(Unfinished {
                first,
                sequence: Sequence::START,
                kind: request.kind,
                requested: request.requested,
                setups: setups.to_vec(),
            });
        }
    }

    /// The answer while `left` vectors of `wanted` are not ready. Its sequence tells how many are: it is not 0.
    fn busy(&mut self, wanted: usize, left: usize) -> CallError {
        let ready = wanted.saturating_sub(left).saturating_add(1);
        let sequence = Sequence(u32::try_from(ready).unwrap_or(u32::MAX));
        if let Some(unfinished) = &mut self.guest.unfinished {
            unfinished.sequence = sequence;
        }
        CallError::Busy(Busy { sequence, delay_us: BUSY_DELAY_US })
    }

    /// Whether nothing of a prepared vector is left to be done in advance.
    fn is_ready(&self, vector: VectorIndex, setup: VectorSetup) -> bool {
        let wire = self.world.wires.wire(vector);
        let Some(message) = setup.message else { return !wire.is_attached() };
        let attaches = self.attaches_in_advance(vector, setup);
        wire.message() == Some(message)
            && (wire.is_attached() == attaches || attaches && self.is_left(vector, message))
    }

    /// Whether a prepared vector is left to the last call: one for which an event waits would fire at once, and the message of another may still be one that the guest uses.
    fn is_left(&self, vector: VectorIndex, message: GuestMessage) -> bool {
        self.world.wires.waits(vector) || self.world.wires.is_bound(message)
    }

    /// Whether a prepared vector can be attached before its `configure` succeeds: it will be able to fire then, or in a direct table be masked by the function itself. Until then the function holds it back: not where the guest has the mask bit.
    fn attaches_in_advance(&self, vector: VectorIndex, setup: VectorSetup) -> bool {
        setup.message.is_some()
            && (!setup.masked || self.becomes_direct())
            && decide::is_open(&self.guest, self.host)
            && self.can_mask(vector)
    }

    /// A step of an unfinished `configure`: gets these vectors and so many new ones ready. `false` where the host has fewer than that; those that there are are set up then.
    fn take_further(
        &mut self,
        mut vectors: Vec<VectorIndex>,
        new: usize,
        setups: &[VectorSetup],
    ) -> Result<bool, StepError> {
        let there = self.world.wires.len();
        let all = self.add_prepared(new).map_err(StepError::SetUp)?;
        vectors.extend(VectorSet::first(self.world.wires.len()).iter().skip(there));
        let connected = self.connect(&vectors, setups);
        for vector in vectors {
            if !self.world.wires.wire(vector).is_attached() {
                self.let_loose(vector);
            }
        }
        connected.map(|()| all)
    }

    /// Adds so many vectors with events, GSIs and interrupts, with one request; fewer, and `false`, where the host has no more.
    fn add_prepared(&mut self, new: usize) -> Result<bool, SetUpError> {
        let there = self.world.wires.len();
        self.world.spare.truncate(new);
        self.make_events(new.saturating_sub(self.world.spare.len()));
        let events = std::mem::take(&mut self.world.spare);
        self.world.wires.add(events.into_iter());
        let end = self.world.wires.len();
        let routable = self.world.wires.allocate(there..end);
        if routable < new {
            self.retire(there.saturating_add(routable));
        }
        let end = self.world.wires.len();
        if end == there {
            return Ok(new == 0);
        }
        match self.set_up_most(there, 0, end) {
            Ok(vectors) if vectors.saturating_sub(there) == new => Ok(true),
            Ok(vectors) => {
                self.retire(vectors);
                Ok(false)
            }
            Err(error) => {
                self.retire(there);
                if error.available().is_some() { Ok(false) } else { Err(error) }
            }
        }
    }

    /// Routes prepared vectors to the messages that are asked for, and attaches those that will be able to fire, each held back by the function's own mask bit, but for those that [are left](Self::is_left).
    fn connect(
        &mut self,
        vectors: &[VectorIndex],
        setups: &[VectorSetup],
    ) -> Result<(), StepError> {
        let mut changes = Changes::default();
        let mut attach = Vec::new();
        for &vector in vectors {
            let setup = asked(setups, vector);
            let before = self.world.wires.wire(vector);
            let attaches = self.attaches_in_advance(vector, setup);
            let routed = before.message() == setup.message;
            if !(attaches && routed) {
                self.detach(vector)?;
            }
            let wire = self.world.wires.wire(vector);
            if !routed {
                let route = setup.message.map(|message| self.fixed.route_of(message));
                changes.add(vector, wire, route, attaches, || vectors.len());
            }
            if attaches && !wire.is_attached() {
                attach.push(vector);
                self.world.quiet.insert(vector);
            }
        }
        let mut held = VectorSet::default();
        for &vector in vectors {
            if self.world.quiet.contains(vector) {
                held.insert(vector);
            }
            // In a direct table what nobody has is masked. Nothing but a look at it depends on that.
            if self.world.mode == TableMode::Direct && self.can_reach(vector) {
                let mut mask = || self.function.table().set_masked(vector, true);
                if let Err(error) = mask().or_else(|_| mask()) {
                    self.complain("a mask bit could not be set", &error);
                }
            }
        }
        if !held.is_empty() {
            // What has left the function before waits then, and is seen.
            self.mask_for_good(&held).map_err(|error| StepError::Table(error.into()))?;
        }
        self.install(&changes)?;
        for vector in attach {
            let message = asked(setups, vector).message;
            if message.is_some_and(|message| !self.is_left(vector, message)) {
                let Switch { world, tally, .. } = &mut *self as &mut Switch;
                world.wires.attach(vector, &mut tally.counters)?;
            }
        }
        Ok(())
    }

    /// Gives the guest the first `target` vectors, or as many as can be had, and sets up as many as `wanted`. The spare events are used; they are there again after a failure.
    fn grant(
        &mut self,
        request: &ConfigureRequest<'_>,
        setups: Vec<VectorSetup>,
        mut target: usize,
        mut wanted: usize,
    ) -> Result<(), CallError> {
        let before = self.world.wires.len();
        let mut first = Some(setups);
        loop {
            let events = std::mem::take(&mut self.world.spare);
            self.world.wires.add(events.into_iter());
            let mut granted = self.world.wires.allocate(0..target);
            if granted < target {
                // Those of an emulated table may have them behind one that has none.
                granted = self.world.wires.with_gsi().min(target);
            }
            if granted == 0 {
                self.world.spare = self.retire(before);
                return Err(CallError::NoResources);
            }
            // An attempt keeps its list; the request still has it.
            let setups = first.take().map_or_else(|| listed(request), Ok)?;
            let Err(error) = self.assign(setups, granted, wanted, before) else { return Ok(()) };
            match error.available(granted) {
                Some(0) => {
                    self.complain("configure finds no interrupts", &error);
                    return Err(CallError::NoResources);
                }
                // Ends: each time it is fewer.
                Some(next) if next < wanted => {
                    self.complain(SHORT_OF_INTERRUPTS, &error);
                    wanted = next;
                    target = target.min(next);
                }
                _ => {
                    self.complain("configure failed and is undone", &error);
                    return Err(CallError::Hardware);
                }
            }
        }
    }

    /// Gives the first `granted` vectors to the guest, or leaves all as it was when there were `before` vectors.
    fn assign(
        &mut self,
        mut setups: Vec<VectorSetup>,
        granted: usize,
        wanted: usize,
        before: usize,
    ) -> Result<(), StepError> {
        self.follow_messages();
        let prepared = self.first_prepared().min(before)..before;
        let first = prepared.start;
        // Nothing is attached anew of other prepared vectors, so nothing of them can go astray.
        let mut held = VectorSet::first(self.world.set_up.min(first));
        for vector in VectorSet::first(self.world.set_up).iter().skip(first) {
            let setup = asked(&setups, vector);
            let quiet = self.world.quiet.contains(vector);
            if setup.message.is_some() && !setup.masked && !quiet {
                held.insert(vector);
            }
        }
        // Where nothing is held nothing can be under way: a grace period of the kernel is saved.
        let holds = first > 0 || !held.is_empty() || self.debts.contains(Debts::TAKE_DOWN);
        let mut attempt = Attempt::begin(self, before);
        let held = if holds { attempt.hold(held.iter()) } else { Ok(()) };
        let held = held.map_err(StepError::Table);
        setups.resize(granted, VectorSetup::RESERVED);
        attempt.assign(Owner::Assigned(setups));
        held?;
        if before > granted {
            attempt.gather(granted)?;
        }
        attempt.establish(prepared, granted, wanted)?;
        attempt.commit_trapped();
        Ok(())
    }

    /// Takes the events that wait for masked vectors: the guest delivers them from now on.
    fn take_pending(&self, pending: &mut VectorSet) {
        let Owner::Assigned(assigned) = &self.guest.owner else { return };
        for (assigned, (index, vector)) in
            assigned.iter().zip(self.world.wires.first(assigned.len()))
        {
            if assigned.masked && !vector.wire.is_attached() && event::drain(&vector.event) {
                pending.insert(index);
            }
        }
    }
}

impl Attempt<'_> {
    /// The fallible part of a `configure`: one routing update, one interrupt set-up. Some vectors were prepared for it.
    fn establish(
        &mut self,
        prepared: Range<usize>,
        granted: usize,
        wanted: usize,
    ) -> Result<(), StepError> {
        if self.fixed.platform.binds_at_attach() {
            let before = VectorSet::first(granted.min(prepared.start));
            before.iter().try_for_each(|vector| self.detach(vector))?;
        }
        // A reset that nobody saw may have cost vectors that stay set up their messages.
        if !self.rewrite_table() {
            return Err(StepError::Table(io::Error::other("it could not be written")));
        }
        if self.becomes_direct() {
            // The mask bit that holds them back is the guest's in a moment.
            for vector in VectorSet::first(granted.min(prepared.end)).iter().skip(prepared.start) {
                if !self.guest.owner.masked(vector) {
                    continue;
                }
                let wire = self.world.wires.wire(vector);
                if wire.is_attached() && self.wanted_for(vector, wire).is_routed(wire) {
                    self.world.wires.changed.remove(vector);
                }
            }
        }
        self.converge()?;
        // Last, for it cannot be undone without a trace: new vectors come unmasked.
        let mut count = self.world.wires.len().min(wanted.max(granted));
        if self.world.set_up > count {
            self.set_up_from(count, count).map_err(StepError::SetUp)?;
        } else if self.world.set_up < count {
            let set_up = self.world.set_up;
            count = self.set_up_most(set_up, granted, count).map_err(StepError::SetUp)?;
            // Those that have no interrupts are not the guest's: a short grant, with the same routing update.
            if let Owner::Assigned(vectors) = &mut self.guest.owner {
                vectors.truncate(count);
            }
        }
        self.retire(count);
        self.free_spare_gsis();
        Ok(())
    }
}

/// What a `configure` has come to.
struct Goal {
    /// The vectors to be granted.
    target: usize,
    /// How many are set up for that.
    wanted: usize,
}

/// The vectors that a `configure` names.
///
/// # Errors
/// What is wrong with the list.
fn listed(request: &ConfigureRequest<'_>) -> Result<Vec<VectorSetup>, DecodeError> {
    let mut setups = Vec::with_capacity(usize::from(request.vectors.len().min(VECTORS_MAX)));
    request.vectors.for_each(|_, setup| setups.push(setup))?;
    Ok(setups)
}

/// What a `configure` asks for a vector.
fn asked(setups: &[VectorSetup], vector: VectorIndex) -> VectorSetup {
    setups.get(vector.as_usize()).copied().unwrap_or(VectorSetup::RESERVED)
}

impl Switch {
    /// Whether the table will be direct as far as that is known now.
    fn becomes_direct(&self) -> bool {
        let Self { fixed, guest, host, debts, .. } = self;
        let host = host.difference(Host::MIGRATED);
        let debts = debts.difference(Debts::NOT_MAPPABLE);
        decide::reasons(fixed, guest, host, debts, false)
            .difference(Reasons::NOT_ASSIGNED)
            .is_empty()
    }
}
