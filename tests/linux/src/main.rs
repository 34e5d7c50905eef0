//! `pvmsi-linux-lab`: drives Linux guests in the lab's emulated hosts.

mod agent;
mod conductor;
mod packets;

use std::process::ExitCode;

const USAGE: &str = "\
usage: pvmsi-linux-lab agent            in a guest: do what the console asks for
       pvmsi-linux-lab conduct PLAN     in a host: run the guests of a plan (JSON), count, report";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["agent"] => agent::run(),
        ["conduct", plan] => conductor::run(plan.as_ref()),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
