//! One function's state, saved and restored.

use pvmsi_protocol::{
    FunctionId, Generation, GuestMessage, Kind, Sequence, TableMode, VectorIndex, VectorSetup,
};

use super::Switch;
use super::decide;
use super::guest::{LegacyEntry, MsixControl, Owner, Unfinished};
use super::host::Host;
use super::operation::Operation;
use super::shared::ByMessage;
use crate::event;
use crate::save::RestoreError;
use crate::save::format::{SavedEntry, SavedFunction, SavedOwner, SavedPreparation, SavedVector};

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

impl Operation<'_> {
    /// Pauses the function and saves its state.
    pub(crate) fn save(mut self) -> SavedFunction {
        self.host.insert(Host::PAUSED);
        self.world.wires.all_changed();
        self.evaluate();
        // An unfinished `configure` makes it again, there or here.
        self.drop_prepared();
        // KVM ends what it has under way before it lets go.
        if let Err(error) = self.detach_unwanted() {
            self.complain_of_routes(&error);
        }
        self.function.settle();
        if self.world.mode == TableMode::Direct {
            // Its pages could not be taken out.
            self.read_mask_bits();
        }
        self.saved()
    }

    /// Lets a paused function go on.
    pub(crate) fn resume(mut self) {
        if self.host.contains(Host::PAUSED) {
            self.host.remove(Host::PAUSED);
            self.world.wires.all_changed();
            // A host that had none may have saved an emulated table without interrupts.
            self.set_up_legacy();
            self.converge_or_owe();
        }
    }

    /// Brings the function to a saved state, and leaves it paused.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub(crate) fn restore_saved(
        mut self,
        saved: &SavedFunction,
        amount: Amount,
    ) -> Result<Unused, RestoreError> {
        self.check_saved(saved)?;
        let before = Unused {
            control: self.guest.control,
            paused: self.host.contains(Host::PAUSED),
            generation: self.tally.generation,
        };
        self.host.insert(Host::PAUSED);
        self.guest.control =
            MsixControl { enable: saved.msix_enable, function_mask: saved.function_mask };
        if let Err(error) = self.establish_saved(&saved.owner, amount) {
            self.undo_restore(before);
            return Err(error);
        }
        for vector in saved.held.iter().filter_map(|&index| self.world.wires.get(index)) {
            event::signal(&vector.event);
        }
        let first = self.world.wires.len();
        self.guest.unfinished = saved.preparation.as_ref().map(|preparation| Unfinished {
            first,
            sequence: preparation.sequence,
            kind: Kind::MsiX,
            requested: preparation.requested,
            setups: preparation.vectors.iter().map(|vector| vector.setup()).collect(),
        });
        self.tally.generation = saved.generation.next();
        self.host.set(Host::MIGRATED, saved.owner.is_assigned());
        // The VMM may have restored configuration space in its own way.
        self.refresh();
        Ok(before)
    }

    /// Interrupts and routes for what was saved: one set-up and one routing update, where the host is not short of interrupts.
    fn establish_saved(&mut self, owner: &SavedOwner, amount: Amount) -> Result<(), RestoreError> {
        let function = self.fixed.id;
        let allowed = self.fixed.vectors_allowed();
        let needed = owner.interrupts().min(allowed);
        let mut spare = Vec::new();
        self.guest.owner = match owner {
            SavedOwner::Legacy { entries, .. } => Owner::Legacy(
                entries
                    .iter()
                    .map(|&SavedEntry { message, masked }| LegacyEntry { message, masked })
                    .collect(),
            ),
            SavedOwner::Assigned { vectors } => Owner::Assigned(
                vectors
                    .iter()
                    .map(|&SavedVector { message, masked }| VectorSetup { message, masked })
                    .collect(),
            ),
        };
        let wanted = match amount {
            Amount::All if needed > 0 => {
                self.function.set_up_count(needed).max(needed).min(allowed)
            }
            Amount::All | Amount::Needed => needed,
        };
        let set_up = |source| RestoreError::SetUp { function, source };
        let events = self.world.wires.extend(usize::from(wanted), &mut spare);
        events.map_err(|error| set_up(error.into()))?;
        // Those that are set up only because set-up cannot grow later have no route, nor have those of an
        // emulated table that are masked.
        let routed = |vector: VectorIndex| match owner {
            SavedOwner::Legacy { entries, .. } => {
                entries.get(vector.as_usize()).is_some_and(|entry| !entry.masked)
            }
            SavedOwner::Assigned { .. } => vector.0 < needed,
        };
        if !self.world.wires.allocate_for(0..usize::from(wanted), routed) {
            let first = self.world.wires.first(usize::from(needed));
            let routed = first.filter(|(index, _)| routed(*index));
            let (with, without): (Vec<_>, Vec<_>) =
                routed.partition(|(_, vector)| vector.wire.gsi().is_some());
            if !without.is_empty() {
                return Err(RestoreError::NoResources { function, needed, left: with.len() });
            }
        }
        let all = self.world.wires.len();
        // The function is paused: it only routes.
        self.work_off().1.map_err(|source| RestoreError::Routes { function, source })?;
        if all > 0 {
            self.set_up_what_there_is(0, usize::from(needed), &mut spare).map_err(set_up)?;
        }
        let enabled = decide::enabled(&self.guest, self.world.wires.len());
        self.set_enabled(enabled).map_err(set_up)
    }

    /// Back to an unused function.
    pub(crate) fn undo_restore(&mut self, before: Unused) {
        self.guest.control = before.control;
        self.become_default();
        self.host.set(Host::PAUSED, before.paused);
        self.tally.generation = before.generation;
    }
}

impl Switch {
    fn saved(&self) -> SavedFunction {
        let owner = match &self.guest.owner {
            Owner::Legacy(entries) => SavedOwner::Legacy {
                entries: entries
                    .iter()
                    .map(|&LegacyEntry { message, masked }| SavedEntry { message, masked })
                    .collect(),
                set_up: u16::try_from(self.world.wires.len()).unwrap_or(u16::MAX),
            },
            Owner::Assigned(vectors) => SavedOwner::Assigned {
                vectors: vectors
                    .iter()
                    .map(|&VectorSetup { message, masked }| SavedVector { message, masked })
                    .collect(),
            },
        };
        let held = self
            .world
            .wires
            .first(usize::from(owner.interrupts()))
            .map(|(index, _)| index)
            .filter(|&index| self.world.aside.contains(index) || self.world.wires.waits(index))
            .collect();
        let preparation = self.guest.unfinished.as_ref().map(|preparation| SavedPreparation {
            sequence: preparation.sequence,
            requested: preparation.requested,
            vectors: preparation
                .setups
                .iter()
                .map(|setup| SavedVector { message: setup.message, masked: setup.masked })
                .collect(),
        });
        SavedFunction {
            id: self.fixed.id,
            vectors: self.fixed.layout.vectors(),
            msix_enable: self.guest.control.enable,
            function_mask: self.guest.control.function_mask,
            owner,
            held,
            preparation,
            generation: self.tally.generation,
        }
    }

    /// Whether a saved state can be this function's.
    pub(crate) fn check_saved(&self, saved: &SavedFunction) -> Result<(), RestoreError> {
        let function = self.fixed.id;
        let wrong = |what| Err(invalid(function, what));
        let (saved_vectors, here) = (saved.vectors, self.fixed.layout.vectors());
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
                let used = (1..=*set_up).zip(entries).filter(|(_, entry)| !entry.masked);
                let held = saved.held.iter().map(|vector| vector.0.saturating_add(1));
                let count = used.map(|(count, _)| count).chain(held).max().unwrap_or(0);
                let allowed = self.fixed.vectors_allowed();
                if count > allowed {
                    return Err(RestoreError::Denied { function, saved: count, allowed });
                }
            }
            SavedOwner::Assigned { vectors } => {
                if vectors.is_empty() || vectors.len() > usize::from(here) {
                    return wrong("it has more or fewer vectors assigned than it can have");
                }
                self.check_messages(vectors)?;
                let (count, allowed) = (saved.owner.interrupts(), self.fixed.vectors_offered());
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

    /// As a call would: only messages that the platform can deliver become routes, and no two vectors get one that is one vector's alone.
    fn check_messages(&self, vectors: &[SavedVector]) -> Result<(), RestoreError> {
        let deliverable = |message: GuestMessage| self.fixed.route(message).is_some();
        let messages = || vectors.iter().filter_map(|vector| vector.message);
        if !messages().all(deliverable) {
            return Err(invalid(
                self.fixed.id,
                "it has a message that this platform cannot deliver",
            ));
        }
        let named = (0..).map(VectorIndex).zip(messages());
        if self.fixed.platform.binds_at_attach() && ByMessage::new(named).is_err() {
            return Err(invalid(self.fixed.id, "two of its vectors have the same message"));
        }
        Ok(())
    }

    fn is_unused(&self) -> bool {
        let default = match &self.guest.owner {
            Owner::Legacy(entries) => entries.iter().all(|entry| *entry == LegacyEntry::RESET),
            Owner::Assigned(_) => false,
        };
        default && self.world.wires.is_empty() && self.guest.unfinished.is_none()
    }
}

impl SavedOwner {
    fn is_assigned(&self) -> bool {
        matches!(self, Self::Assigned { .. })
    }

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
    fn setup(self) -> VectorSetup {
        VectorSetup { message: self.message, masked: self.masked }
    }
}

fn invalid(function: FunctionId, what: &'static str) -> RestoreError {
    RestoreError::Invalid { function, what }
}
