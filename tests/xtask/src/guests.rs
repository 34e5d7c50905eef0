//! `cargo xtask guests`: the bare-metal programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::architecture::Architecture;
use crate::process;
use crate::shim;
use crate::target::Target;
use crate::workspace::{Profile, Workspace};

/// The conformance suite as a guest.
pub(crate) const CONFORMANCE: &str = "pvmsi-conformance-guest";

/// The guests in Rust; each is a package and a program of that name in `tests/guests`.
const GUESTS: &[&str] =
    &["pvmsi-demo-guest", "pvmsi-plain-guest", "pvmsi-puppet", CONFORMANCE, SOAK, FORGER];

/// The guest that forges messages, for the lab.
pub(crate) const FORGER: &str = "pvmsi-forger-guest";

/// The guest of `cargo xtask soak`.
pub(crate) const SOAK: &str = "pvmsi-soak-guest";

/// All guests, by the names of their programs.
pub(crate) fn programs() -> impl Iterator<Item = &'static str> {
    GUESTS.iter().copied().chain([shim::GUEST, shim::READERS_GUEST])
}

/// Cargo in the workspace of the guests, for one of its commands on an architecture. Build and
/// checks share their folder.
///
/// # Errors
/// When the target cannot be had.
pub(crate) fn cargo(
    workspace: &Workspace,
    architecture: Architecture,
    command: &str,
) -> Result<Command> {
    let folder = workspace.root.join("tests/guests");
    let mut cargo = Target::bare_metal(workspace, architecture)?.cargo_in(&folder);
    cargo.args([command, "--quiet", "--release", "--target-dir"]);
    cargo.arg(output(workspace));
    Ok(cargo)
}

/// Builds an architecture's guests and copies them next to its `pvmsi` binaries of both profiles,
/// where `pvmsi run` and the tests look for them.
///
/// # Errors
/// When the target cannot be had or a build fails.
pub(crate) fn build(workspace: &Workspace, architecture: Architecture) -> Result<()> {
    let mut command = cargo(workspace, architecture, "build")?;
    process::step(&format!("building the guests for {}", architecture.name()), || {
        process::run("cargo build of the guests", &mut command, Duration::from_secs(600))
    })?;
    let in_rust = output(workspace).join(architecture.bare_metal()).join("release");
    let mut built: Vec<_> = GUESTS.iter().map(|&guest| (guest, in_rust.join(guest))).collect();
    built.extend(shim::build_guests(workspace, architecture)?);
    for (guest, elf) in built {
        if !elf.is_file() {
            bail!("tests/guests built no {guest}; expected it at {}", elf.display());
        }
        for profile in [Profile::Debug, Profile::Release] {
            install(&elf, &workspace.program(architecture, profile, guest)?)?;
        }
    }
    Ok(())
}

fn output(workspace: &Workspace) -> PathBuf {
    workspace.target.join("guests")
}

/// Copies through a temporary name, so that no other process ever sees half a program.
fn install(from: &Path, to: &Path) -> Result<()> {
    let partial = to.with_extension("partial");
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::copy(from, &partial)
        .and_then(|_| fs::rename(&partial, to))
        .with_context(|| format!("cannot write {}", to.display()))
}
