//! Saving and restoring a service, for a VM that is stopped here and goes on elsewhere, or later.
//!
//! [`ServiceState`] tells a VMM the order of the steps. A function is *paused*
//! from its saving, or its restoring, to [`Service::resume`]: its table is
//! trapped and none of its events is attached, so that each event is in exactly
//! one place, its eventfd or the guest's interrupt controller. That also keeps a
//! restored event from being overwritten by what the VMM restores after it.

mod format;
mod versioned;

use std::io;

use pvmsi_protocol::{
    FunctionId, Generation, GuestMessage, Kind, Sequence, TableMode, VectorIndex,
};
use thiserror::Error;

use crate::calls::Preparation;
use crate::event;
use crate::routes::RoutesError;
use crate::service::Service;
use crate::state::{AssignedVector, FunctionState, LegacyEntry, MsixControl, Owner, Vector};
use format::{SavedEntry, SavedFunction, SavedOwner, SavedPreparation, SavedVector};

pub use format::ServiceState;
pub use versioned::StateVersion;
pub(crate) use versioned::{Saved, Versioned};

/// A saved state was not restored, and nothing has changed.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// The function was not added.
    #[error("the saved state has a function {0}, which this VM has not; add it first")]
    NoSuchFunction(FunctionId),
    /// No service saves that.
    #[error("the saved state of function {function} makes no sense: {what}")]
    Invalid {
        /// The function.
        function: FunctionId,
        /// What is wrong.
        what: &'static str,
    },
    /// It is not the same function.
    #[error("function {function} was saved with {saved} vectors, and has {here} here")]
    Vectors {
        /// The function.
        function: FunctionId,
        /// Entries of the table of the one that was saved.
        saved: u16,
        /// Entries of this one's.
        here: u16,
    },
    /// The guest has used the function already, or it was restored before.
    #[error("function {0} is in use; restore it before the guest runs")]
    InUse(FunctionId),
    /// The operator of this host allows less.
    #[error("function {function} has {saved} vectors assigned; the policy here allows {allowed}")]
    Denied {
        /// The function.
        function: FunctionId,
        /// Vectors that the guest has.
        saved: u16,
        /// Vectors that it may have here.
        allowed: u16,
    },
    /// This host has too few routes or eventfds left.
    #[error("function {function} needs {needed} interrupts, and this VM has {left} left for it")]
    NoResources {
        /// The function.
        function: FunctionId,
        /// Vectors that need one.
        needed: u16,
        /// How many there are.
        left: usize,
    },
    /// The kernel refused a route.
    #[error("the routes of function {function} could not be installed")]
    Routes {
        /// The function.
        function: FunctionId,
        /// Why.
        #[source]
        source: RoutesError,
    },
    /// The function's interrupts could not be set up.
    #[error("the interrupts of function {function} could not be set up")]
    SetUp {
        /// The function.
        function: FunctionId,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Service {
    /// Pauses all functions and saves their state: what the guest has been granted, what it has written, and the events that wait. vCPUs and devices are at rest (the order stands at [`ServiceState`]). The functions stay paused until [`resume`](Self::resume): tables trapped, no event attached.
    pub fn save(&self) -> ServiceState {
        let functions = self.functions();
        ServiceState::new(
            functions.into_iter().filter_map(|id| self.with(id, FunctionState::save)).collect(),
        )
    }

    /// Brings functions that nobody has used yet to a saved state, and leaves them paused until [`resume`](Self::resume). Functions that the state does not name stay as they are. Each gets interrupts for all that it may use later or, where that fails for one of them, all get those that they had.
    ///
    /// # Errors
    /// See [`RestoreError`]; nothing has changed then.
    pub fn restore(&self, state: &ServiceState) -> Result<(), RestoreError> {
        let saved = state.functions();
        for (index, function) in saved.iter().enumerate() {
            if saved.iter().take(index).any(|other| other.id == function.id) {
                return Err(invalid(function.id, "it is there twice"));
            }
            self.with(function.id, |state| state.check_saved(function))
                .unwrap_or(Err(RestoreError::NoSuchFunction(function.id)))?;
        }
        match self.restore_all(saved, Amount::All) {
            // One function may have taken what it can do without, and another needs: interrupts, or files.
            Err(
                RestoreError::NoResources { .. }
                | RestoreError::SetUp { .. }
                | RestoreError::Routes { .. },
            ) => self.restore_all(saved, Amount::Needed),
            restored => restored,
        }
    }

    /// All of them, or none.
    fn restore_all(&self, saved: &[SavedFunction], amount: Amount) -> Result<(), RestoreError> {
        let mut done = Vec::new();
        for function in saved {
            let restored = self
                .with(function.id, |state| state.restore_saved(function, amount))
                .unwrap_or(Err(RestoreError::NoSuchFunction(function.id)));
            match restored {
                Ok(before) => done.push((function.id, before)),
                Err(error) => {
                    for (id, before) in done {
                        self.with(id, |state| state.undo_restore(before));
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Lets functions go on that [`save`](Self::save) or [`restore`](Self::restore) has paused: events that were held and may fire reach the guest. Does nothing to others.
    pub fn resume(&self) {
        for id in self.functions() {
            self.with(id, FunctionState::resume);
        }
    }
}

/// For how many vectors a function that is restored gets interrupts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Amount {
    /// All that it may use later, or as many as the host has.
    All,
    /// Those that it had.
    Needed,
}

/// What a restore that is undone goes back to: all else of an unused function is as at power-on.
pub(crate) struct Unused {
    control: MsixControl,
    paused: bool,
    generation: Generation,
}

impl FunctionState {
    fn pause(&mut self) {
        self.paused = true;
        self.evaluate();
        // KVM ends what it has under way before it lets go.
        if let Err(error) = self.detach_unwanted() {
            self.log_routes(&error);
        }
        self.function.settle();
    }

    fn resume(&mut self) {
        if self.paused {
            self.catch_up();
            self.paused = false;
            // A host that had none may have saved an emulated table without interrupts.
            self.set_up_legacy();
            self.converge_or_log();
            self.evaluate();
        }
    }

    fn save(&mut self) -> SavedFunction {
        self.pause();
        if self.mode == TableMode::Direct {
            // Its pages could not be taken out.
            self.read_mask_bits();
        }
        let owner = match &self.owner {
            Owner::Legacy(entries) => SavedOwner::Legacy {
                entries: entries
                    .iter()
                    .map(|&LegacyEntry { message, masked }| SavedEntry { message, masked })
                    .collect(),
                set_up: u16::try_from(self.vectors.len()).unwrap_or(u16::MAX),
            },
            Owner::Assigned(vectors) => SavedOwner::Assigned {
                vectors: vectors
                    .iter()
                    .map(|&AssignedVector { message, masked }| SavedVector { message, masked })
                    .collect(),
            },
        };
        let held = (0..owner.interrupts())
            .zip(&self.vectors)
            .filter(|(_, v)| v.aside || !v.attached && event::is_signalled(&v.event))
            .map(|(index, _)| VectorIndex(index))
            .collect();
        let preparation = self.preparation.as_ref().map(|preparation| SavedPreparation {
            sequence: preparation.sequence,
            requested: preparation.requested,
            vectors: preparation
                .setups
                .iter()
                .map(|setup| SavedVector { message: setup.message, masked: setup.masked })
                .collect(),
        });
        SavedFunction {
            id: self.id,
            vectors: self.layout.vectors(),
            msix_enable: self.control.enable,
            function_mask: self.control.function_mask,
            owner,
            held,
            preparation,
            generation: self.generation,
        }
    }

    /// Whether a saved state can be this function's.
    fn check_saved(&self, saved: &SavedFunction) -> Result<(), RestoreError> {
        let function = self.id;
        let wrong = |what| Err(invalid(function, what));
        let (saved_vectors, here) = (saved.vectors, self.layout.vectors());
        if saved_vectors != here {
            return Err(RestoreError::Vectors { function, saved: saved_vectors, here });
        }
        if !self.is_unused() {
            return Err(RestoreError::InUse(function));
        }
        match &saved.owner {
            SavedOwner::Legacy { entries, set_up } => {
                if entries.len() != usize::from(here) {
                    return wrong("its table is not as long as it says");
                }
                if *set_up > here || *set_up > 0 && !saved.msix_enable {
                    return wrong("it has interrupts that it cannot have");
                }
            }
            SavedOwner::Assigned { vectors } => {
                if vectors.is_empty() || vectors.len() > usize::from(here) {
                    return wrong("it has more or fewer vectors assigned than it can have");
                }
                self.check_messages(vectors)?;
                let (count, allowed) = (saved.owner.interrupts(), self.vectors_offered());
                if count > allowed {
                    return Err(RestoreError::Denied { function, saved: count, allowed });
                }
            }
        }
        let in_order = saved.held.windows(2).all(|pair| matches!(pair, [one, next] if one < next));
        let end = saved.owner.interrupts();
        if !in_order || saved.held.last().is_some_and(|last| last.0 >= end) {
            return wrong("events wait for vectors that it has not");
        }
        if let Some(preparation) = &saved.preparation {
            let SavedPreparation { sequence, requested, vectors } = preparation;
            if *sequence == Sequence::START
                || !(1..=here).contains(requested)
                || vectors.len() > usize::from(*requested)
            {
                return wrong("its unfinished configure is none that it could have answered");
            }
            self.check_messages(vectors)?;
        }
        Ok(())
    }

    /// As a call would: only messages that the platform can deliver become routes.
    fn check_messages(&self, vectors: &[SavedVector]) -> Result<(), RestoreError> {
        let deliverable = |message: GuestMessage| self.platform.route(self.id, message).is_some();
        if vectors.iter().filter_map(|vector| vector.message).all(deliverable) {
            Ok(())
        } else {
            Err(invalid(self.id, "it has a message that this platform cannot deliver"))
        }
    }

    fn is_unused(&self) -> bool {
        let default = match &self.owner {
            Owner::Legacy(entries) => entries.iter().all(|entry| *entry == LegacyEntry::RESET),
            Owner::Assigned(_) => false,
        };
        default && self.vectors.is_empty() && self.preparation.is_none()
    }

    fn restore_saved(
        &mut self,
        saved: &SavedFunction,
        amount: Amount,
    ) -> Result<Unused, RestoreError> {
        self.check_saved(saved)?;
        self.catch_up();
        let before =
            Unused { control: self.control, paused: self.paused, generation: self.generation };
        self.paused = true;
        self.control =
            MsixControl { enable: saved.msix_enable, function_mask: saved.function_mask };
        if let Err(error) = self.establish_saved(&saved.owner, amount) {
            self.undo_restore(before);
            return Err(error);
        }
        let held = saved.held.iter().filter_map(|index| self.vectors.get(index.as_usize()));
        held.for_each(|vector| event::signal(&vector.event));
        self.preparation = saved.preparation.as_ref().map(|preparation| Preparation {
            sequence: preparation.sequence,
            kind: Kind::MsiX,
            requested: preparation.requested,
            setups: preparation.vectors.iter().map(|vector| vector.setup()).collect(),
            events: Vec::new(),
        });
        self.generation = saved.generation.next();
        self.migrated = matches!(self.owner, Owner::Assigned(_));
        // The VMM may have restored configuration space in its own way.
        self.refresh();
        Ok(before)
    }

    /// Interrupts and routes for what was saved: one set-up and one routing update, where the host is not short of interrupts.
    fn establish_saved(&mut self, owner: &SavedOwner, amount: Amount) -> Result<(), RestoreError> {
        let function = self.id;
        let needed = owner.interrupts();
        let routes = |source| RestoreError::Routes { function, source };
        let interrupts = |error| match error {
            RoutesError::Exhausted => RestoreError::NoResources { function, needed, left: 0 },
            error => routes(error),
        };
        match owner {
            SavedOwner::Legacy { entries, set_up } => {
                self.owner = Owner::Legacy(
                    entries
                        .iter()
                        .map(|&SavedEntry { message, masked }| LegacyEntry { message, masked })
                        .collect(),
                );
                if *set_up > 0 {
                    let count = match amount {
                        Amount::All => self.layout.vectors(),
                        Amount::Needed => needed,
                    };
                    let vectors = self.new_vectors(count, &mut Vec::new()).map_err(interrupts)?;
                    self.vectors = vectors;
                }
            }
            SavedOwner::Assigned { vectors } => {
                self.owner = Owner::Assigned(
                    vectors
                        .iter()
                        .map(|&SavedVector { message, masked }| AssignedVector { message, masked })
                        .collect(),
                );
                self.vectors = self.new_vectors(needed, &mut Vec::new()).map_err(interrupts)?;
                // Those that are set up only because set-up cannot grow later have no route.
                let wanted = match amount {
                    Amount::All => usize::from(self.function.set_up_count(needed)),
                    Amount::Needed => usize::from(needed),
                };
                while self.vectors.len() < wanted {
                    let event =
                        event::new().map_err(|source| RestoreError::SetUp { function, source })?;
                    self.vectors.push(Vector::new(event, None));
                }
            }
        }
        let left = self.vectors.iter().filter(|vector| vector.gsi.is_some()).count();
        if left < usize::from(needed) {
            return Err(RestoreError::NoResources { function, needed, left });
        }
        self.install_routes(0..self.vectors.len()).map_err(routes)?;
        if !self.vectors.is_empty() {
            self.set_up_what_there_is(usize::from(needed), &mut Vec::new())
                .map_err(|source| RestoreError::SetUp { function, source })?;
        }
        let enabled = self.control.enable || !self.vectors.is_empty();
        self.set_enabled(enabled).map_err(|source| RestoreError::SetUp { function, source })
    }

    fn undo_restore(&mut self, before: Unused) {
        self.control = before.control;
        self.become_default();
        self.paused = before.paused;
        self.generation = before.generation;
    }
}

impl SavedOwner {
    /// Vectors that have an interrupt, from vector 0 on.
    fn interrupts(&self) -> u16 {
        match self {
            Self::Legacy { set_up, .. } => *set_up,
            // At most 2048: by construction, or by a check before this is asked.
            Self::Assigned { vectors } => u16::try_from(vectors.len()).unwrap_or(u16::MAX),
        }
    }
}

impl SavedVector {
    fn setup(self) -> pvmsi_protocol::VectorSetup {
        pvmsi_protocol::VectorSetup { message: self.message, masked: self.masked }
    }
}

fn invalid(function: FunctionId, what: &'static str) -> RestoreError {
    RestoreError::Invalid { function, what }
}
