//! What is saved of a service, for a VM that is stopped here and goes on elsewhere, or later.
//!
//! [`ServiceState`] tells a VMM the order of the steps. A function is *paused*
//! from its saving, or its restoring, to [`Service::resume`](crate::Service::resume): its table is
//! trapped and none of its events is attached, so that each event is in exactly
//! one place, its eventfd or the guest's interrupt controller. That also keeps a
//! restored event from being overwritten by what the VMM restores after it.

mod error;
pub(crate) mod format;
mod versioned;

pub use error::RestoreError;
pub use format::ServiceState;
pub use versioned::{Saved, StateVersion, Versioned};
