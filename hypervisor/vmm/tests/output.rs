//! What becomes of `pvmsi` whose output nobody takes.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::Read as _;
use std::process::{Command, Output, Stdio};

/// What prints, and needs neither KVM nor a guest.
const COMMANDS: [&[&str]; 5] =
    [&["--help"], &["--version"], &["run", "--help"], &["probe"], &["probe", "--json"]];

/// The program, by the runner that cargo has for tests of another architecture.
fn program() -> Command {
    let program = env!("CARGO_BIN_EXE_pvmsi");
    let runner = std::env::var(RUNNER).unwrap_or_default();
    let mut words = runner.split_whitespace().chain([program]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    command
}

#[cfg(target_arch = "x86_64")]
const RUNNER: &str = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER";
#[cfg(target_arch = "aarch64")]
const RUNNER: &str = "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER";

fn pvmsi(arguments: &[&str], stdout: impl Into<Stdio>) -> Output {
    program().args(arguments).stdout(stdout).output().unwrap()
}

/// A pipe that nobody reads.
fn closed() -> Stdio {
    let (_, writer) = std::io::pipe().unwrap();
    writer.into()
}

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

#[test]
fn a_closed_output_is_quiet() {
    for arguments in COMMANDS {
        let expected = pvmsi(arguments, Stdio::null()).status;
        // The program itself has ended.
        assert!(expected.code().is_some_and(|code| code < 4), "{expected}");
        let output = pvmsi(arguments, closed());
        assert_eq!(output.status, expected, "{arguments:?}: {output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
    }
}

#[test]
fn a_full_output_is_an_error() {
    for arguments in COMMANDS {
        let output = pvmsi(arguments, full());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{arguments:?}: {said}");
        assert!(said.starts_with("error: ") && said.contains("No space left"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn a_full_standard_error_changes_no_status() {
    for (arguments, status) in [
        (&["run", "/absent/guest"][..], 2),
        (&["run", "--log", "=[", "guest"], 2),
        (&["run", "--no-such-option"], 2),
        (&["--version"], 0),
    ] {
        let mut command = program();
        let mut child =
            command.args(arguments).stdout(Stdio::piped()).stderr(full()).spawn().unwrap();
        let mut printed = String::new();
        child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(status), "{arguments:?}");
    }
}
