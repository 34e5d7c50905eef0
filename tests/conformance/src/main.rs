//! `pvmsi-conformance`: the conformance suite on the halves of this repository.
//!
//! Exit status: 0 all is well, 1 a test failed or a mutant survives, 2 wrong usage.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use pvmsi_conformance::guest::GuestFactory;
use pvmsi_conformance::guest::linux::LinuxGuest;
use pvmsi_conformance::guest::ours::OurGuest;
use pvmsi_conformance::guest::reader::ReadersGuest;
use pvmsi_conformance::host::ours::OurHost;
use pvmsi_conformance::{
    ExpectedFailures, Selection, Target, clauses, excuses, format, matrix, mutants, run, tests,
};

/// Conformance suite of PV-MSI, on the halves of this repository.
#[derive(Parser)]
#[command(version)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists the tests, each with the clauses that it tests.
    List {
        /// List the clauses instead, each with the tests that test it, or why none does.
        #[arg(long)]
        clauses: bool,
    },
    /// Runs tests.
    Run {
        /// Chapters (number or name), clauses, or tests; all when there is none.
        selection: Vec<String>,
        /// Only tests of this half.
        #[arg(long)]
        target: Option<TargetArgument>,
        /// Which guest half.
        #[arg(long, default_value = "ours")]
        guest: GuestArgument,
        /// A skipped test, and an expected failure that passes, are failures.
        #[arg(long)]
        strict: bool,
        /// The form of the report.
        #[arg(long, default_value = "text")]
        format: Format,
        /// Tests that are known to fail: lines `test-name: reason`.
        #[arg(long, value_name = "FILE")]
        expected_failures: Option<PathBuf>,
    },
    /// Runs all tests and prints clause × test × target × result, as the specification has it.
    Matrix,
    /// Proves the tests: runs them on halves that are wrong in one thing each.
    Mutants,
}

#[derive(Clone, Copy, ValueEnum)]
enum TargetArgument {
    Host,
    Guest,
}

#[derive(Clone, Copy, ValueEnum)]
enum GuestArgument {
    /// `pvmsi-guest`.
    Ours,
    /// The one in C that was written from the specification alone.
    Reader,
    /// The wire layer of the Linux module, in C.
    Linux,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Tap,
    Junit,
    Json,
}

/// Wrong usage that the parser of the command line cannot see.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let CommandLine { command } = CommandLine::parse();
    match execute(command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(USAGE)
        }
    }
}

/// Whether all is well.
fn execute(command: Command) -> Result<bool> {
    match command {
        Command::List { clauses: false } => print(&list_tests()),
        Command::List { clauses: true } => print(&list_clauses()),
        Command::Run { selection, target, guest, strict, format, expected_failures } => {
            let target = target.map(|target| match target {
                TargetArgument::Host => Target::Host,
                TargetArgument::Guest => Target::Guest,
            });
            let selection = Selection::parse(&selection, target)?;
            let expected = expected_failures.map(|file| read(&file)).transpose()?;
            let guest: &dyn GuestFactory = match guest {
                GuestArgument::Ours => &OurGuest,
                GuestArgument::Reader => &ReadersGuest,
                GuestArgument::Linux => &LinuxGuest,
            };
            return run_tests(guest, &selection, &expected.unwrap_or_default(), strict, format);
        }
        Command::Matrix => print(&matrix(&run(&OurHost, &OurGuest, &Selection::default()))),
        Command::Mutants => return Ok(hunt()),
    }
    Ok(true)
}

fn read(file: &PathBuf) -> Result<ExpectedFailures> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    ExpectedFailures::parse(&text).with_context(|| file.display().to_string())
}

/// Whoever reads may have seen enough, and closed the pipe: no reason to fail.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn list_tests() -> String {
    tests().iter().fold(String::new(), |mut list, test| {
        let (target, clauses) = (test.target().name(), test.clauses.join(" "));
        let _ = writeln!(list, "{target:5}  {:48}  {clauses}", test.name);
        list
    })
}

fn list_clauses() -> String {
    let (tests, excuses) = (tests(), excuses());
    clauses().iter().fold(String::new(), |mut list, clause| {
        let _ = writeln!(list, "{clause}");
        for test in tests.iter().filter(|test| test.clauses.contains(&clause.id)) {
            let _ = writeln!(list, "    {}: {}", test.target().name(), test.name);
        }
        if let Some(excuse) = excuses.iter().find(|excuse| excuse.clause == clause.id) {
            let _ = writeln!(list, "    no test: {}", excuse.reason);
        }
        list
    })
}

fn run_tests(
    guest: &dyn GuestFactory,
    selection: &Selection,
    expected: &ExpectedFailures,
    strict: bool,
    form: Format,
) -> Result<bool> {
    let report = run(&OurHost, guest, selection);
    print(&match form {
        Format::Text => format::text(&report, expected),
        Format::Tap => format::tap(&report, expected),
        Format::Junit => format::junit(&report, expected)?,
        Format::Json => format::json(&report, expected)?,
    });
    Ok(report.is_good(expected, strict))
}

/// Whether every mutant was caught.
fn hunt() -> bool {
    let (mut caught, mut total) = (0_usize, 0_usize);
    for mutant in mutants::hunt() {
        total = total.saturating_add(1);
        let (target, name) = (mutant.target.name(), &mutant.name);
        match &mutant.caught {
            Some((test, _)) => {
                caught = caught.saturating_add(1);
                print(&format!("{target:5}  {name:42}  caught by {test}\n"));
            }
            None => print(&format!("{target:5}  {name:42}  SURVIVES\n")),
        }
    }
    print(&format!("{caught} / {total}\n"));
    caught == total
}
