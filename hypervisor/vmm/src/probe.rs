//! `pvmsi probe`: is this host ready, is this function eligible, and if not, what to change.

mod attach;
pub(crate) mod check;
mod driver;
mod forwarding;
mod function;
mod host;
mod in_use;
mod interrupts;

use std::fmt::Write as _;
use std::io::IsTerminal;

use pvmsi_hypervisor::HostPaths;
use pvmsi_protocol::FunctionId;
use serde::Serialize;

use crate::arguments::{ProbeArguments, Status};
use crate::output;
use check::Check;
use host::HostProbe;

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
    let probe = probe(&arguments.functions, &arguments.paths());
    let printed = if arguments.json {
        serde_json::to_string_pretty(&probe)
            .map_err(std::io::Error::from)
            .and_then(|json| output::print(&format!("{json}\n")))
    } else {
        output::print(&text(&probe, std::io::stdout().is_terminal()))
    };
    if let Err(error) = printed {
        output::complain(&format!("error: the result cannot be printed: {error}"));
        return Status::Host;
    }
    if probe.ready { Status::Success } else { Status::Failed }
}

/// Looks at the host and these functions; at all with MSI-X where none is named.
fn probe(functions: &[FunctionId], paths: &HostPaths) -> Probe {
    probe_on(host::probe(paths), functions, paths)
}

fn probe_on(mut host: HostProbe, functions: &[FunctionId], paths: &HostPaths) -> Probe {
    let all = functions.is_empty();
    let ids = if all { function::with_msix(paths) } else { functions.to_vec() };
    let found: Vec<_> = ids.into_iter().map(|id| (id, function::probe(id, paths, &host))).collect();
    let refused = found.iter().find(|(_, found)| found.isolated == Some(false));
    if let Some((id, _)) = refused
        && !found.iter().any(|(_, found)| found.isolated == Some(true))
    {
        host.isolation_was_refused(&id.to_string());
    }
    let host_ready = host.checks.iter().all(|check| check.ok);
    let functions: Vec<_> = found
        .into_iter()
        .map(|(id, function::Found { checks, .. })| {
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
            let (code, mark) = match (check.ok, check.problem) {
                (true, None) => (32, "ok"),
                (true, Some(_)) => (33, "!!"),
                (false, _) => (31, "NO"),
            };
            let mark = if colour { format!("\x1b[{code}m{mark}\x1b[0m") } else { mark.to_owned() };
            let _ = writeln!(text, "  {mark}  {:<18} {}", check.name, printable(&check.found));
            if let Some(remedy) = &check.remedy {
                let _ = writeln!(text, "      {:<18} -> {}", "", printable(remedy));
            }
            if let Some(undo) = &check.undo {
                let _ = writeln!(text, "      {:<18} <- to give it back: {}", "", printable(undo));
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

/// Names of mount points, disks and interfaces are not this program's: what a terminal would obey is left out.
fn printable(text: &str) -> String {
    text.replace(char::is_control, "?")
}

#[cfg(test)]
mod tests;
