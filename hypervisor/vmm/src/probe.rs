//! `pvmsi probe`: is this host ready, is this function eligible, and if not, what to change.

pub(crate) mod check;
mod function;
mod host;

use std::fmt::Write as _;
use std::io::IsTerminal;

use pvmsi_protocol::FunctionId;
use serde::Serialize;

use crate::arguments::{ProbeArguments, Status};
use check::Check;

/// The schema of `pvmsi probe --json`.
const PROBE_SCHEMA: &str = "pvmsi.probe/1";

/// All that was found.
#[derive(Debug, Serialize)]
struct Probe {
    schema: &'static str,
    /// Whether direct mode is possible for all that was asked about.
    ready: bool,
    host: Vec<Check>,
    functions: Vec<FunctionProbe>,
}

/// What was found of a function.
#[derive(Debug, Serialize)]
struct FunctionProbe {
    id: String,
    /// Whether its table can be direct, as far as the function itself is concerned.
    ready: bool,
    checks: Vec<Check>,
}

/// Runs `pvmsi probe`.
pub(crate) fn command(arguments: &ProbeArguments) -> Status {
    let probe = probe(arguments);
    if arguments.json {
        match serde_json::to_string_pretty(&probe) {
            Ok(json) => println!("{json}"),
            Err(error) => {
                eprintln!("pvmsi: the result cannot be written as JSON: {error}");
                return Status::Failed;
            }
        }
    } else {
        print!("{}", text(&probe, std::io::stdout().is_terminal()));
    }
    if probe.ready { Status::Success } else { Status::Failed }
}

fn probe(arguments: &ProbeArguments) -> Probe {
    let host = host::probe(&arguments.sysfs, &arguments.dev);
    let host_ready = host.checks.iter().all(|check| check.ok);
    let all = arguments.functions.is_empty();
    let ids: Vec<FunctionId> =
        if all { function::with_msix(&arguments.sysfs) } else { arguments.functions.clone() };
    let functions: Vec<_> = ids
        .into_iter()
        .map(|id| {
            let checks = function::probe(id, &arguments.sysfs, &arguments.dev, &host);
            let ready = checks.iter().all(|check| check.ok);
            FunctionProbe { id: id.to_string(), ready, checks }
        })
        .collect();
    let ready = host_ready && (all || functions.iter().all(|function| function.ready));
    Probe { schema: PROBE_SCHEMA, ready, host: host.checks, functions }
}

fn text(probe: &Probe, colour: bool) -> String {
    let mut text = String::new();
    let mut section = |title: &str, checks: &[Check]| {
        // Writing into a string does not fail.
        let _ = writeln!(text, "{title}");
        for check in checks {
            let (code, mark) = if check.ok { (32, "ok") } else { (31, "NO") };
            let mark = if colour { format!("\x1b[{code}m{mark}\x1b[0m") } else { mark.to_owned() };
            let _ = writeln!(text, "  {mark}  {:<18} {}", check.name, check.found);
            if let Some(remedy) = &check.remedy {
                let _ = writeln!(text, "      {:<18} -> {remedy}", "");
            }
        }
    };
    section("host", &probe.host);
    for function in &probe.functions {
        section(&function.id, &function.checks);
    }
    let verdict = match (probe.ready, probe.functions.is_empty()) {
        (true, true) => "this host is ready; no function has MSI-X",
        (true, false) => "direct mode is possible",
        (false, _) => "direct mode is not possible as things are",
    };
    let _ = writeln!(text, "{verdict}");
    text
}

#[cfg(test)]
mod tests;
