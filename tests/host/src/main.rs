//! `pvmsi-host-lab`: the service with one function behind VFIO, in the emulated hosts and in place of a VMM.
//!
//! Nothing runs a guest here: this program does what a guest would do, and so knows exactly what
//! it has done when it looks at what the host's kernel has made of it.

mod bounded;
mod guest;
mod interrupts;
mod moving;

use std::process::ExitCode;

use anyhow::{Context, Result};

const USAGE: &str = "\
usage: pvmsi-host-lab bounded FUNCTION BOUND, as 0000:01:00.0 16
       pvmsi-host-lab moving FUNCTION SECONDS moved|pinned
       pvmsi-host-lab move FUNCTION SECONDS, beside a VMM that has the function";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result =
        match words.as_slice() {
            ["bounded", function, bound] => {
                number(bound).and_then(|bound| bounded::run(function, bound))
            }
            ["moving", function, seconds, "moved"] => number(seconds)
                .and_then(|seconds| moving::run(function, seconds, moving::Mode::Moved)),
            ["moving", function, seconds, "pinned"] => number(seconds)
                .and_then(|seconds| moving::run(function, seconds, moving::Mode::Pinned)),
            ["move", function, seconds] => {
                number(seconds).and_then(|seconds| moving::only_move(function, seconds))
            }
            _ => {
                eprintln!("{USAGE}");
                return ExitCode::from(2);
            }
        };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn number<T: std::str::FromStr<Err = std::num::ParseIntError>>(text: &str) -> Result<T> {
    text.parse().with_context(|| format!("{text} is no number that fits"))
}
