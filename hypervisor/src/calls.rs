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
use crate::policy::Policy;
use crate::routes::RoutesError;
use crate::state::{AssignedVector, FunctionState, Owner, Vector};

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
    #[error("interrupts could not be set up")]
    SetUp(#[from] io::Error),
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
        let wanted = self.function.set_up_count(target).max(target);
        let events = self.prepare(request, setups.as_slice(), usize::from(wanted), bound)?;
        let count = self.vectors.len().saturating_add(events.len());
        let granted = usize::from(target).min(count);
        let before = self.add_vectors(events, granted)?;
        let granted =
            self.vectors.iter().take(granted).filter(|vector| vector.gsi.is_some()).count();

        let new = (0..granted)
            .map(|index| setups.get(index).copied().unwrap_or(VectorSetup::RESERVED))
            .map(|VectorSetup { message, masked }| AssignedVector { message, masked })
            .collect();
        let (mode, generation) = (self.mode, self.generation);
        if !self.leave_direct() {
            self.retire(before);
            self.free_spare_gsis();
            return Err(CallError::Hardware);
        }
        let owner = std::mem::replace(&mut self.owner, Owner::Assigned(new));
        let set_up = self.set_up;
        if let Err(error) = self.establish(granted, usize::from(wanted)) {
            self.complain("configure failed and is undone", &error);
            self.owner = owner;
            self.undo_configure(before, set_up);
            self.keep_generation(mode, generation);
            return Err(CallError::Hardware);
        }
        self.counters.configures = self.counters.configures.saturating_add(1);
        self.generation = self.generation.next();
        self.held = false;
        self.unmappable = false;
        self.migrated = false;

        let mut pending = vec![false; granted];
        if self.reasons().is_empty() {
            self.enter_direct(Some(&mut pending));
        }
        if self.mode == TableMode::Trapped {
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

    /// Creates the events that `wanted` vectors lack, at most `bound` in one call; busy when more are to be made. Fewer come back where the host has no more.
    fn prepare(
        &mut self,
        request: &ConfigureRequest<'_>,
        setups: &[VectorSetup],
        wanted: usize,
        bound: u16,
    ) -> Result<Vec<EventFd>, CallError> {
        let preparation = match self.preparation.take() {
            Some(running) if request.sequence == running.sequence => {
                let same = running.kind == request.kind
                    && running.requested == request.requested
                    && running.setups == setups;
                if !same {
                    self.preparation = Some(running);
                    return Err(CallError::parameter(Parameter::Sequence));
                }
                Some(running)
            }
            running if request.sequence != Sequence::START => {
                self.preparation = running;
                return Err(CallError::parameter(Parameter::Sequence));
            }
            // A new configure takes the place of one that was given up.
            _ => None,
        };
        let (sequence, mut events) = match preparation {
            Some(running) => (running.sequence, running.events),
            None => (Sequence::START, Vec::new()),
        };
        let lacking = wanted.saturating_sub(self.vectors.len()).saturating_sub(events.len());
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
            let sequence = Sequence(sequence.0.wrapping_add(1).max(1));
            self.preparation = Some(Preparation {
                sequence,
                kind: request.kind,
                requested: request.requested,
                setups: setups.to_vec(),
                events,
            });
            return Err(CallError::Busy(Busy { sequence, delay_us: BUSY_DELAY_US }));
        }
        Ok(events)
    }

    /// Adds vectors for new events, and GSIs to the first `granted`. Returns how many vectors there were.
    fn add_vectors(&mut self, events: Vec<EventFd>, granted: usize) -> Result<usize, CallError> {
        let before = self.vectors.len();
        self.vectors.extend(events.into_iter().map(|event| Vector::new(event, None)));
        let lacking =
            self.vectors.iter().take(granted).filter(|vector| vector.gsi.is_none()).count();
        let gsis = match u16::try_from(lacking) {
            Ok(0) => Vec::new(),
            // Fewer than wanted, even none, is a short grant as long as one vector can be had.
            Ok(lacking) => self.routes.allocate(lacking).unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        let without = self.vectors.iter_mut().take(granted).filter(|vector| vector.gsi.is_none());
        for (vector, gsi) in without.zip(gsis) {
            vector.gsi = Some(gsi);
        }
        if self.vectors.first().is_none_or(|vector| vector.gsi.is_none()) {
            self.vectors.truncate(before);
            return Err(CallError::NoResources);
        }
        Ok(before)
    }

    /// The fallible part of a `configure`: one routing update, one interrupt set-up.
    fn establish(&mut self, granted: usize, wanted: usize) -> Result<(), StepError> {
        self.unbind(0..granted)?;
        self.detach_unwanted()?;
        self.install_routes(0..self.vectors.len())?;
        let count = self.vectors.len().min(wanted.max(granted));
        if self.set_up != count {
            self.set_up_interrupts(count)?;
        }
        // A reset that nobody saw may have cost vectors that stay set up their messages.
        if !self.rewrite_table() {
            return Err(io::Error::other("the vector table could not be written").into());
        }
        self.converge()?;
        self.retire(count);
        self.free_spare_gsis();
        Ok(())
    }

    fn undo_configure(&mut self, before: usize, set_up: usize) {
        // First off the vectors that came with the call, while their GSIs are known.
        if let Err(error) =
            self.detach_unwanted().and_then(|()| self.install_routes(0..self.vectors.len()))
        {
            self.log_routes(&error);
        }
        if self.set_up != set_up
            && let Err(error) = self.set_up_interrupts(set_up)
        {
            self.complain("interrupts could not be set up again", &error);
        }
        self.retire(before);
        if self.stale {
            self.rewrite_table();
        }
        self.converge_or_log();
        self.free_spare_gsis();
        self.evaluate();
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
        if let Err(error) = self.unbind(named).and_then(|()| self.converge()) {
            self.log_routes(&error);
            self.restore_messages(old);
            self.converge_or_log();
            self.evaluate();
            self.keep_generation(mode, generation);
            return Err(CallError::Hardware);
        }
        self.evaluate();
        Ok(())
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
            Owner::Legacy(_) => self.preparation = None,
        }
    }

    pub(crate) fn restore(&mut self) -> Result<(), CallError> {
        if let Owner::Assigned(_) = self.owner {
            if !self.rewrite_table() {
                return Err(CallError::Hardware);
            }
            self.migrated = false;
            self.generation = self.generation.next();
            self.unmappable = false;
            self.evaluate();
        }
        Ok(())
    }

    /// Vectors for the trapped table: as many as the host has, at least one.
    pub(crate) fn new_vectors(&self, count: u16) -> Result<Vec<Vector>, RoutesError> {
        let gsis = self.routes.allocate(count)?;
        let mut vectors = Vec::with_capacity(gsis.len());
        let mut gsis = gsis.into_iter();
        while let Some(gsi) = gsis.next() {
            match event::new() {
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
