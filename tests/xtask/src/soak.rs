//! `cargo xtask soak`: random valid operations under load, on this machine's KVM or in an emulated host.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use clap::Args;

use crate::architecture::Architecture;
use crate::check::{self, Check};
use crate::demo;
use crate::guests::SOAK;
use crate::lab::Lab;
use crate::process;
use crate::report::{Report, Soak};
use crate::workspace::Workspace;

/// What the machine has: the vCPU that conducts, one that masks, and two that do everything else, each
/// to a function of its own. Few vectors: each switch attaches and detaches them all, and many
/// switches are wanted.
const MACHINE: &[&str] =
    &["--cpus", "4", "--function", "software:vectors=8", "--function", "software:vectors=8"];

/// Starting and settling take time, and a guest whose processors others use as well counts its
/// seconds slowly.
const SLACK: u64 = 240;

/// Options of `cargo xtask soak`.
#[derive(Args)]
pub(crate) struct Options {
    /// How long at least, as the guest's timer counts.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    minutes: u64,
    /// Decides which operations are done; each run has another when not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Print the report as one JSON object on stdout.
    #[arg(long)]
    json: bool,
    /// In the emulated host of this architecture instead.
    #[arg(long, value_enum)]
    lab: Option<Architecture>,
}

/// How long a soak is, and what decides its operations.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    /// In seconds.
    pub seconds: u64,
    /// Of the random numbers.
    pub seed: u64,
}

/// Runs it; false when something was lost, doubled, let through or refused.
///
/// # Errors
/// Without KVM, or when it does not come to its end.
pub(crate) fn command(workspace: &Workspace, options: &Options) -> Result<bool> {
    let seed = options.seed.unwrap_or_else(random_seed);
    let plan = Plan { seconds: options.minutes.saturating_mul(60), seed };
    eprintln!("soak: seed {seed}; the same operations again with: --seed {seed}");
    let text = match options.lab {
        Some(architecture) => in_lab(workspace, architecture, plan)?,
        None => {
            if let Some(why) = demo::kvm_missing() {
                bail!("{why}\nWithout it: cargo xtask soak --lab aarch64");
            }
            on_kvm(&workspace.build_pvmsi(Architecture::native()?)?, plan)?
        }
    };
    let checks = checks(&text, plan);
    if options.json {
        process::print(&text);
    } else if let Ok(Report { soak: Some(soak), .. }) = Report::read(&text) {
        process::print(&soak.to_string());
    }
    Ok(check::print("soak", &checks))
}

/// Runs it on this machine's KVM; returns the report.
///
/// # Errors
/// When it does not come to its end.
pub(crate) fn on_kvm(pvmsi: &Path, plan: Plan) -> Result<String> {
    let mut command = Command::new(pvmsi);
    command.arg("run").args(MACHINE).args(["--report", "json", "--timeout"]);
    command.arg(plan.limit().to_string()).args(["--append", &plan.options()]);
    command.arg(pvmsi.with_file_name(SOAK));
    let limit = Duration::from_secs(plan.limit().saturating_add(30));
    let (_, text) =
        process::step("soak", || process::capture("pvmsi run", &mut command, limit, false))?;
    Ok(text)
}

fn in_lab(workspace: &Workspace, architecture: Architecture, plan: Plan) -> Result<String> {
    if !Lab::counts_exactly(architecture) {
        bail!(
            "QEMU's emulation of SVM delivers an injection twice now and then, which is what a \
             soak looks for: take --lab aarch64, or a machine with KVM"
        );
    }
    let pvmsi = workspace.build_pvmsi(architecture)?;
    Lab::prepare_for_soak(workspace, architecture)?.soak(&pvmsi, plan)
}

/// What must hold in the report of a soak.
pub(crate) fn checks(text: &str, plan: Plan) -> Vec<Check> {
    let report = Report::read(text);
    let failures = report
        .as_ref()
        .map_err(Clone::clone)
        .and_then(|report| check::equal("failures", &report.failures, &Vec::new()));
    let soak = report
        .as_ref()
        .map_err(Clone::clone)
        .and_then(|report| report.soak.as_ref().ok_or_else(|| "the report has no soak".to_owned()));
    let figures = |of: fn(&Soak, Plan) -> Result<(), String>| {
        soak.as_ref().map_err(Clone::clone).and_then(|soak| of(soak, plan))
    };
    vec![
        Check::new("run succeeds", failures),
        Check::new("nothing lost", figures(|soak, _| check::equal("lost", soak.lost, 0))),
        Check::new("nothing doubled", figures(|soak, _| check::equal("doubled", soak.doubled, 0))),
        Check::new(
            "nothing while masked",
            figures(|soak, _| check::equal("while_masked", soak.while_masked, 0)),
        ),
        Check::new("enough was done", figures(enough)),
    ]
}

/// Counts that even a slow host reaches: below them the soak has shown nothing.
fn enough(soak: &Soak, plan: Plan) -> Result<(), String> {
    check::at_least("seconds", soak.seconds, plan.seconds)?;
    check::at_least("events", soak.events, plan.seconds)?;
    check::at_least("mode_switches", soak.mode_switches, plan.seconds)?;
    check::at_least("mask_changes", soak.mask_changes, plan.seconds)?;
    check::at_least("operations", soak.operations, plan.seconds)
}

impl Plan {
    /// The command line of the guest.
    fn options(self) -> String {
        format!("seconds={} seed={}", self.seconds, self.seed)
    }

    /// When a run that has not ended has failed, in seconds.
    pub(crate) fn limit(self) -> u64 {
        self.seconds.saturating_mul(3).saturating_add(SLACK)
    }

    /// What the emulated host runs.
    pub(crate) fn shell_command(self) -> String {
        format!(
            "pvmsi run {} --report json --timeout {} --append '{}' /bin/{SOAK}",
            MACHINE.join(" "),
            self.limit(),
            self.options()
        )
    }
}

fn random_seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(since.subsec_nanos()) ^ since.as_secs()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::sample;

    const PLAN: Plan = Plan { seconds: 20, seed: 1 };

    fn report() -> Value {
        let mut report = sample::report(json!([]));
        report["failures"] = json!([]);
        report["soak"] = json!({
            "seconds": 20, "rounds": 20, "events": 200, "interrupts": 190, "merged": 9,
            "dropped": 1, "lost": 0, "doubled": 0, "while_masked": 0, "operations": 100,
            "mask_changes": 100, "mode_switches": 100, "calls": 80, "failed_calls": 0,
            "routing_updates": 50
        });
        report
    }

    fn failed(report: &Value) -> Vec<String> {
        let checks = checks(&report.to_string(), PLAN);
        checks.into_iter().filter(|check| check.result.is_err()).map(|check| check.name).collect()
    }

    #[test]
    fn a_good_soak_is_accepted() {
        assert_eq!(failed(&report()), Vec::<String>::new());
    }

    #[test]
    fn each_wrong_figure_fails_its_check() {
        for (pointer, value, name) in [
            ("/soak/lost", json!(1), "nothing lost"),
            ("/soak/doubled", json!(1), "nothing doubled"),
            ("/soak/while_masked", json!(1), "nothing while masked"),
            ("/soak/mode_switches", json!(19), "enough was done"),
            ("/soak/events", json!(0), "enough was done"),
            ("/failures", json!(["the guest has not finished"]), "run succeeds"),
        ] {
            let mut report = report();
            *report.pointer_mut(pointer).unwrap() = value;
            assert_eq!(failed(&report), [name], "{pointer}");
        }
    }

    #[test]
    fn a_report_without_a_soak_fails() {
        let mut report = report();
        report.as_object_mut().unwrap().remove("soak");
        assert_eq!(failed(&report).len(), 4);
    }
}
