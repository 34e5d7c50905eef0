//! `cargo xtask demo`: the main job on this machine's KVM, with the software function.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use crate::architecture::Architecture;
use crate::check::{self, Check};
use crate::process;
use crate::report::{Function, Report};
use crate::workspace::Workspace;

/// Bound of the whole run.
const LIMIT: Duration = Duration::from_secs(300);

/// Events that must have been raised for the interrupt figures to count.
const LEAST_EVENTS: u64 = 100_000;

/// Vectors of the function whose figures are checked.
const VECTORS: u16 = 2048;

/// A figure that is promised of a function.
type Promise = fn(&Function) -> Result<(), String>;

/// Options of `cargo xtask demo`.
#[derive(Args)]
pub(crate) struct Options {
    /// Print the report as one JSON object on stdout.
    #[arg(long)]
    json: bool,
    /// Vectors of the large function.
    #[arg(long, default_value_t = VECTORS, value_parser = clap::value_parser!(u16).range(1..=2048))]
    vectors: u16,
    /// More arguments for `pvmsi run`, after `--`.
    #[arg(last = true)]
    extra: Vec<String>,
}

/// Runs it; false when `pvmsi run` says that the run has failed.
///
/// # Errors
/// Without KVM, or when a build fails.
pub(crate) fn command(workspace: &Workspace, options: &Options) -> Result<bool> {
    if let Some(why) = kvm_missing() {
        bail!(
            "{why}\nThe same can be seen without it, in an emulated host with its own KVM: \
             cargo xtask lab x86_64, or cargo xtask lab aarch64"
        );
    }
    let pvmsi = workspace.build_pvmsi(Architecture::native()?)?;
    let format = if options.json { "json" } else { "text" };
    let mut command = run_command(&pvmsi, options.vectors, format);
    command.args(&options.extra);
    let (status, text) = process::step("running the demo guest", || {
        process::capture("pvmsi run", &mut command, LIMIT, false)
    })?;
    process::print(&text);
    if !status.success() {
        eprintln!("error: pvmsi run: {status}");
    }
    Ok(status.success())
}

/// Why this machine's KVM cannot be used.
pub(crate) fn kvm_missing() -> Option<String> {
    let error = OpenOptions::new().read(true).write(true).open("/dev/kvm").err()?;
    Some(match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            "/dev/kvm is there, but not for this user: add the user to the group kvm, log in again"
                .to_owned()
        }
        _ => format!("this machine has no usable /dev/kvm: {error}"),
    })
}

/// Runs the demo and checks the figures that the project promises.
///
/// # Errors
/// When the run does not come to an end.
pub(crate) fn checks(pvmsi: &Path) -> Result<Vec<Check>> {
    let (status, text) =
        process::capture("pvmsi run", &mut run_command(pvmsi, VECTORS, "json"), LIMIT, false)?;
    let mut checks = vec![Check::new(
        "run succeeds",
        status.success().then_some(()).ok_or_else(|| format!("pvmsi run: {status}")),
    )];
    let report = match Report::read(&text) {
        Ok(report) => report,
        Err(error) => {
            checks.push(Check::new("report", Err(error)));
            return Ok(checks);
        }
    };
    eprintln!("{report}");
    checks.extend(promises(&report));
    Ok(checks)
}

fn promises(report: &Report) -> Vec<Check> {
    let large = report
        .functions
        .iter()
        .find(|function| function.vectors == u64::from(VECTORS))
        .ok_or_else(|| format!("the report has no function of {VECTORS} vectors"));
    let named: [(&str, Promise); 5] = [
        (
            "2048 vectors can fire after one call, one routing update, one set-up, and fewer exits than legacy",
            configure,
        ),
        ("direct table and its neighbour cost no exit", free),
        ("legacy table costs two exits a pair, its neighbour one a write", legacy),
        ("no interrupt lost, spurious or while masked", interrupts),
        ("time is saved", faster),
    ];
    named
        .into_iter()
        .map(|(name, promise)| {
            let result =
                large.as_ref().map_err(Clone::clone).and_then(|function| promise(function));
            Check::new(name, result)
        })
        .collect()
}

fn run_command(pvmsi: &Path, vectors: u16, format: &str) -> Command {
    let mut command = Command::new(pvmsi);
    command
        .args(["run", "--cpus", "2", "--report", format])
        .arg("--function")
        .arg(format!("software:vectors={vectors}"))
        .args(["--function", "software:vectors=64"]);
    command
}

fn configure(function: &Function) -> Result<(), String> {
    let phase = function.phase("direct")?;
    check::configured_in_one_go(phase)?;
    let granted = phase.configure.as_ref().map_or(0, |configure| configure.granted);
    check::equal("configure.granted", granted, function.vectors)?;
    check::set_up_with_fewer_exits(function.phase("legacy")?, phase)
}

fn free(function: &Function) -> Result<(), String> {
    let phase = function.phase("direct")?;
    phase.neighbour.as_ref().ok_or("no neighbour section")?;
    check::table_is_free(phase)
}

fn legacy(function: &Function) -> Result<(), String> {
    let phase = function.phase("legacy")?;
    check::table_exits(phase)?;
    let neighbour = phase.neighbour.as_ref().ok_or("no neighbour section")?;
    check::at_least("neighbour.exits", neighbour.exits, neighbour.writes)
}

fn interrupts(function: &Function) -> Result<(), String> {
    for mode in ["legacy", "direct"] {
        let phase = function.phase(mode)?;
        check::interrupts_arrived(phase).map_err(|error| format!("{mode}: {error}"))?;
    }
    let interrupts =
        function.phase("direct")?.interrupts.as_ref().ok_or("no interrupts section")?;
    check::at_least("interrupts.raised", interrupts.raised, LEAST_EVENTS)?;
    check::equal("interrupts.observed", interrupts.observed, interrupts.raised)
}

fn faster(function: &Function) -> Result<(), String> {
    let time = |mode: &str| -> Result<f64, String> {
        Ok(function.phase(mode)?.mask_unmask.as_ref().ok_or("no mask_unmask section")?.ns_per_pair)
    };
    let (legacy, direct) = (time("legacy")?, time("direct")?);
    if direct < legacy {
        Ok(())
    } else {
        Err(format!("a pair takes {direct:.0} ns direct, {legacy:.0} ns legacy"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::sample;

    fn report() -> Value {
        let phases = json!([sample::phase("legacy", 2048), sample::phase("direct", 2048)]);
        sample::report(json!([sample::function("0000:00:01.0", "software", 2048, phases)]))
    }

    fn failures(report: &Value) -> usize {
        let report = Report::read(&report.to_string()).unwrap();
        promises(&report).iter().filter(|check| check.result.is_err()).count()
    }

    #[test]
    fn a_report_that_keeps_all_promises_is_accepted() {
        assert_eq!(failures(&report()), 0);
    }

    #[test]
    fn each_broken_promise_fails_one_check() {
        for (pointer, value) in [
            ("/functions/0/phases/1/configure/doorbell_exits", json!(2)),
            ("/functions/0/phases/1/configure/granted", json!(2047)),
            ("/functions/0/phases/0/configure/irqfds", json!(2047)),
            ("/functions/0/phases/1/configure/irqfds", json!(0)),
            ("/functions/0/phases/0/configure/granted", json!(2047)),
            ("/functions/0/phases/0/configure/table_exits", json!(8191)),
            ("/functions/0/phases/0/configure/routing_updates", json!(2047)),
            ("/functions/0/phases/0/configure/interrupt_setups", json!(1)),
            ("/functions/0/phases/1/configure/interrupt_setups", json!(2)),
            ("/functions/0/phases/1/configure/table_exits", json!(1)),
            ("/functions/0/phases/1/configure/exits", json!(12)),
            ("/functions/0/phases/0/configure/exits", json!(10_000)),
            ("/functions/0/phases/1/mask_unmask/exits", json!(1)),
            ("/functions/0/phases/1/neighbour/exits", json!(1)),
            ("/functions/0/phases/1/neighbour", Value::Null),
            ("/functions/0/phases/0/neighbour/exits", json!(1)),
            ("/functions/0/phases/0/mask_unmask/exits", json!(1)),
            ("/functions/0/phases/0/interrupts/spurious", json!(1)),
            ("/functions/0/phases/1/interrupts/lost", json!(1)),
            ("/functions/0/phases/1/interrupts/while_masked", json!(1)),
            ("/functions/0/phases/1/interrupts/raised", json!(99_999)),
            ("/functions/0/phases/1/mask_unmask/ns_per_pair", json!(1e9)),
        ] {
            let mut report = report();
            *report.pointer_mut(pointer).unwrap() = value;
            assert_eq!(failures(&report), 1, "{pointer}");
        }
    }
}
