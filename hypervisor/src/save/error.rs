//! Why a saved state was not restored.

use pvmsi_protocol::FunctionId;
use thiserror::Error;

use crate::entry::FunctionError;
use crate::function::SetUpError;
use crate::routes::RoutesError;

/// A saved state was not restored, and nothing has changed.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// The function was not added.
    #[error("the saved state has a function {0}, which this VM has not; add it first")]
    NoSuchFunction(FunctionId),
    /// A seam that is called for the function has asked for it.
    #[error("function {0} was to be restored by a seam that is called for it")]
    Reentered(FunctionId),
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
        source: SetUpError,
    },
}

impl From<FunctionError> for RestoreError {
    fn from(error: FunctionError) -> Self {
        match error {
            FunctionError::Removed(id) => Self::NoSuchFunction(id),
            FunctionError::Reentered(id) => Self::Reentered(id),
        }
    }
}
