//! `cargo xtask module`: the Linux guest module, for kernels as Debian builds them.
//!
//! The modules are `module/<architecture>/<kernel release>/pvmsi.ko` in the build folder.

mod build;
mod kernel;
mod root;
mod style;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use self::kernel::Headers;
pub(crate) use self::kernel::Series;
use self::root::Root;
use crate::architecture::Architecture;
use crate::check::{self, Check};
use crate::workspace::Workspace;

/// Options of `cargo xtask module`.
#[derive(Args)]
pub(crate) struct Options {
    /// The kernel: 6.1, 6.12, newest, or a release such as 6.12.118+deb13-amd64; all series when
    /// not given.
    #[arg(long)]
    kernel: Vec<Series>,
    /// Its architecture; all when not given.
    #[arg(long, value_enum)]
    architecture: Vec<Architecture>,
    /// Run sparse and checkpatch.pl as well.
    #[arg(long)]
    check: bool,
}

/// Builds the module, and checks it where asked; true when every check holds.
///
/// # Errors
/// When something that the builds need cannot be had.
pub(crate) fn command(workspace: &Workspace, options: &Options) -> Result<bool> {
    let or_all = |given: &[Series]| if given.is_empty() { Series::all() } else { given.to_vec() };
    let architectures = if options.architecture.is_empty() {
        Architecture::ALL.to_vec()
    } else {
        options.architecture.clone()
    };
    let mut checks = Vec::new();
    for architecture in architectures {
        for series in or_all(&options.kernel) {
            checks.extend(build_checks(workspace, architecture, &series, options.check)?);
        }
    }
    if options.check {
        checks.push(style::check(workspace)?);
    }
    Ok(check::print("module", &checks))
}

/// Builds for one kernel; the path of the module.
///
/// # Errors
/// When something that the build needs cannot be had, or the build fails or warns.
pub(crate) fn build(
    workspace: &Workspace,
    architecture: Architecture,
    series: &Series,
) -> Result<PathBuf> {
    let root = Root::prepare(workspace)?;
    let headers = Headers::prepare(workspace, &root, architecture, series)?;
    build::compile(workspace, &root, architecture, &headers)
}

/// Builds for one kernel; what must hold of it.
///
/// # Errors
/// When something that the build needs cannot be had.
pub(crate) fn build_checks(
    workspace: &Workspace,
    architecture: Architecture,
    series: &Series,
    analyse: bool,
) -> Result<Vec<Check>> {
    let root = Root::prepare(workspace)?;
    let headers = Headers::prepare(workspace, &root, architecture, series)?;
    let name = format!("{}, {}", architecture.name(), headers.release);
    let built = build::compile(workspace, &root, architecture, &headers);
    let mut checks = vec![Check::new(
        &format!("{name}: builds without a warning"),
        built.map(|_| ()).map_err(|error| format!("{error:#}")),
    )];
    if analyse {
        match build::analyse(workspace, &root, architecture, &headers) {
            Ok(true) => checks.push(Check::new(&format!("{name}: sparse finds nothing"), Ok(()))),
            Ok(false) => eprintln!("    {name}: wants a newer sparse than Debian has; not run"),
            Err(error) => checks.push(Check::new(
                &format!("{name}: sparse finds nothing"),
                Err(format!("{error:#}")),
            )),
        }
    }
    Ok(checks)
}
