//! What moves the host's interrupts while a guest runs: another program.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// A program that moves, for so long.
pub(super) struct Mover(Child);

/// What it has done.
#[derive(Debug, Deserialize)]
pub(super) struct Moved {
    /// Interrupts moved.
    pub moves: u64,
    /// Times a processor was taken off.
    pub processors_off: u64,
}

impl Mover {
    /// Starts to move the interrupts of a function.
    pub(super) fn start(function: &str, seconds: u64) -> Result<Self> {
        let program = "pvmsi-host-lab";
        let mut command = Command::new(program);
        command.args(["move", function, &seconds.to_string()]).stdout(Stdio::piped());
        command.spawn().map(Self).with_context(|| format!("cannot start {program}"))
    }

    /// Waits until its time is over.
    pub(super) fn stop(self) -> Result<Moved> {
        let output = self.0.wait_with_output()?;
        if !output.status.success() {
            bail!("moving the host's interrupts has failed: {}", output.status);
        }
        serde_json::from_slice(&output.stdout).context("no account of what was moved")
    }
}
