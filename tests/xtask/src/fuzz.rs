//! `cargo xtask fuzz`: builds the fuzz targets with libFuzzer and runs them.
//!
//! The projects are laid out for cargo-fuzz, and it works with them; but it wants a nightly
//! toolchain, while coverage instrumentation does not: only a sanitizer takes an unstable flag. So
//! nothing is needed here beyond the toolchain that builds everything else, and a C++ compiler.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::architecture::Architecture;
use crate::process;
use crate::tools::{self, Tool};
use crate::workspace::{Workspace, cargo_in};

/// Bound of a build, and of what a run may take beyond its time.
const LIMIT: Duration = Duration::from_secs(1200);

/// Inputs that are longer say nothing new: a scenario has at most 64 events.
const INPUT_MAX: &str = "-max_len=2048";

/// What is instrumented: edges, and comparisons, which tell the fuzzer what the code looks for.
const INSTRUMENTATION: [&str; 6] = [
    "--cfg fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Options of `cargo xtask fuzz`.
#[derive(Args)]
pub(crate) struct Options {
    /// What to attack; everything in turn when not given.
    #[arg(value_enum)]
    target: Option<FuzzTarget>,
    /// How long each target runs.
    #[arg(long, default_value_t = 60, conflicts_with = "minutes")]
    seconds: u64,
    /// The same in minutes.
    #[arg(long)]
    minutes: Option<u64>,
    /// What watches the memory.
    #[arg(long, value_enum, default_value_t = Sanitizer::None)]
    sanitizer: Sanitizer,
    /// Afterwards, put a smallest set of inputs that covers all that was found into the repository.
    #[arg(long)]
    keep: bool,
}

/// A fuzz target.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FuzzTarget {
    /// Every decoder of the protocol.
    Wire,
    /// Sequences of calls with hostile memory.
    Calls,
    /// The vector table and its interrupts.
    Table,
    /// Configuration space.
    Config,
    /// Layouts of BARs, table and pending bits.
    Layout,
}

/// A sanitizer.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sanitizer {
    /// None: the fastest.
    None,
    /// AddressSanitizer.
    Address,
}

/// What a run has done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    executions: u64,
    covered: u64,
    edges: u64,
}

/// Runs what the options say; true when nothing was found.
///
/// # Errors
/// When a target cannot be built, or finds something.
pub(crate) fn command(workspace: &Workspace, options: &Options) -> Result<bool> {
    compiler(workspace)?;
    let minutes = options.minutes.map(|minutes| minutes.saturating_mul(60));
    let time = Duration::from_secs(minutes.unwrap_or(options.seconds));
    let all = FuzzTarget::ALL.into_iter();
    for target in all.filter(|&target| options.target.is_none_or(|wanted| wanted == target)) {
        let program = build(workspace, target, options.sanitizer)?;
        let outcome = run(workspace, target, &program, time)?;
        process::print(&format!("{}: {outcome}", target.name()));
        if options.keep {
            keep(workspace, target, &program)?;
        }
    }
    Ok(true)
}

/// The C++ compiler that builds libFuzzer.
///
/// # Errors
/// When it is missing and cannot be installed.
pub(crate) fn compiler(workspace: &Workspace) -> Result<()> {
    tools::install_missing(workspace, &[Tool::program("c++", "g++")])
        .context("libFuzzer needs a C++ compiler")
}

/// Builds a target and runs it for a time.
///
/// # Errors
/// When it cannot be built, or finds something.
pub(crate) fn smoke(workspace: &Workspace, target: FuzzTarget, time: Duration) -> Result<Outcome> {
    run(workspace, target, &build(workspace, target, Sanitizer::None)?, time)
}

fn build(workspace: &Workspace, target: FuzzTarget, sanitizer: Sanitizer) -> Result<PathBuf> {
    let (name, triple) = (target.name(), Architecture::native()?.linux());
    let folder = workspace.target.join("fuzz").join(sanitizer.name());
    let mut command = cargo_in(&target.project(workspace));
    let mut flags = INSTRUMENTATION.join(" ");
    if sanitizer == Sanitizer::Address {
        flags.push_str(" -Zsanitizer=address");
        // The flag is unstable; what it needs comes with every toolchain.
        command.env("RUSTC_BOOTSTRAP", "1");
    }
    command.env("RUSTFLAGS", flags);
    // With a target named, build scripts and macros are not instrumented.
    command.args(["build", "--quiet", "--locked", "--release", "--target", triple]);
    command.args(["--bin", name, "--target-dir"]).arg(&folder);
    process::step(&format!("building fuzz target {name}"), || {
        process::run("cargo build", &mut command, LIMIT)
    })?;
    Ok(folder.join(triple).join("release").join(name))
}

fn run(
    workspace: &Workspace,
    target: FuzzTarget,
    program: &Path,
    time: Duration,
) -> Result<Outcome> {
    let name = target.name();
    let (corpus, found) = (target.corpus(workspace), target.found(workspace));
    let artifacts = target.artifacts(workspace);
    for folder in [&corpus, &found, &artifacts] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let mut command = std::process::Command::new(program);
    // What is new goes into the first folder; both are where it starts from.
    command.arg(&found).arg(&corpus);
    command.args(["-print_final_stats=1", "-timeout=20", "-rss_limit_mb=2048", INPUT_MAX]);
    command.arg(format!("-max_total_time={}", time.as_secs()));
    command.arg(format!("-artifact_prefix={}/", artifacts.display()));
    let log = found.with_extension("log");
    let limit = time.saturating_add(LIMIT);
    process::step(&format!("fuzzing {name} for {} s", time.as_secs()), || {
        process::run_logged(name, &mut command, &log, limit, || None)
    })
    .with_context(|| {
        let (program, artifacts) = (program.display(), artifacts.display());
        format!("inputs that fail are in {artifacts}; to see one fail: {program} FILE")
    })?;
    Ok(Outcome::of_log(&fs::read_to_string(&log).unwrap_or_default()))
}

/// Replaces the corpus of the repository by the smallest inputs that cover the same and what was found since.
fn keep(workspace: &Workspace, target: FuzzTarget, program: &Path) -> Result<()> {
    let (corpus, found) = (target.corpus(workspace), target.found(workspace));
    let merged = found.with_extension("merged");
    let _ = fs::remove_dir_all(&merged);
    fs::create_dir_all(&merged)?;
    let mut command = std::process::Command::new(program);
    command.args(["-set_cover_merge=1", "-max_len=1024"]).arg(&merged).arg(&corpus).arg(&found);
    let log = merged.with_extension("merge.log");
    process::run_logged(target.name(), &mut command, &log, LIMIT, || None)?;
    fs::remove_dir_all(&corpus)?;
    fs::create_dir_all(&corpus)?;
    for input in fs::read_dir(&merged)? {
        let input = input?;
        fs::copy(input.path(), corpus.join(input.file_name()))?;
    }
    Ok(())
}

impl FuzzTarget {
    /// All of them, the fastest first.
    pub(crate) const ALL: [Self; 5] =
        [Self::Wire, Self::Layout, Self::Config, Self::Table, Self::Calls];

    /// As it is typed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Wire => "wire",
            Self::Calls => "calls",
            Self::Table => "table",
            Self::Config => "config",
            Self::Layout => "layout",
        }
    }

    /// The cargo-fuzz project, beside what it attacks.
    fn project(self, workspace: &Workspace) -> PathBuf {
        workspace.root.join(if self == Self::Wire { PROJECTS[0] } else { PROJECTS[1] })
    }

    /// The inputs that the repository keeps.
    fn corpus(self, workspace: &Workspace) -> PathBuf {
        self.project(workspace).join("corpus").join(self.name())
    }

    /// The inputs that runs on this machine have found.
    fn found(self, workspace: &Workspace) -> PathBuf {
        workspace.target.join("fuzz/corpus").join(self.name())
    }

    /// Inputs that end in a crash.
    fn artifacts(self, workspace: &Workspace) -> PathBuf {
        workspace.target.join("fuzz/artifacts").join(self.name())
    }
}

/// The folders of the cargo-fuzz projects: of the protocol, and of the host service.
pub(crate) const PROJECTS: [&str; 2] = ["protocol/fuzz", "hypervisor/fuzz"];

impl Sanitizer {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Address => "address",
        }
    }
}

impl Outcome {
    /// Reads what libFuzzer has printed.
    fn of_log(log: &str) -> Self {
        let number = |text: &str| text.split_whitespace().next()?.parse().ok();
        let last = |mark: &str| {
            log.lines().rev().find_map(|line| number(line.split_once(mark)?.1)).unwrap_or(0)
        };
        Self {
            executions: last("stat::number_of_executed_units:"),
            covered: last(" cov: "),
            edges: log
                .lines()
                .find_map(|line| {
                    number(line.split_once("INFO: Loaded 1 modules")?.1.split_once('(')?.1)
                })
                .unwrap_or(0),
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { executions, covered, edges } = self;
        write!(f, "{executions} executions, {covered} of {edges} edges covered, nothing found")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_what_libfuzzer_prints() {
        let log = "INFO: Loaded 1 modules   (7001 inline 8-bit counters): 7001 [0x1, 0x2),\n\
            #2\tINITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 27Mb\n\
            #900\tDONE   cov: 402 ft: 1129 corp: 222/53Kb lim: 2048 exec/s: 55592 rss: 29Mb\n\
            stat::number_of_executed_units: 900\n";
        let outcome = Outcome { executions: 900, covered: 402, edges: 7001 };
        assert_eq!(Outcome::of_log(log), outcome);
    }
}
