//! The calls of the protocol on one function.
//!
//! Each checks its whole request first and then acts; a call that fails leaves
//! route, table, mask, mode and generation as they were.

use std::io;

use pvmsi_protocol::{
    Busy, CallError, ConfigureRequest, Generation, GuestMessage, Kind, Parameter,
    QueryFunctionAnswer, QueryVectorsRequest, Sequence, TableMode, UpdateRequest, VectorAnswer,
    VectorIndex, VectorSetup, VectorState,
};
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use crate::event;
use crate::function::TooFewInterrupts;
use crate::policy::Policy;
use crate::routes::{Route, RoutesError};
use crate::state::{AssignedVector, FunctionState, Owner, SHORT_OF_INTERRUPTS, Vector};

/// What a guest is told to wait before it repeats a busy `configure`, in microseconds.
const BUSY_DELAY_US: u32 = 100;

/// A `configure` that was answered busy: what it asks for, and what is ready.
#[derive(Debug)]
pub(crate) struct Preparation {
    pub(crate) sequence: Sequence,
    pub(crate) kind: Kind,
    pub(crate) requested: u16,
    pub(crate) setups: Vec<VectorSetup>,
    pub(crate) events: Vec<EventFd>,
}

/// A step of a `configure` that failed.
#[derive(Debug, Error)]
enum StepError {
    #[error(transparent)]
    Routes(#[from] RoutesError),
    #[error("the vector table could not be taken back or written")]
    Table(#[source] io::Error),
    #[error("interrupts could not be set up")]
    SetUp(#[source] io::Error),
}

impl StepError {
    /// For how many vectors the host has interrupts, if it was for want of them.
    fn available(&self) -> Option<usize> {
        let Self::SetUp(error) = self else { return None };
        TooFewInterrupts::of(error).map(|few| usize::from(few.available))
    }
}

impl FunctionState {
    pub(crate) fn query_function(&self) -> QueryFunctionAnswer {
        QueryFunctionAnswer {
            msi_vectors: 0,
            msix_vectors: self.vectors_offered(),
            assigned: self.assigned(),
            mode: self.mode,
            reasons: self.reasons(),
            generation: self.generation,
            delivery: self.function.delivery(),
        }
    }

    /// The most vectors that a `configure` can be granted.
    pub(crate) fn vectors_offered(&self) -> u16 {
        match self.policy.policy {
            Policy::Off => 0,
            Policy::Trapped | Policy::Direct => {
                self.layout.vectors().min(self.policy.vectors.unwrap_or(u16::MAX))
            }
        }
    }

    /// The state of a range of vectors, at most `room` of them.
    pub(crate) fn query_vectors(
        &mut self,
        QueryVectorsRequest { first, count }: QueryVectorsRequest,
        room: usize,
    ) -> Result<Vec<VectorState>, CallError> {
        if count == 0 {
            return Err(CallError::parameter(Parameter::Count));
        }
        let end = first.checked_add(count).filter(|&end| end <= self.layout.vectors());
        let Some(end) = end else {
            return Err(CallError::vector(Parameter::Vector, first.max(self.layout.vectors())));
        };
        if room == 0 {
            return Err(CallError::parameter(Parameter::AnswerRoom));
        }
        Ok((first..end).take(room).map(|index| self.vector_state(VectorIndex(index))).collect())
    }

    fn vector_state(&mut self, vector: VectorIndex) -> VectorState {
        let assigned = match &self.owner {
            Owner::Legacy(_) => None,
            Owner::Assigned(vectors) => vectors.get(vector.as_usize()).copied(),
        };
        let known = self.vectors.get(vector.as_usize()).and_then(|vector| vector.table_message);
        VectorState {
            assigned: assigned.is_some(),
            guest_message: assigned.and_then(|vector| vector.message),
            table_message: assigned.and(known),
            masked: self.masked(vector),
            pending: self.pending(vector),
        }
    }

    /// Sets vectors up, at most `bound` of them in one go. The answer has one item for each granted vector.
    pub(crate) fn configure(
        &mut self,
        request: &ConfigureRequest<'_>,
        bound: u16,
    ) -> Result<Vec<VectorAnswer>, CallError> {
        let setups = self.check_configure(request)?;
        let target = request.requested.min(self.vectors_offered());
        if target == 0 {
            return Err(CallError::Denied);
        }
        let wanted = usize::from(self.function.set_up_count(target).max(target));
        let (unfinished, events) = self.prepare(request, setups.as_slice(), wanted, bound)?;
        let granted = match self.grant(&setups, usize::from(target), wanted, events) {
            Ok(granted) => granted,
            Err((error, events)) => {
                self.preparation =
                    unfinished.map(|unfinished| Preparation { events, ..unfinished });
                self.free_spare_gsis();
                return Err(error);
            }
        };
        self.counters.configures = self.counters.configures.saturating_add(1);
        self.generation = self.generation.next();
        self.held = false;
        self.try_again();
        self.migrated = false;

        let mut pending = vec![false; granted];
        if self.reasons().is_empty() {
            self.enter_direct(Some(&mut pending));
        }
        if self.mode == TableMode::Trapped {
            // What was under way is one event with what waits.
            self.function.settle();
            self.take_pending(&mut pending);
        }
        Ok(pending
            .into_iter()
            .zip(&self.vectors)
            .map(|(pending, vector)| VectorAnswer { table_message: vector.table_message, pending })
            .collect())
    }

    /// Checks a `configure` and lists its vectors.
    fn check_configure(
        &self,
        request: &ConfigureRequest<'_>,
    ) -> Result<Vec<VectorSetup>, CallError> {
        if self.policy.policy == Policy::Off {
            return Err(CallError::Denied);
        }
        if request.kind != Kind::MsiX {
            return Err(CallError::parameter(Parameter::Kind));
        }
        if request.requested == 0
            || request.requested > self.layout.vectors()
            || request.vectors.len() > request.requested
        {
            return Err(CallError::parameter(Parameter::Count));
        }
        let mut setups = Vec::with_capacity(usize::from(request.vectors.len()));
        for (index, setup) in (0_u16..).zip(request.vectors.iter()) {
            let setup = setup?;
            self.check_message(index, setup.message)?;
            setups.push(setup);
        }
        Ok(setups)
    }

    fn check_message(&self, index: u16, message: Option<GuestMessage>) -> Result<(), CallError> {
        match message {
            Some(message) if self.platform.route(self.id, message).is_none() => {
                Err(CallError::vector(Parameter::Message, index))
            }
            _ => Ok(()),
        }
    }

    /// Creates the events that `wanted` vectors lack, at most `bound` in one call; busy when more are to be made. Fewer come back where the host has no more. With them comes what was unfinished, whose events they are.
    fn prepare(
        &mut self,
        request: &ConfigureRequest<'_>,
        setups: &[VectorSetup],
        wanted: usize,
        bound: u16,
    ) -> Result<(Option<Preparation>, Vec<EventFd>), CallError> {
        if request.sequence != Sequence::START {
            let continues = self.preparation.as_ref().is_some_and(|running| {
                running.sequence == request.sequence
                    && running.kind == request.kind
                    && running.requested == request.requested
                    && running.setups == setups
            });
            if !continues {
                return Err(CallError::parameter(Parameter::Sequence));
            }
        }
        // A new configure takes the place of one that was given up.
        let mut unfinished = self.preparation.take();
        let events = unfinished.as_mut().map(|running| std::mem::take(&mut running.events));
        let mut events = events.unwrap_or_default();
        let lacking = wanted.saturating_sub(self.vectors.len());
        events.truncate(lacking);
        let lacking = lacking.saturating_sub(events.len());
        let now = lacking.min(usize::from(bound.max(1)));
        let mut exhausted = false;
        for _ in 0..now {
            match event::new() {
                Ok(event) => events.push(event),
                Err(error) => {
                    exhausted = true;
                    self.complain("no more eventfds; raise the limit of open files", &error);
                    break;
                }
            }
        }
        if now < lacking && !exhausted {
            let sequence = Sequence(request.sequence.0.wrapping_add(1).max(1));
            self.preparation = Some(Preparation {
                sequence,
                kind: request.kind,
                requested: request.requested,
                setups: setups.to_vec(),
                events,
            });
            return Err(CallError::Busy(Busy { sequence, delay_us: BUSY_DELAY_US }));
        }
        Ok((unfinished, events))
    }

    /// Adds vectors for new events, and GSIs to the first `target`. Returns how many can be granted.
    fn add_vectors(&mut self, events: Vec<EventFd>, target: usize) -> usize {
        self.vectors.extend(events.into_iter().map(|event| Vector::new(event, None)));
        let without = |vector: &&mut Vector| vector.gsi.is_none();
        let lacking = self.vectors.iter_mut().take(target).filter(without).count();
        let gsis = match u16::try_from(lacking) {
            Ok(0) => Vec::new(),
            // Fewer than wanted, even none, is a short grant as long as one vector can be had.
            Ok(lacking) => self.routes.allocate(lacking).unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        for (vector, gsi) in self.vectors.iter_mut().take(target).filter(without).zip(gsis) {
            vector.gsi = Some(gsi);
        }
        self.vectors.iter().take(target).take_while(|vector| vector.gsi.is_some()).count()
    }

    /// Gives the guest the first `target` vectors, or as many as can be had, and sets up as many as `wanted`. What `events` are not used come back from a failure.
    fn grant(
        &mut self,
        setups: &[VectorSetup],
        mut target: usize,
        mut wanted: usize,
        mut events: Vec<EventFd>,
    ) -> Result<usize, (CallError, Vec<EventFd>)> {
        let before = self.vectors.len();
        loop {
            let granted = self.add_vectors(events, target);
            if granted == 0 {
                return Err((CallError::NoResources, self.retire(before)));
            }
            let Err((error, returned)) = self.assign(setups, granted, wanted, before) else {
                return Ok(granted);
            };
            events = returned;
            // What is available may be a guess, which must not miss what is enough.
            let spare = wanted > target;
            let next = error.available().map(|few| if spare { few.max(target) } else { few });
            match next {
                Some(0) => {
                    self.complain("configure finds no interrupts", &error);
                    return Err((CallError::NoResources, events));
                }
                // Ends: each time it is fewer.
                Some(next) if next < wanted => {
                    self.complain(SHORT_OF_INTERRUPTS, &error);
                    wanted = next;
                    target = target.min(next);
                }
                _ => {
                    self.complain("configure failed and is undone", &error);
                    return Err((CallError::Hardware, events));
                }
            }
        }
    }

    /// Gives the first `granted` vectors to the guest, or leaves all as it was and returns the events of those that came after the first `before`.
    fn assign(
        &mut self,
        setups: &[VectorSetup],
        granted: usize,
        wanted: usize,
        before: usize,
    ) -> Result<(), (StepError, Vec<EventFd>)> {
        let new = (0..granted)
            .map(|index| setups.get(index).copied().unwrap_or(VectorSetup::RESERVED))
            .map(|VectorSetup { message, masked }| AssignedVector { message, masked })
            .collect();
        self.follow_messages();
        let (mode, generation) = (self.mode, self.generation);
        let routes: Vec<_> = self.vectors.iter().take(before).map(|v| v.installed).collect();
        let begun = self.begin_attempt(0..self.set_up).map_err(StepError::Table);
        let old = std::mem::replace(&mut self.owner, Owner::Assigned(new));
        let done = begun.and_then(|()| self.establish(granted, wanted));
        if let Err(error) = done {
            let events = self.undo_establish(old, &routes);
            self.end_attempt();
            self.keep_generation(mode, generation);
            return Err((error, events));
        }
        self.commit_attempt();
        Ok(())
    }

    /// The fallible part of a `configure`: one routing update, one interrupt set-up.
    fn establish(&mut self, granted: usize, wanted: usize) -> Result<(), StepError> {
        self.unbind(0..granted)?;
        self.detach_unwanted()?;
        self.install_routes(0..self.vectors.len())?;
        // A reset that nobody saw may have cost vectors that stay set up their messages.
        if !self.rewrite_table() {
            return Err(StepError::Table(io::Error::other("it could not be written")));
        }
        self.converge()?;
        // Last, for it cannot be undone without a trace: new vectors come unmasked.
        let count = self.vectors.len().min(wanted.max(granted));
        if self.set_up != count {
            self.set_up_interrupts(count).map_err(StepError::SetUp)?;
        }
        self.retire(count);
        self.free_spare_gsis();
        Ok(())
    }

    /// As before the attempt, when there were vectors with these routes; the events of the others.
    fn undo_establish(&mut self, old: Owner, routes: &[Option<Route>]) -> Vec<EventFd> {
        self.owner = old;
        // A masked vector of the emulated table has the route that it had last.
        let wanted = |state: &Self, index: usize| match &state.owner {
            Owner::Legacy(_) => routes.get(index).copied().flatten(),
            Owner::Assigned(_) => state.wanted_route(index),
        };
        let undone = self.detach_unwanted();
        if let Err(error) = undone.and_then(|()| self.reroute(0..self.vectors.len(), wanted)) {
            self.log_routes(&error);
        }
        let events = self.retire(routes.len());
        if self.stale {
            self.rewrite_table();
        }
        self.converge_or_log();
        events
    }

    /// A call that fails has not changed the generation, although the table was trapped for a moment.
    fn keep_generation(&mut self, mode: TableMode, generation: Generation) {
        if self.mode == mode {
            self.generation = generation;
        }
    }

    /// Takes the events that wait for masked vectors: the guest delivers them from now on.
    fn take_pending(&mut self, pending: &mut [bool]) {
        let Owner::Assigned(assigned) = &self.owner else { return };
        for ((taken, assigned), vector) in pending.iter_mut().zip(assigned).zip(&self.vectors) {
            if assigned.masked && !vector.attached {
                *taken |= event::drain(&vector.event);
            }
        }
    }

    pub(crate) fn update(&mut self, request: &UpdateRequest<'_>) -> Result<(), CallError> {
        let Owner::Assigned(assigned) = &self.owner else {
            let first = request.vectors.iter().next().transpose()?;
            return Err(CallError::vector(
                Parameter::Vector,
                first.map_or(0, |update| update.vector.0),
            ));
        };
        if request.vectors.is_empty() {
            return Err(CallError::parameter(Parameter::Count));
        }
        let mut new = assigned.clone();
        let mut seen = vec![false; new.len()];
        for update in request.vectors {
            let update = update?;
            let index = update.vector.as_usize();
            let (Some(vector), Some(seen)) = (new.get_mut(index), seen.get_mut(index)) else {
                return Err(CallError::vector(Parameter::Vector, update.vector.0));
            };
            if std::mem::replace(seen, true) {
                return Err(CallError::vector(Parameter::DuplicateVector, update.vector.0));
            }
            self.check_message(update.vector.0, Some(update.message))?;
            vector.message = Some(update.message);
        }
        let (mode, generation) = (self.mode, self.generation);
        let old = std::mem::replace(&mut self.owner, Owner::Assigned(new));
        let named = (0..seen.len()).filter(|&index| seen.get(index) == Some(&true));
        self.attempt = true;
        let done = self.unbind(named).and_then(|()| self.converge());
        if let Err(error) = &done {
            self.log_routes(error);
            self.restore_messages(old);
            self.converge_or_log();
        }
        self.end_attempt();
        done.map_err(|_| {
            self.keep_generation(mode, generation);
            CallError::Hardware
        })
    }

    /// Takes the messages of a former state back; the mask bits of today stay.
    fn restore_messages(&mut self, old: Owner) {
        if let (Owner::Assigned(now), Owner::Assigned(old)) = (&mut self.owner, old) {
            for (now, old) in now.iter_mut().zip(old) {
                now.message = old.message;
            }
        }
    }

    pub(crate) fn release(&mut self) {
        match self.owner {
            Owner::Assigned(_) => self.become_default(),
            // The emulated table is the guest's own.
            Owner::Legacy(_) => self.preparation = None,
        }
    }

    pub(crate) fn restore(&mut self) -> Result<(), CallError> {
        if let Owner::Assigned(_) = self.owner {
            self.follow_messages();
            if !self.rewrite_table() {
                return Err(CallError::Hardware);
            }
            self.migrated = false;
            self.generation = self.generation.next();
            self.try_again();
            self.evaluate();
        }
        Ok(())
    }

    /// Vectors for the trapped table: as many as the host has, at least one. Their events are those of `events` and, when these are used up, new ones.
    pub(crate) fn new_vectors(
        &self,
        count: u16,
        events: &mut Vec<EventFd>,
    ) -> Result<Vec<Vector>, RoutesError> {
        let gsis = self.routes.allocate(count)?;
        let mut vectors = Vec::with_capacity(gsis.len());
        let mut gsis = gsis.into_iter();
        while let Some(gsi) = gsis.next() {
            match events.pop().map_or_else(event::new, Ok) {
                Ok(event) => vectors.push(Vector::new(event, Some(gsi))),
                Err(source) => {
                    let rest: Vec<_> = std::iter::once(gsi).chain(gsis).collect();
                    self.routes.free(&rest);
                    if vectors.is_empty() {
                        return Err(RoutesError::Kernel { operation: "eventfd", source });
                    }
                    break;
                }
            }
        }
        Ok(vectors)
    }
}
