//! `pvmsi-bench`: does the operations, and says in which order.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::report::{Count, Side};
use super::{callgrind, folder, lackey};
use crate::architecture::Architecture;
use crate::process;
use crate::tools::{self, Tool};
use crate::workspace::{Profile, Workspace};

/// Bound of a run: under valgrind everything takes some fifty times as long.
const LIMIT: Duration = Duration::from_secs(600);

/// The program.
pub(super) struct Program {
    path: PathBuf,
}

/// How much is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// What the rows need.
    Rows,
    /// What the plot needs as well.
    Series,
}

/// A line that it prints: a count, or the place of one that valgrind makes.
#[derive(Deserialize)]
struct Line {
    name: String,
    side: Side,
    unit: String,
    vectors: u16,
    per: u16,
    value: Option<f64>,
}

impl Program {
    /// Builds it, optimised.
    ///
    /// # Errors
    /// When the build fails.
    pub(super) fn build(workspace: &Workspace) -> Result<Self> {
        process::step("building pvmsi-bench", || {
            let mut command = workspace.cargo();
            command.args(["build", "--quiet", "--release", "--locked", "--package", "pvmsi-bench"]);
            process::run("cargo build", &mut command, Duration::from_secs(1200))
        })?;
        let path = workspace.program(Architecture::native()?, Profile::Release, "pvmsi-bench")?;
        Ok(Self { path })
    }

    /// Instructions of the operations.
    ///
    /// # Errors
    /// When valgrind cannot be had, or an operation fails.
    pub(super) fn instructions(&self, workspace: &Workspace, extent: Extent) -> Result<Vec<Count>> {
        let folder = folder(workspace).join("callgrind");
        let arguments = [&["instructions"], extent.arguments()].concat();
        let text = self.under(workspace, &callgrind::arguments(&folder)?, &arguments)?;
        let lines = lines(&text)?;
        let totals = callgrind::totals(&folder, lines.len())?;
        let counts = lines.into_iter().zip(totals).map(|(line, total)| line.counted(total));
        let (exits, mut counts): (Vec<_>, Vec<_>) =
            counts.partition(|count| count.name == BOUNDED_EXIT);
        counts.extend(bounded(&exits));
        Ok(counts)
    }

    /// Loads and stores of the vector table by the guest half.
    ///
    /// # Errors
    /// As [`instructions`](Self::instructions).
    pub(super) fn accesses(&self, workspace: &Workspace) -> Result<Vec<Count>> {
        let trace = folder(workspace).join("accesses.trace");
        fs::create_dir_all(folder(workspace))?;
        let text = self.under(workspace, &lackey::arguments(&trace), &["accesses"])?;
        let (places, rest) = text.split_once('\n').context("pvmsi-bench printed nothing")?;
        let places = serde_json::from_str(places).context("pvmsi-bench printed no places")?;
        let accesses = lackey::read(&trace, &places)?;
        // It is large, and everything in it is counted.
        fs::remove_file(&trace)?;
        let lines = lines(rest)?;
        if lines.len() != accesses.len() {
            bail!("{} operations, {} in lackey's trace", lines.len(), accesses.len());
        }
        Ok(lines
            .iter()
            .zip(accesses)
            .flat_map(|(line, accesses)| {
                [("table_reads", accesses.reads), ("table_writes", accesses.writes)].map(
                    |(what, count)| {
                        Count::whole(&format!("{}.{what}", line.name), line.side, &line.unit, count)
                    },
                )
            })
            .collect())
    }

    /// What it counts by itself.
    ///
    /// # Errors
    /// When an operation fails.
    pub(super) fn counts(&self, extent: Extent) -> Result<Vec<Count>> {
        self.own("counts", extent)
    }

    /// How long the exits of a bounded `configure` take on this machine's KVM.
    ///
    /// # Errors
    /// When the machine cannot do it.
    pub(super) fn holds(&self) -> Result<Vec<Count>> {
        self.own("holds", Extent::Rows)
    }

    fn own(&self, what: &str, extent: Extent) -> Result<Vec<Count>> {
        let mut command = Command::new(&self.path);
        let text = output(what, command.arg(what).args(extent.arguments()))?;
        lines(&text)?.into_iter().map(Line::own).collect()
    }

    /// Runs it under valgrind, which is installed where it is missing.
    fn under(&self, workspace: &Workspace, arguments: &[String], what: &[&str]) -> Result<String> {
        valgrind(workspace)?;
        let mut command = Command::new("valgrind");
        command.arg("--quiet").args(arguments).arg(&self.path).args(what);
        output("valgrind", &mut command)
    }
}

impl Extent {
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Rows => &[],
            Self::Series => &["--sweep"],
        }
    }
}

impl Line {
    /// With the count that valgrind has made of it.
    fn counted(self, total: u64) -> Count {
        let value = as_number(total) / f64::from(self.per.max(1));
        Count { name: self.name, side: self.side, unit: self.unit, vectors: self.vectors, value }
    }

    fn own(self) -> Result<Count> {
        let value = self.value.with_context(|| format!("{} has no value", self.name))?;
        let Self { name, side, unit, vectors, .. } = self;
        Ok(Count { name, side, unit, vectors, value })
    }
}

/// The exits of one `configure`, each counted by itself.
const BOUNDED_EXIT: &str = "host.bounded_configure.exit";

/// How many there are, and the share of the largest.
fn bounded(exits: &[Count]) -> Vec<Count> {
    let values = || exits.iter().map(|exit| exit.value);
    let all: f64 = values().sum();
    let value = values().fold(0.0, f64::max) / all;
    let row = |what: &str, unit: &str, value| Count {
        name: format!("host.bounded_configure.{what}"),
        side: Side::PvMsi,
        unit: unit.to_owned(),
        vectors: 0,
        value,
    };
    let exits = u64::try_from(exits.len()).map_or(f64::MAX, as_number);
    let rows = vec![row("exits", "exits", exits), row("largest_share", "share", value)];
    // Nothing can be said of a call that was not made.
    if all > 0.0 { rows } else { Vec::new() }
}

/// Installs valgrind where it is missing.
///
/// # Errors
/// When it cannot be had.
pub(crate) fn valgrind(workspace: &Workspace) -> Result<()> {
    tools::install_missing(workspace, &[Tool::program("valgrind", "valgrind")])
}

/// Counts here are far below 2^53, up to which they are exact.
#[expect(clippy::cast_precision_loss, reason = "see above")]
pub(super) fn as_number(count: u64) -> f64 {
    count as f64
}

fn lines(text: &str) -> Result<Vec<Line>> {
    text.lines()
        .map(|line| {
            serde_json::from_str(line).with_context(|| format!("pvmsi-bench printed: {line}"))
        })
        .collect()
}

fn output(what: &str, command: &mut Command) -> Result<String> {
    let (status, text) = process::capture(what, command, LIMIT, false)?;
    if !status.success() {
        bail!("{what} of pvmsi-bench: {status}; why is said above");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_program_are_read() {
        let text = r#"{"name":"a","side":"pv_msi","unit":"instructions","vectors":8,"per":4}
{"name":"b","side":"standard","unit":"exits","vectors":1,"per":1,"value":3.0}"#;
        let [counted, own] = <[Line; 2]>::try_from(lines(text).unwrap()).ok().unwrap();
        let counted = counted.counted(10);
        assert_eq!((counted.value, counted.side), (2.5, Side::PvMsi));
        assert_eq!(own.own().unwrap().value, 3.0);
        assert!(lines("thread panicked").is_err());
    }

    #[test]
    fn a_line_without_the_count_that_it_must_have_is_refused() {
        let text = r#"{"name":"a","side":"pv_msi","unit":"exits","vectors":8,"per":4}"#;
        assert!(lines(text).unwrap().pop().unwrap().own().is_err());
    }

    #[test]
    fn the_largest_exit_is_a_share_of_all() {
        let exits = [10, 70, 20].map(|total| Count::whole(BOUNDED_EXIT, Side::PvMsi, "", total));
        let values: Vec<_> = bounded(&exits).into_iter().map(|count| count.value).collect();
        assert_eq!(values, [3.0, 0.7]);
        assert_eq!(bounded(&[]), []);
    }
}
