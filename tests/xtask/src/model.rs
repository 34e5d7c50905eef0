//! `cargo xtask model`: the host service's state machine in all states, and its locks in many orders.

use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::process;
use crate::summary::{Counts, Verdict};
use crate::workspace::Workspace;

/// Bound of an exploration, and of a build.
const LIMIT: Duration = Duration::from_secs(7200);

/// The model checker, a package that is tested on its own: exploring takes optimised code.
pub(crate) const PACKAGE: &str = "pvmsi-model";

/// What makes the service use the locks of `shuttle`.
const SHUTTLE: &str = "--cfg pvmsi_shuttle";

/// Options of `cargo xtask model`.
#[derive(Args)]
pub(crate) struct Options {
    /// Small bounds.
    #[arg(long)]
    quick: bool,
}

/// Explores and tries; true when all properties hold.
///
/// # Errors
/// When a build or a property fails.
pub(crate) fn command(workspace: &Workspace, options: &Options) -> Result<bool> {
    explore(workspace, options.quick)?;
    Ok(locks(workspace)?.failed() == 0)
}

/// Explores the states within small bounds, or all.
pub(crate) fn explore(workspace: &Workspace, quick: bool) -> Result<Verdict> {
    let mut command = workspace.cargo();
    command.args(["run", "--quiet", "--locked", "--release", "--package", PACKAGE]);
    if quick {
        command.args(["--", "--quick"]);
    }
    process::run("pvmsi-model", &mut command, LIMIT)?;
    Ok(Verdict::Passed)
}

/// The service's locks under `shuttle`, in a build folder of their own.
pub(crate) fn locks(workspace: &Workspace) -> Result<Counts> {
    let mut command = workspace.cargo();
    command.env("RUSTFLAGS", SHUTTLE);
    command.args(["test", "--quiet", "--locked", "--release", "--package", PACKAGE]);
    command.args(["--test", "concurrency", "--target-dir"]).arg(workspace.target.join("shuttle"));
    let (status, output) = process::capture("cargo test", &mut command, LIMIT, true)?;
    let counts = Counts::of_cargo_test(&output);
    Ok(if status.success() || counts.failed() > 0 { counts } else { counts.with_failure() })
}
