//! Programs of this machine that the commands need, installed from Debian's packages when missing.

use std::path::Path;

use anyhow::Result;

use crate::debian::{self, Apt};
use crate::process;
use crate::workspace::Workspace;

/// Something that a package brings.
pub(crate) struct Tool {
    package: &'static str,
    present: bool,
}

impl Tool {
    /// A program in the search path.
    pub(crate) fn program(program: &str, package: &'static str) -> Self {
        Self { package, present: process::available(program) }
    }

    /// A file.
    pub(crate) fn file(path: &str, package: &'static str) -> Self {
        Self { package, present: Path::new(path).is_file() }
    }

    /// Something that the caller has looked for.
    pub(crate) fn found(present: bool, package: &'static str) -> Self {
        Self { package, present }
    }
}

/// Installs the packages of the tools that are not there.
///
/// # Errors
/// Without root rights or a Debian mirror, naming the packages.
pub(crate) fn install_missing(workspace: &Workspace, tools: &[Tool]) -> Result<()> {
    let missing: Vec<&str> =
        tools.iter().filter(|tool| !tool.present).map(|tool| tool.package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let suite = debian::release_name()?;
    let backports = format!("{suite}-backports");
    let security = format!("{suite}-security");
    let apt = process::step("fetching Debian's package lists", || {
        Apt::update(&workspace.target.join("packages"), None, &[&suite, &backports, &security])
    })?;
    process::step(&format!("installing {}", missing.join(" ")), || {
        apt.install(&backports, &missing)
    })
}
