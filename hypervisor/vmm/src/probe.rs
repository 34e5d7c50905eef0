//! `pvmsi probe`: is this host ready, is this function eligible, and if not, what to change.

mod function;
mod host;

use std::fmt::Write as _;
use std::io::IsTerminal;

use pvmsi_protocol::FunctionId;
use serde::Serialize;

use crate::command_line::{ProbeArguments, Status};

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

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub(crate) struct Check {
    /// What was looked at.
    name: &'static str,
    /// Whether it is as it must be.
    ok: bool,
    /// What was found.
    found: String,
    /// What is wrong, for scripts; absent where nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<&'static str>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

/// How an architecture's kernel shows, by the names of its interrupt chips, whether the host's own interrupts are confined.
pub(crate) struct RemappingSigns {
    /// Starts of the names where they are.
    pub(crate) confined: &'static [&'static str],
    /// What that means.
    pub(crate) good: &'static str,
    /// Starts of the names where they are not.
    pub(crate) free: &'static [&'static str],
    /// What that means.
    pub(crate) bad: &'static str,
    /// What to do about it.
    pub(crate) remedy: &'static str,
}

impl Check {
    pub(crate) fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, ok: true, found: found.into(), problem: None, remedy: None }
    }

    pub(crate) fn bad(
        name: &'static str,
        problem: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (found, remedy) = (found.into(), Some(remedy.into()));
        Self { name, ok: false, found, problem: Some(problem), remedy }
    }
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
