//! The timer of a vCPU: a tick, or a stopwatch.

pub use crate::arch::timer::{Stopwatch, start_tick, stop_tick};

/// Milliseconds between two ticks.
pub const TICK_MS: u32 = 10;
