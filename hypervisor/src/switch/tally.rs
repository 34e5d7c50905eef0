//! Numbers that only grow, and the log.

use std::error::Error;

use pvmsi_protocol::{FunctionId, Generation, TableMode};

use super::Switch;
use crate::counters::Counters;
use crate::rate_limit::RateLimit;

/// The number of the state, what was counted, and what may be logged.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) generation: Generation,
    pub(crate) counters: Counters,
    /// The most vectors that one `configure` call has set up.
    pub(crate) largest_call: u16,
    /// The vectors that the last successful `configure` was about.
    pub(crate) asked: u16,
    /// Whether vector control of any entry was seen to hold more than the mask bit.
    pub(crate) other_bits: bool,
    log: RateLimit,
}

impl Tally {
    /// The state is another one.
    pub(crate) fn next_generation(&mut self) {
        self.generation = self.generation.next();
    }

    /// Says what went wrong, at a bounded rate: a guest can cause it. What is to be tried again is recorded by the caller.
    pub(crate) fn complain(
        &mut self,
        id: FunctionId,
        what: &'static str,
        error: &(dyn Error + 'static),
    ) {
        if self.log.allow() {
            tracing::error!(function = %id, error, "{what}");
        }
    }

    /// The table has changed hands.
    pub(crate) fn mode_changed(&mut self, id: FunctionId, mode: TableMode) {
        let switches = match mode {
            TableMode::Direct => &mut self.counters.switches_to_direct,
            TableMode::Trapped => &mut self.counters.switches_to_trapped,
        };
        *switches = switches.saturating_add(1);
        self.next_generation();
        if self.log.allow() {
            tracing::info!(function = %id, ?mode, "vector table");
        }
    }
}

impl Switch {
    /// See [`Tally::complain`].
    pub(super) fn complain(&mut self, what: &'static str, error: &(dyn Error + 'static)) {
        self.tally.complain(self.fixed.id, what, error);
    }
}
