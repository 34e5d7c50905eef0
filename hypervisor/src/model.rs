//! A function's state as a value, for a model checker (feature `model`).
//!
//! The checker in `tests/model` explores the state machine that runs in
//! production: it puts a state into a [`Service`], lets the service act, and
//! takes the next state out. What lies behind the seams is the checker's own.
//!
//! Left out are the numbers that only grow (generation, counters, the log's
//! allowance): a checker reads them from [`FunctionHandle::status`](crate::FunctionHandle::status) before and after.

use std::io;
use std::os::fd::RawFd;

use pvmsi_protocol::FunctionId;

use crate::service::Service;
use crate::switch::Switch;

pub use crate::event::keeper::{Events, keep_events};
pub use crate::switch::Snapshot;

impl Service {
    /// The state of a function; `None` when there is no such function.
    pub fn snapshot(&self, id: FunctionId) -> Option<Snapshot> {
        self.with(id, |switch| switch.snapshot()).ok()
    }

    /// Puts a function into a state that [`snapshot`](Self::snapshot) has given, on a thread that [keeps events](keep_events): generation and counters at zero. What is behind the seams must be put into the same state by the caller. `None` when there is no such function.
    ///
    /// # Errors
    /// When no event can be made.
    pub fn load(&self, id: FunctionId, snapshot: &Snapshot) -> Option<io::Result<()>> {
        let entry = self.entry(id).ok()?;
        let load = |switch: &mut Switch| {
            let loaded = switch.load(snapshot);
            entry.decoded.publish(switch);
            loaded
        };
        entry.with(load).ok()
    }

    /// The file descriptors of the events of a function's vectors, in order.
    pub fn event_fds(&self, id: FunctionId) -> Vec<RawFd> {
        self.with(id, |switch| Switch::event_fds(switch)).unwrap_or_default()
    }
}
