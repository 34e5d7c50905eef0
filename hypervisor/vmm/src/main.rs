//! `pvmsi`: see the crate's documentation.

use std::process::ExitCode;

fn main() -> ExitCode {
    pvmsi::command_line::main(std::env::args_os())
}
