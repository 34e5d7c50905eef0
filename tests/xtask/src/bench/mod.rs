//! `cargo xtask bench`: what the operations of both halves cost, beside the standard table.
//!
//! | part | counts |
//! |---|---|
//! | `program` | builds and runs `pvmsi-bench`, which does the operations |
//! | `callgrind`, `lackey` | what valgrind says of them |
//! | `report` | rows, as a table and as JSON |
//! | `bounds` | the most that they may be |
//! | `plot` | cost against vectors |
//! | `compare` | the same of another revision |

mod bounds;
mod callgrind;
mod compare;
mod lackey;
mod plot;
mod program;
mod report;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

pub(crate) use self::program::valgrind;
use self::program::{Extent, Program};
use self::report::{Count, Part, Report, Side};
use crate::architecture::Architecture;
use crate::check::{self, Check};
use crate::demo;
use crate::process;
use crate::shim;
use crate::workspace::Workspace;

/// Options of `cargo xtask bench`.
#[derive(Args)]
pub(crate) struct Options {
    /// Print one JSON object on stdout (schema pvmsi.bench/1).
    #[arg(long)]
    json: bool,
    /// Run another revision's own bench as well, and show it side by side; what it lacks is shown
    /// as missing. Anything that `git rev-parse` knows.
    #[arg(long, value_name = "REV")]
    compare: Option<String>,
    /// Fail where a row is over its bound in tests/bench/bounds.txt.
    #[arg(long)]
    check: bool,
    /// Count with 1, 2, 4 ... 2048 vectors as well, and draw it (SVG); without FILE the plot of the
    /// README.
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    plot: Option<Option<PathBuf>>,
}

/// Counts all and prints it.
///
/// # Errors
/// When the operations cannot be built, or the other revision is none.
pub(crate) fn command(workspace: &Workspace, options: &Options) -> Result<bool> {
    // Found out before the long part.
    let revision = options
        .compare
        .as_deref()
        .map(|name| compare::Revision::find(workspace, name))
        .transpose()?;
    let extent = if options.plot.is_some() { Extent::Series } else { Extent::Rows };
    let mut report = count(workspace, extent, Holds::Timed)?;
    if let Some(revision) = revision {
        let other = process::step(&format!("the bench of {}", revision.name), || {
            Ok(revision.bench(workspace))
        })?;
        report.compare_with(&revision.name, other);
    }
    process::print(&if options.json { report.to_json()? } else { report.to_string() });
    if let Some(file) = &options.plot {
        let file = file.clone().unwrap_or_else(|| workspace.root.join(PLOT));
        plot::draw(&report.series, &file)?;
        eprintln!("    {}", file.display());
    }
    Ok(!options.check || check::print("bench", &bounds::checks(workspace, &report)?))
}

/// What must hold of all counts; times are left out.
///
/// # Errors
/// When the operations cannot be built.
pub(crate) fn checks(workspace: &Workspace) -> Result<Vec<Check>> {
    let report = count(workspace, Extent::Rows, Holds::LeftOut)?;
    eprintln!("{report}");
    bounds::checks(workspace, &report)
}

/// The plot that the README shows, beside it.
const PLOT: &str = "cost.svg";

/// Whether the exits of a bounded `configure` are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Timed,
    LeftOut,
}

/// Counts all. A part that cannot be counted here is missing from the rows, with the reason.
fn count(workspace: &Workspace, extent: Extent, holds: Holds) -> Result<Report> {
    let program = Program::build(workspace)?;
    let mut report = Report::new();
    let mut part = |part, what: &str, count: &dyn Fn() -> Result<Vec<Count>>| {
        let counts = process::step(what, || Ok(count()));
        report.add(part, counts.and_then(|counts| counts));
    };
    part(Part::Instructions, "counting instructions (callgrind)", &|| {
        program.instructions(workspace, extent)
    });
    part(Part::Accesses, "counting accesses to the vector table (lackey)", &|| {
        program.accesses(workspace)
    });
    part(Part::Counts, "counting exits and requests", &|| program.counts(extent));
    if holds == Holds::Timed {
        part(Part::Holds, "timing the exits of a bounded configure (/dev/kvm)", &|| {
            match demo::kvm_missing() {
                Some(why) => Err(anyhow::Error::msg(why)),
                None => program.holds(),
            }
        });
    }
    part(Part::Shim, "weighing the guest half for C kernels", &|| shim_sizes(workspace));
    Ok(report)
}

fn shim_sizes(workspace: &Workspace) -> Result<Vec<Count>> {
    let sizes = shim::text_sizes(workspace, Architecture::native()?)?;
    let rows = [("shim.c.text", sizes.whole), ("shim.c.text_minimal", sizes.minimal)];
    Ok(rows
        .into_iter()
        .map(|(name, bytes)| Count::whole(name, Side::PvMsi, "bytes", bytes))
        .collect())
}

/// The folder for what the bench writes.
fn folder(workspace: &Workspace) -> PathBuf {
    workspace.target.join("bench")
}
