//! The cases that the lab runs, and what each must show.

use std::time::Duration;

use super::Run;
use super::machine::{Hardware, NETWORK, NVME, Results, Step};
use crate::check::{self, Check, equal};
use crate::report::{Function, Report};

/// A case of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// Interrupts are remapped, the policy is direct.
    Direct,
    /// The same host, the service switched off.
    Off,
    /// Interrupts are not remapped and VFIO is told to do without.
    Unisolated,
}

/// What the demo guest must read and verify.
const IO_BYTES: u64 = 64 << 20;

/// The guest has an I/O queue for each.
const GUEST_CPUS: u8 = 2;

impl Scenario {
    /// All of them.
    pub(crate) const ALL: &[Self] = &[Self::Direct, Self::Off, Self::Unisolated];

    /// Its name on the command line and of its folder.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Off => "off",
            Self::Unisolated => "unisolated",
        }
    }

    /// One line for people.
    pub(crate) fn about(self) -> &'static str {
        match self {
            Self::Direct => "interrupt remapping on, the table becomes direct",
            Self::Off => "the service is off, the guest works the standard way",
            Self::Unisolated => "no interrupt remapping, the table stays trapped",
        }
    }

    /// The host that it needs.
    pub(crate) fn hardware(self) -> Hardware {
        let isolated = self != Self::Unisolated;
        Hardware { interrupt_remapping: isolated, allow_unsafe_interrupts: !isolated }
    }

    /// What the host runs.
    pub(crate) fn steps(self) -> Vec<Step> {
        let policy = if self == Self::Off { "off" } else { "direct" };
        vec![
            Step {
                name: "probe",
                limit: Duration::from_secs(60),
                command: format!("pvmsi probe --json {NVME} {NETWORK}"),
            },
            Step {
                name: "run",
                limit: Duration::from_secs(300),
                command: format!(
                    "pvmsi run --function vfio:{NVME} --function vfio:{NETWORK} --cpus {GUEST_CPUS} \
                     --pv-msi {policy} --report json --append 'pairs=200 writes=200 io_mib=64'"
                ),
            },
        ]
    }

    /// Reads the results and checks them.
    pub(crate) fn judge(self, results: &Results) -> Run {
        let mut checks = vec![Check::new("probe", self.check_probe(results))];
        let run = results.outcome("run").map_err(|error| format!("{error:#}"));
        checks.push(Check::new(
            "run",
            run.as_ref()
                .map_err(Clone::clone)
                .and_then(|run| equal("exit status of pvmsi run", run.status, 0)),
        ));
        // A run that has failed may still have a report that tells why.
        let report = run.and_then(|run| {
            let report = Report::read(&run.output)?;
            Ok((run.output, report))
        });
        match report {
            Ok((text, report)) => {
                checks.extend(self.check_report(&report));
                Run { report: Some((text, report)), checks }
            }
            Err(error) => {
                checks.push(Check::new("report", Err(error)));
                Run { report: None, checks }
            }
        }
    }

    fn check_report(self, report: &Report) -> [Check; 2] {
        let drive = report.function(NVME).and_then(|function| self.drive(function));
        let network = report.function(NETWORK).and_then(|function| self.table(function));
        [Check::new("drive", drive), Check::new("network function", network)]
    }

    /// The probe must say before any guest runs what the run then shows.
    fn check_probe(self, results: &Results) -> Result<(), String> {
        let probe = results.outcome("probe").map_err(|error| format!("{error:#}"))?;
        let _: serde_json::Value = serde_json::from_str(&probe.output)
            .map_err(|error| format!("the probe printed no JSON: {error}"))?;
        match self {
            Self::Unisolated => {
                equal("exit status", probe.status, 1)?;
                if !probe.output.contains("no-isolation") {
                    return Err("the probe does not name no-isolation".to_owned());
                }
                Ok(())
            }
            Self::Direct | Self::Off => equal("exit status", probe.status, 0),
        }
    }

    /// An NVMe drive: its table, and its data by interrupts only, in every phase.
    fn drive(self, function: &Function) -> Result<(), String> {
        self.table(function)?;
        for phase in &function.phases {
            let io = phase.io.as_ref().ok_or_else(|| format!("no io in phase {}", phase.mode))?;
            let mode = &phase.mode;
            check::at_least(&format!("{mode}: io.bytes_verified"), io.bytes_verified, IO_BYTES)?;
            equal(&format!("{mode}: io.bytes_wrong"), io.bytes_wrong, 0)?;
            check::at_least(&format!("{mode}: io.interrupts"), io.interrupts, 1)?;
            check::at_least(&format!("{mode}: io.queues"), io.queues, u64::from(GUEST_CPUS))?;
        }
        Ok(())
    }

    /// The table's phases and what they cost.
    fn table(self, function: &Function) -> Result<(), String> {
        let modes: Vec<&str> = function.phases.iter().map(|phase| phase.mode.as_str()).collect();
        let expected: &[&str] = match self {
            Self::Direct => &["legacy", "direct"],
            Self::Off => &["legacy"],
            Self::Unisolated => &["legacy", "trapped"],
        };
        equal("modes of the phases", modes.as_slice(), expected)?;
        for phase in &function.phases {
            match phase.mode.as_str() {
                "direct" => {
                    check::configured_in_one_go(phase)?;
                    check::table_is_free(phase)?;
                }
                "trapped" => {
                    check::configured_in_one_go(phase)?;
                    check::table_exits(phase)?;
                    equal("reasons", phase.reasons.join(" ").as_str(), "no-isolation")?;
                }
                _ => check::table_exits(phase)?,
            }
            check::interrupts_arrived(phase)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::sample;

    /// What a run shows whose last phase has this mode.
    fn report(mode: &str) -> Value {
        let modes = if mode == "legacy" { vec![mode] } else { vec!["legacy", mode] };
        let network: Vec<Value> = modes.iter().map(|mode| sample::phase(mode, 10)).collect();
        let drive = modes.iter().map(|mode| sample::with_io(sample::phase(mode, 65))).collect();
        sample::report(json!([
            sample::function(NVME, "vfio", 65, drive),
            sample::function(NETWORK, "vfio", 10, network.into()),
        ]))
    }

    fn failures(scenario: Scenario, report: &Value) -> Vec<String> {
        let report = Report::read(&report.to_string()).unwrap();
        scenario.check_report(&report).into_iter().filter_map(|check| check.result.err()).collect()
    }

    #[test]
    fn each_scenario_accepts_its_report_and_no_other() {
        let wanted = [
            (Scenario::Direct, "direct"),
            (Scenario::Off, "legacy"),
            (Scenario::Unisolated, "trapped"),
        ];
        for (scenario, mode) in wanted {
            for (_, shown) in wanted {
                let failures = failures(scenario, &report(shown));
                assert_eq!(
                    failures.is_empty(),
                    mode == shown,
                    "{scenario:?} {shown}: {failures:?}"
                );
            }
        }
    }

    #[test]
    fn a_wrong_figure_fails() {
        for (pointer, value) in [
            ("/functions/0/phases/1/io/bytes_verified", json!(1)),
            ("/functions/0/phases/1/io/interrupts", json!(0)),
            ("/functions/0/phases/0/io/bytes_wrong", json!(1)),
            ("/functions/0/phases/1/io/queues", json!(1)),
            ("/functions/0/phases/1/table_exits_after_switch", json!(1)),
            ("/functions/0/phases/1/table_exits_after_switch", Value::Null),
            ("/functions/0/phases/1/configure/doorbell_exits", json!(2)),
            ("/functions/1/phases/1/configure/routing_updates", json!(0)),
            ("/functions/1/phases/1/configure/interrupt_setups", json!(10)),
            ("/functions/1/phases/1/mask_unmask/exits", json!(1)),
            ("/functions/1/phases/0/mask_unmask/exits", json!(399)),
            ("/functions/1/phases/1/interrupts/lost", json!(1)),
            ("/functions/1/id", json!("0000:09:00.0")),
        ] {
            let mut report = report("direct");
            *report.pointer_mut(pointer).unwrap() = value;
            assert_eq!(failures(Scenario::Direct, &report).len(), 1, "{pointer}");
        }
    }

    #[test]
    fn another_reason_than_isolation_fails() {
        let mut report = report("trapped");
        *report.pointer_mut("/functions/0/phases/1/reasons").unwrap() = json!(["policy"]);
        assert_eq!(failures(Scenario::Unisolated, &report).len(), 1);
    }
}
