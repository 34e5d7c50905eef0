//! Saving and restoring all functions of a VM.

use super::Service;
use crate::entry::FunctionError;
use crate::save::format::SavedFunction;
use crate::save::{RestoreError, ServiceState};
use crate::switch::Amount;

impl Service {
    /// Pauses all functions and saves their state: what the guest has been granted, what it has written, and the events that wait. vCPUs and devices are at rest (the order stands at [`ServiceState`]). The functions stay paused until [`resume`](Self::resume): tables trapped, no event attached.
    ///
    /// # Errors
    /// [`FunctionError::Reentered`]; the other functions are paused.
    pub fn save(&self) -> Result<ServiceState, FunctionError> {
        self.operate_all(|operation| operation.save()).map(ServiceState::new)
    }

    /// Brings functions that nobody has used yet to a saved state, and leaves them paused until [`resume`](Self::resume). Functions that the state does not name stay as they are. Each gets interrupts for all that it may use later or, where that fails for one of them, all get those that they had.
    ///
    /// # Errors
    /// See [`RestoreError`]; nothing has changed then.
    pub fn restore(&self, state: &ServiceState) -> Result<(), RestoreError> {
        let saved = state.functions();
        for (index, function) in saved.iter().enumerate() {
            if saved.iter().take(index).any(|other| other.id == function.id) {
                return Err(RestoreError::Invalid {
                    function: function.id,
                    what: "it is there twice",
                });
            }
            self.with(function.id, |switch| switch.check_saved(function))
                .unwrap_or_else(|error| Err(error.into()))?;
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
                .operate(function.id, |operation| operation.restore_saved(function, amount))
                .unwrap_or_else(|error| Err(error.into()));
            match restored {
                Ok(before) => done.push((function.id, before)),
                Err(error) => {
                    for (id, before) in done {
                        // One that has been removed since has nothing to undo.
                        let _ = self.operate(id, |mut operation| operation.undo_restore(before));
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Lets functions go on that [`save`](Self::save) or [`restore`](Self::restore) has paused: events that were held and may fire reach the guest. Does nothing to others.
    ///
    /// # Errors
    /// [`FunctionError::Reentered`]; the other functions go on.
    pub fn resume(&self) -> Result<(), FunctionError> {
        self.operate_all(|operation| operation.resume()).map(drop)
    }
}
