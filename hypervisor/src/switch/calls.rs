//! The other calls of the protocol, and what the host asks for.

use pvmsi_protocol::{CallError, Parameter, UpdateRequest, VectorIndex};

use super::attempt::Attempt;
use super::guest::Owner;
use super::host::{Debts, Host};
use super::operation::Operation;
use super::reader::count;
use super::set::VectorSet;
use super::shared::ByMessage;
use crate::routes::RoutesError;

impl Operation<'_> {
    /// Gives assigned vectors other messages: all of them, or none.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub(crate) fn update(mut self, request: &UpdateRequest<'_>) -> Result<(), CallError> {
        request.vectors.check()?;
        let granted = self.assigned();
        if granted == 0 {
            let first = request.vectors.iter().next().transpose()?;
            return Err(CallError::vector(
                Parameter::Vector,
                first.map_or(0, |update| update.vector.0),
            ));
        }
        if request.vectors.is_empty() {
            return Err(CallError::parameter(Parameter::Count));
        }
        let mut named = VectorSet::default();
        for update in request.vectors {
            let update = update?;
            let index = update.vector.0;
            if index >= granted {
                return Err(CallError::vector(Parameter::Vector, index));
            }
            if !named.insert(update.vector) {
                return Err(CallError::vector(Parameter::DuplicateVector, index));
            }
            if self.fixed.route(update.message).is_none() {
                return Err(CallError::vector(Parameter::Message, index));
            }
        }
        if self.fixed.platform.binds_at_attach() {
            self.check_shared(request, &named)?;
        }
        let vectors = self.world.wires.len();
        let mut attempt = Attempt::begin(&mut self, vectors);
        // All of them are, by now.
        for update in request.vectors.iter().flatten() {
            attempt.set_message(update.vector, update.message);
        }
        if let Err(error) = attempt.unbind(&named).and_then(|()| attempt.converge()) {
            // A vector's first message takes a route more.
            if matches!(error, RoutesError::Exhausted) {
                return Err(CallError::NoResources);
            }
            attempt.complain_of_routes(&error);
            return Err(CallError::Hardware);
        }
        attempt.commit();
        Ok(())
    }

    /// Whether no two vectors have one message after an `update` that names these; before it is done they may.
    fn check_shared(
        &self,
        request: &UpdateRequest<'_>,
        named: &VectorSet,
    ) -> Result<(), CallError> {
        let shared = |vector: VectorIndex| CallError::vector(Parameter::SharedMessage, vector.0);
        let updates = request.vectors.iter().flatten();
        let others = ByMessage::new(updates.map(|update| (update.vector, update.message)))
            .map_err(shared)?;
        let Owner::Assigned(assigned) = &self.guest.owner else { return Ok(()) };
        (0..)
            .map(VectorIndex)
            .zip(assigned)
            .filter(|(vector, _)| !named.contains(*vector))
            .find_map(|(_, setup)| others.get(setup.message?))
            .map_or(Ok(()), |vector| Err(shared(vector)))
    }

    /// Back to the default.
    pub(crate) fn release(mut self) {
        match self.guest.owner {
            Owner::Assigned(_) => self.become_default(),
            // The emulated table is the guest's own.
            Owner::Legacy(_) => {
                self.drop_prepared();
                self.forget_unfinished();
            }
        }
    }

    /// Puts the table messages back after a reset that the host has not seen, and sets the interrupts up anew where they have not survived it.
    ///
    /// # Errors
    /// When the table cannot be written or taken back, or the kernel refuses.
    pub(crate) fn restore(mut self) -> Result<(), CallError> {
        if self.guest.owner.is_assigned() {
            // A set-up writes all of the table: it must be the host's.
            let taken = !self.answers() || !self.wants_set_up() || self.leave_direct();
            if !(taken && self.recover_unseen()) {
                return Err(CallError::Hardware);
            }
            self.follow_enable();
            self.host.remove(Host::MIGRATED);
            self.tally.next_generation();
            self.debts.remove(Debts::NOT_MAPPABLE);
        }
        Ok(())
    }

    /// Takes the table back, until it is allowed again.
    pub(crate) fn revoke(mut self) {
        self.host.insert(Host::REVOKED);
    }

    /// Ends that.
    pub(crate) fn allow(mut self) {
        self.host.remove(Host::REVOKED);
        self.debts.remove(Debts::NOT_MAPPABLE);
    }
}

impl super::Switch {
    /// A call names this function.
    pub(crate) fn count_call(&mut self) {
        count(&mut self.tally.counters.calls);
    }

    /// It was answered with an error.
    pub(crate) fn count_failure(&mut self) {
        count(&mut self.tally.counters.failed_calls);
    }
}
