//! What becomes of `pvmsi` whose output nobody takes.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::Read as _;
use std::process::{Command, Output, Stdio};

/// What prints, and needs neither KVM nor a guest.
const COMMANDS: [&[&str]; 5] =
    [&["--help"], &["--version"], &["run", "--help"], &["probe"], &["probe", "--json"]];

fn pvmsi(arguments: &[&str], stdout: impl Into<Stdio>) -> Output {
    let program = env!("CARGO_BIN_EXE_pvmsi");
    Command::new(program).args(arguments).stdout(stdout).output().unwrap()
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
    let program = env!("CARGO_BIN_EXE_pvmsi");
    for (arguments, status) in [
        (&["run", "/absent/guest"][..], 2),
        (&["run", "--log", "=[", "guest"], 2),
        (&["run", "--no-such-option"], 2),
        (&["--version"], 0),
    ] {
        let mut command = Command::new(program);
        let mut child =
            command.args(arguments).stdout(Stdio::piped()).stderr(full()).spawn().unwrap();
        let mut printed = String::new();
        child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(status), "{arguments:?}");
    }
}
