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
        Ok(lines.into_iter().zip(totals).map(|(line, total)| line.counted(total)).collect())
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
        bail!("{what} of pvmsi-bench: {status}");
    }
    Ok(text)
}
