//! `configure`: gives vectors to the guest.
//!
//! Checks its whole request first and then acts; a call that fails leaves
//! route, table, mask, mode and generation as they were.

use std::io;

use pvmsi_protocol::{
    Busy, CallError, ConfigureRequest, GuestMessage, Kind, Parameter, Sequence, TableMode,
    VectorSetup,
};
use thiserror::Error;

use super::Switch;
use super::attempt::Attempt;
use super::guest::{AssignedVector, Owner, Unfinished};
use super::host::{Debts, Host};
use super::interrupts::SHORT_OF_INTERRUPTS;
use super::operation::Operation;
use super::reader::count;
use super::set::VectorSet;
use crate::event;
use crate::function::SetUpError;
use crate::policy::Policy;
use crate::routes::RoutesError;

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
    /// Sets vectors up; makes the events of at most `bound` of them in one go. What was pending of them, for the guest to deliver.
    ///
    /// # Errors
    /// Nothing has changed then, but for what is ready when the answer is *busy*.
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
        let wanted = usize::from(self.function.set_up_count(target).max(target));
        let unfinished = self.prepare(request, &setups, wanted, bound)?;
        if let Err(error) = self.grant(&setups, usize::from(target), wanted) {
            if unfinished.is_none() {
                self.world.spare.clear();
            }
            self.guest.unfinished = unfinished;
            self.free_spare_gsis();
            return Err(error);
        }
        self.world.spare.clear();
        count(&mut self.tally.counters.configures);
        self.tally.next_generation();
        self.world.held = None;
        self.debts.remove(Debts::NOT_MAPPABLE);
        self.host.remove(Host::MIGRATED);

        let mut pending = VectorSet::default();
        if self.reasons().is_empty() {
            self.enter_direct(Some(&mut pending));
        }
        if self.world.mode == TableMode::Trapped {
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
        let mut setups = Vec::with_capacity(usize::from(request.vectors.len()));
        request.vectors.for_each(|_, setup| setups.push(setup))?;
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
        for (index, setup) in (0_u16..).zip(&setups) {
            self.check_message(index, setup.message)?;
        }
        Ok(setups)
    }

    /// Creates the events that `wanted` vectors lack, at most `bound` in one call; busy when more are to be made. They are fewer where the host has no more. What was unfinished comes back.
    fn prepare(
        &mut self,
        request: &ConfigureRequest<'_>,
        setups: &[VectorSetup],
        wanted: usize,
        bound: u16,
    ) -> Result<Option<Unfinished>, CallError> {
        if request.sequence != Sequence::START {
            let continues = self.guest.unfinished.as_ref().is_some_and(|running| {
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
        let unfinished = self.guest.unfinished.take();
        let lacking = wanted.saturating_sub(self.world.wires.len());
        self.world.spare.truncate(lacking);
        let lacking = lacking.saturating_sub(self.world.spare.len());
        let now = lacking.min(usize::from(bound.max(1)));
        let mut exhausted = false;
        for _ in 0..now {
            match event::new() {
                Ok(event) => self.world.spare.push(event),
                Err(error) => {
                    exhausted = true;
                    self.complain("no more eventfds; raise the limit of open files", &error);
                    break;
                }
            }
        }
        if now < lacking && !exhausted {
            let sequence = Sequence(request.sequence.0.wrapping_add(1).max(1));
            self.guest.unfinished = Some(Unfinished {
                sequence,
                kind: request.kind,
                requested: request.requested,
                setups: setups.to_vec(),
            });
            return Err(CallError::Busy(Busy { sequence, delay_us: BUSY_DELAY_US }));
        }
        Ok(unfinished)
    }

    /// Gives the guest the first `target` vectors, or as many as can be had, and sets up as many as `wanted`. The spare events are used; they are there again after a failure.
    fn grant(
        &mut self,
        setups: &[VectorSetup],
        mut target: usize,
        mut wanted: usize,
    ) -> Result<(), CallError> {
        let before = self.world.wires.len();
        loop {
            let events = std::mem::take(&mut self.world.spare);
            self.world.wires.add(events.into_iter());
            let granted = self.world.wires.allocate(target);
            if granted == 0 {
                self.world.spare = self.retire(before);
                return Err(CallError::NoResources);
            }
            let Err(error) = self.assign(setups, granted, wanted, before) else { return Ok(()) };
            // What is available may be a guess, which must not miss what is enough.
            let spare = wanted > target;
            let next =
                error.available(granted).map(|few| if spare { few.max(target) } else { few });
            match next {
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
        setups: &[VectorSetup],
        granted: usize,
        wanted: usize,
        before: usize,
    ) -> Result<(), StepError> {
        let new = (0..granted)
            .map(|index| setups.get(index).copied().unwrap_or(VectorSetup::RESERVED))
            .map(|VectorSetup { message, masked }| AssignedVector { message, masked })
            .collect();
        self.follow_messages();
        let mut attempt = Attempt::begin(self, before);
        let set_up = VectorSet::first(attempt.world.set_up);
        let held = attempt.hold(set_up.iter()).map_err(StepError::Table);
        attempt.assign(Owner::Assigned(new));
        held?;
        attempt.establish(granted, wanted)?;
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
    /// The fallible part of a `configure`: one routing update, one interrupt set-up.
    fn establish(&mut self, granted: usize, wanted: usize) -> Result<(), StepError> {
        if self.fixed.platform.binds_at_attach() {
            VectorSet::first(granted).iter().try_for_each(|vector| self.detach(vector))?;
        }
        // A reset that nobody saw may have cost vectors that stay set up their messages.
        if !self.rewrite_table() {
            return Err(StepError::Table(io::Error::other("it could not be written")));
        }
        self.converge()?;
        // Last, for it cannot be undone without a trace: new vectors come unmasked.
        let count = self.world.wires.len().min(wanted.max(granted));
        if self.world.set_up != count {
            self.set_up_interrupts(count).map_err(StepError::SetUp)?;
        }
        self.retire(count);
        self.free_spare_gsis();
        Ok(())
    }
}

impl Switch {
    /// Whether the platform can deliver a message of a vector.
    pub(super) fn check_message(
        &self,
        index: u16,
        message: Option<GuestMessage>,
    ) -> Result<(), CallError> {
        match message {
            Some(message) if self.fixed.route(message).is_none() => {
                Err(CallError::vector(Parameter::Message, index))
            }
            _ => Ok(()),
        }
    }
}
