//! `cargo xtask guests`: the bare-metal programs.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::bare_metal::{BareMetal, TARGET};
use crate::process;
use crate::workspace::{Profile, Workspace};

/// The guests; each is a package and a program of that name in `tests/guests`.
pub(crate) const GUESTS: &[&str] = &["pvmsi-demo-guest", "pvmsi-plain-guest", "pvmsi-puppet"];

/// Builds all guests and copies them next to the `pvmsi` binaries of both profiles, where
/// `pvmsi run` and the tests look for them.
///
/// # Errors
/// When the target cannot be had or a build fails.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    let bare_metal = BareMetal::prepare(workspace)?;
    let folder = workspace.root.join("tests/guests");
    let target = workspace.target.join("guests");
    process::step("building the guests", || {
        let mut command = bare_metal.cargo_in(&folder);
        command
            .args(["build", "--quiet", "--release", "--target", TARGET, "--target-dir"])
            .arg(&target);
        process::run("cargo build of the guests", &mut command, Duration::from_secs(600))
    })?;
    for guest in GUESTS {
        let elf = target.join(TARGET).join("release").join(guest);
        if !elf.is_file() {
            bail!("tests/guests built no {guest}; expected it at {}", elf.display());
        }
        for profile in [Profile::Debug, Profile::Release] {
            install(&elf, &workspace.program(profile, guest))?;
        }
    }
    Ok(())
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
