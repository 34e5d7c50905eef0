//! Regions of the program that valgrind's tools tell from the rest, by the names of these functions.

use std::hint::black_box;
use std::io::Write;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use anyhow::Result;

use crate::Line;

/// Ends of the three functions. They keep calls in them from becoming jumps, which callgrind would
/// take for the end of the function, and the functions apart.
static REGIONS: AtomicU32 = AtomicU32::new(0);
static COUNTED: AtomicU32 = AtomicU32::new(0);
static EXCLUDED: AtomicU32 = AtomicU32::new(0);

/// Whether a region runs: what prepares one is not counted.
static RUNNING: AtomicBool = AtomicBool::new(false);

/// One count: callgrind writes down what it has counted, and starts anew, when this returns.
#[inline(never)]
fn region(operation: &mut dyn FnMut()) {
    RUNNING.store(true, Ordering::Relaxed);
    operation();
    RUNNING.store(false, Ordering::Relaxed);
    REGIONS.fetch_add(1, Ordering::Relaxed);
}

/// What callgrind counts.
#[inline(never)]
fn counted(operation: &mut dyn FnMut()) {
    operation();
    COUNTED.fetch_add(1, Ordering::Relaxed);
}

/// What callgrind leaves out of what it counts. Elsewhere it must not be called.
#[inline(never)]
fn excluded(operation: &mut dyn FnMut()) {
    operation();
    EXCLUDED.fetch_add(1, Ordering::Relaxed);
}

/// Runs a part of the halves that is counted.
pub(crate) fn count<T: Default>(operation: impl FnOnce() -> T) -> T {
    while_running(counted, operation)
}

/// Runs a part of this program that the halves call, and that is not counted.
pub(crate) fn exclude<T: Default>(operation: impl FnOnce() -> T) -> T {
    while_running(excluded, operation)
}

fn while_running<T: Default>(by: fn(&mut dyn FnMut()), operation: impl FnOnce() -> T) -> T {
    if RUNNING.load(Ordering::Relaxed) { through(by, operation) } else { operation() }
}

fn through<T: Default>(by: fn(&mut dyn FnMut()), operation: impl FnOnce() -> T) -> T {
    let mut operation = Some(operation);
    let mut result = None;
    by(&mut || result = operation.take().map(|operation| operation()));
    black_box(result).unwrap_or_default()
}

/// Announces regions on `output` and runs them.
pub struct Meter<W> {
    output: W,
}

impl<W: Write> Meter<W> {
    /// A meter that writes to `output`.
    pub const fn new(output: W) -> Self {
        Self { output }
    }

    /// Announces a region by its line and runs `operation` as the region.
    ///
    /// # Errors
    /// When the line cannot be written, and those of `operation`.
    pub fn region(&mut self, line: &Line, operation: impl FnOnce() -> Result<()>) -> Result<()> {
        self.print(line)?;
        through(region, || Some(operation())).unwrap_or(Ok(()))
    }

    /// Writes where the parts of memory are that lackey's trace is about: the table, and the flag that is stored to when a region begins and when it ends.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn print_places(&mut self, table: &Range<usize>) -> Result<()> {
        let flag = (&raw const RUNNING).addr();
        let places = serde_json::json!({
            "table_start": table.start, "table_end": table.end, "flag": flag,
        });
        writeln!(self.output, "{places}")?;
        Ok(())
    }

    /// Writes a line whose count is known.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn print(&mut self, line: &Line) -> Result<()> {
        writeln!(self.output, "{}", serde_json::to_string(line)?)?;
        Ok(())
    }
}
