//! The cases that the lab runs, and what each must show.

use std::time::Duration;

use clap::ValueEnum;

use super::kernel::Series;
use super::kind::{Iommu, Kind, PageSize};
use super::machine::{Hardware, NETWORK, NVME, Results, Step};
use super::{Run, Shown, bounded, hostile, moving, refused};
use crate::architecture::Architecture;
use crate::check::{self, Check, equal};
use crate::conformance::{self, Expected, Service};
use crate::guests::CONFORMANCE;
use crate::report::{Function, Report};
use crate::shim;
use crate::summary::Counts;
use crate::workspace::MACHINE_TESTS;

/// A case of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// Functions are isolated: the table becomes direct.
    Direct,
    /// The same host, the service switched off: the guest works the standard way.
    Off,
    /// Functions are not isolated and VFIO is told to do without: the table stays trapped.
    Unisolated,
    /// Guests that forge messages, and a host that wants a function back.
    Hostile,
    /// A drive of 256 vectors, at most 16 for each call (x86_64, where vectors can be added).
    Bounded,
    /// The host moves a function's interrupts back to back, while the table is direct; then all others.
    Moving,
    /// A host without an IOMMU: nothing can be attached.
    Refused,
}

/// What the demo guest must read and verify.
const IO_BYTES: u64 = 64 << 20;

/// The guest has an I/O queue for each.
const GUEST_CPUS: u8 = 2;

/// The software function, where there is one: the third in the guest.
const SOFTWARE: &str = "0000:00:03.0";

/// Events that it is asked for under load.
const EVENTS: u64 = 20_000;

/// The guests in C, each with the vectors that it takes.
const C_GUESTS: [(&str, u16); 2] = [(shim::GUEST, 8), (shim::READERS_GUEST, 4)];

impl Scenario {
    /// Those that a host can show.
    pub(crate) fn all(kind: &Kind) -> Vec<Self> {
        let possible = |scenario: &Self| match scenario {
            Self::Refused => kind.iommu == Iommu::None,
            _ if kind.iommu == Iommu::None => false,
            // The program there is its own VMM, for this architecture alone; MSI-X of 6.1 cannot grow.
            // Kernels that are built have no tracepoints.
            Self::Bounded => {
                kind.remaps()
                    && !kind.is_built()
                    && kind.architecture == Architecture::X86_64
                    && kind.kernel != Series::V6_1
            }
            Self::Unisolated => true,
            Self::Direct | Self::Off => kind.remaps(),
            Self::Hostile => kind.remaps() && kind.survives_faults(),
            // It attaches by group.
            Self::Moving => kind.remaps() && !kind.is_built(),
        };
        Self::each().filter(possible).collect()
    }

    /// Those of all hosts.
    pub(crate) fn each() -> impl Iterator<Item = Self> {
        Self::value_variants().iter().copied()
    }

    /// Its name on the command line and of its folder.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Off => "off",
            Self::Unisolated => "unisolated",
            Self::Hostile => "hostile",
            Self::Bounded => "bounded",
            Self::Moving => "moving",
            Self::Refused => "refused",
        }
    }

    /// One line for people.
    pub(crate) fn about(self) -> &'static str {
        match self {
            Self::Direct => "isolated functions, the table becomes direct",
            Self::Off => "the service is off, the guest works the standard way",
            Self::Unisolated => "functions without isolation, the table stays trapped",
            Self::Hostile => "a guest forges messages, and the host wants a function back",
            Self::Bounded => "256 vectors, 16 for each call, counted by the host's tracepoints",
            Self::Moving => "interrupts moved under a direct table, and processors taken off",
            Self::Refused => "no IOMMU, nothing can be attached",
        }
    }

    /// The hardware that it needs.
    pub(crate) fn hardware(self) -> Hardware {
        match self {
            Self::Bounded => Hardware { drive_vectors: bounded::VECTORS, ..Hardware::USUAL },
            Self::Unisolated => Hardware { isolation: false, ..Hardware::USUAL },
            Self::Moving => Hardware { parallel: true, ..Hardware::USUAL },
            Self::Direct | Self::Off | Self::Hostile | Self::Refused => Hardware::USUAL,
        }
    }

    /// Whether the program runs that takes the place of a VMM.
    pub(crate) fn has_host_program(self) -> bool {
        matches!(self, Self::Bounded | Self::Moving)
    }

    /// What the host runs; `minutes` is how long interrupts are moved.
    pub(crate) fn steps(self, kind: &Kind, minutes: u64) -> Vec<Step> {
        let architecture = kind.architecture;
        match self {
            Self::Hostile => return hostile::steps(),
            Self::Bounded => return bounded::steps(),
            Self::Moving => return moving::steps(minutes),
            Self::Refused => return refused::steps(),
            Self::Direct | Self::Off | Self::Unisolated => {}
        }
        let policy = self.policy();
        let (software, events) = if self.has_software(architecture) {
            (" --function software:vectors=64", format!(" events={EVENTS}"))
        } else {
            ("", String::new())
        };
        let mut steps = vec![
            Step::probe(),
            Step {
                name: "run",
                limit: Duration::from_secs(300),
                command: format!(
                    "pvmsi run --function vfio:{NVME} --function vfio:{NETWORK}{software} \
                     --cpus {GUEST_CPUS} --pv-msi {policy} --report json \
                     --append 'setups=9 pairs=200 writes=200 io_mib=64{events}'"
                ),
            },
        ];
        if architecture.description().exact_interrupts {
            steps.extend(C_GUESTS.map(|(guest, _)| Step {
                name: guest,
                limit: Duration::from_secs(120),
                command: format!(
                    "pvmsi run --function software:vectors=16 --pv-msi {policy} --report none \
                     --timeout 100 /bin/{guest}"
                ),
            }));
        }
        if let Some(service) = self.service() {
            let exact = architecture.description().exact_interrupts;
            let arguments = conformance::arguments(service, exact, &format!("/bin/{CONFORMANCE}"));
            let quoted: Vec<_> = arguments.iter().map(|it| format!("'{it}'")).collect();
            steps.push(Step {
                name: "conformance",
                limit: Duration::from_secs(conformance::LIMIT),
                command: format!("pvmsi {}", quoted.join(" ")),
            });
        }
        if self.has_software(architecture) {
            // CI: without KVM they shall fail, not skip.
            steps.push(Step {
                name: "machine-tests",
                limit: Duration::from_secs(120),
                command: format!("CI=true {MACHINE_TESTS} --test-threads 1 machine:: arch::"),
            });
        }
        steps
    }

    /// Reads the results and checks them.
    pub(crate) fn judge(self, kind: &Kind, results: &Results, conformance: &Expected) -> Run {
        let architecture = kind.architecture;
        match self {
            Self::Hostile => return hostile::judge(kind, results),
            Self::Bounded => return bounded::judge(results),
            Self::Moving => return moving::judge(architecture, results),
            Self::Refused => return refused::judge(results),
            Self::Direct | Self::Off | Self::Unisolated => {}
        }
        let mut checks = vec![Check::new("probe", self.check_probe(results))];
        if let Some(service) = self.service() {
            let run = results.outcome("conformance").map_err(|error| format!("{error:#}"));
            let judged = run.and_then(|run| conformance.judge(service, run.status, &run.output));
            checks.push(Check::new("conformance suite from inside a guest", judged));
        }
        let run = results.outcome("run").map_err(|error| format!("{error:#}"));
        checks.push(Check::new(
            "run",
            run.as_ref()
                .map_err(Clone::clone)
                .and_then(|run| equal("exit status of pvmsi run", run.status, 0)),
        ));
        if architecture.description().exact_interrupts {
            checks.extend(C_GUESTS.map(|(guest, vectors)| {
                Check::new(guest, self.check_c_guest(results, guest, vectors))
            }));
        }
        if self.has_software(architecture) {
            checks.push(Check::new("machine's own tests", check_machine_tests(results)));
        }
        // A run that has failed may still have a report that tells why.
        let report = run.and_then(|run| {
            let report = Report::read(&run.output)?;
            Ok((run.output, report))
        });
        match report {
            Ok((text, report)) => {
                checks.extend(self.check_report(kind, &report));
                Run { shown: Some(Shown { json: text, text: report.to_string() }), checks }
            }
            Err(error) => {
                checks.push(Check::new("report", Err(error)));
                Run { shown: None, checks }
            }
        }
    }

    /// Whether the machine that runs the conformance suite offers the service; other scenarios do not run it.
    fn service(self) -> Option<Service> {
        match self {
            Self::Direct => Some(Service::On),
            Self::Off => Some(Service::Off),
            Self::Unisolated | Self::Hostile | Self::Bounded | Self::Moving | Self::Refused => None,
        }
    }

    /// How far the service goes.
    fn policy(self) -> &'static str {
        if self == Self::Off { "off" } else { "direct" }
    }

    /// Whether interrupts under load are accounted for.
    fn has_software(self, architecture: Architecture) -> bool {
        architecture.description().software_function && self == Self::Direct
    }

    /// The mode of the table that a guest must reach.
    fn mode(self) -> &'static str {
        match self {
            Self::Direct | Self::Hostile | Self::Bounded | Self::Moving => "direct",
            Self::Off | Self::Refused => "legacy",
            Self::Unisolated => "trapped",
        }
    }

    fn check_report(self, kind: &Kind, report: &Report) -> Vec<Check> {
        let architecture = kind.architecture;
        let pages = equal("host.page_size", report.host.page_size, kind.pages.bytes());
        let drive = report.function(NVME).and_then(|function| self.drive(kind.pages, function));
        let network = report.function(NETWORK).and_then(|function| self.table(function));
        let mut checks = vec![
            Check::new("page size", pages),
            Check::new("drive", drive),
            Check::new("network function", network),
        ];
        if self == Self::Direct && architecture == Architecture::X86_64 {
            let faster = report.function(NVME).and_then(|function| {
                check::set_up_faster(function.phase("legacy")?, function.phase("direct")?)
            });
            checks.push(Check::new("drive's set-up is faster than with the legacy table", faster));
        }
        if self.has_software(architecture) {
            let software = report.function(SOFTWARE).and_then(|function| self.software(function));
            checks.push(Check::new("software function", software));
        }
        checks
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
            _ => equal("exit status", probe.status, 0),
        }
    }

    /// A guest in C checks everything itself but which way it went.
    fn check_c_guest(self, results: &Results, guest: &str, vectors: u16) -> Result<(), String> {
        let run = results.outcome(guest).map_err(|error| format!("{error:#}"))?;
        equal("exit status of pvmsi run", run.status, 0)?;
        let way = match self.policy() {
            "off" => format!("{vectors} vectors, legacy, trapped"),
            _ => format!("{vectors} vectors, paravirtual, direct"),
        };
        if run.output.contains(&way) { Ok(()) } else { Err(format!("it did not print: {way}")) }
    }

    /// An NVMe drive: its table, and its data by interrupts only, in every phase.
    fn drive(self, pages: PageSize, function: &Function) -> Result<(), String> {
        self.table(function)?;
        for phase in &function.phases {
            let io = phase.io.as_ref().ok_or_else(|| format!("no io in phase {}", phase.mode))?;
            let mode = &phase.mode;
            check::at_least(&format!("{mode}: io.bytes_verified"), io.bytes_verified, IO_BYTES)?;
            equal(&format!("{mode}: io.bytes_wrong"), io.bytes_wrong, 0)?;
            check::at_least(&format!("{mode}: io.interrupts"), io.interrupts, 1)?;
            check::at_least(&format!("{mode}: io.queues"), io.queues, u64::from(GUEST_CPUS))?;
            // A trapped table takes the rest of its pages with it.
            let doorbells_trapped = pages != PageSize::K4 && mode != "direct";
            if doorbells_trapped {
                check::command_exits(phase)?;
            } else {
                check::commands_are_free(phase)?;
            }
        }
        Ok(())
    }

    /// The software function: its table, and every interrupt of the load, in every phase.
    fn software(self, function: &Function) -> Result<(), String> {
        self.table(function)?;
        for phase in &function.phases {
            let mode = &phase.mode;
            let interrupts = phase
                .interrupts
                .as_ref()
                .ok_or_else(|| format!("no interrupts in phase {mode}"))?;
            check::at_least(&format!("{mode}: interrupts.raised"), interrupts.raised, EVENTS)?;
            equal(&format!("{mode}: interrupts.observed"), interrupts.observed, interrupts.raised)?;
        }
        Ok(())
    }

    /// The table's phases and what they cost.
    fn table(self, function: &Function) -> Result<(), String> {
        let modes: Vec<&str> = function.phases.iter().map(|phase| phase.mode.as_str()).collect();
        let mut expected = vec!["legacy"];
        if self.mode() != "legacy" {
            expected.push(self.mode());
        }
        equal("modes of the phases", modes, expected)?;
        for phase in &function.phases {
            match phase.mode.as_str() {
                "direct" => {
                    check::configured_in_one_go(phase)?;
                    check::set_up_with_fewer_exits(function.phase("legacy")?, phase)?;
                    check::table_is_free(phase)?;
                }
                "trapped" => {
                    check::configured_in_one_go(phase)?;
                    check::set_up_with_fewer_exits(function.phase("legacy")?, phase)?;
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

/// The unit tests that build machines, on this host's KVM.
fn check_machine_tests(results: &Results) -> Result<(), String> {
    let run = results.outcome("machine-tests").map_err(|error| format!("{error:#}"))?;
    equal("exit status", run.status, 0)?;
    check::at_least("tests passed", Counts::of_cargo_test(&run.output).passed(), 10)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::sample;

    fn kind(name: &str) -> &'static Kind {
        let all = Architecture::ALL.into_iter().flat_map(Kind::all);
        all.into_iter().find(|kind| kind.name == name).unwrap()
    }

    /// What a run of a scenario shows when the last phase has this mode.
    fn report(kind: &Kind, scenario: Scenario, mode: &str) -> Value {
        let modes = if mode == "legacy" { vec![mode] } else { vec!["legacy", mode] };
        let plain = |vectors| -> Value {
            modes.iter().map(|mode| sample::phase(mode, vectors)).collect::<Vec<_>>().into()
        };
        let shared = kind.pages != PageSize::K4;
        let drive = modes
            .iter()
            .map(|&mode| sample::with_io(sample::phase(mode, 65), shared && mode != "direct"))
            .collect::<Vec<_>>();
        let mut functions = vec![
            sample::function(NVME, "vfio", 65, drive.into()),
            sample::function(NETWORK, "vfio", 10, plain(10)),
        ];
        if scenario.has_software(kind.architecture) {
            functions.push(sample::function(SOFTWARE, "software", 64, plain(64)));
        }
        let mut report = sample::report(functions.into());
        *report.pointer_mut("/host/page_size").unwrap() = kind.pages.bytes().into();
        report
    }

    fn failures(kind: &Kind, scenario: Scenario, report: &Value) -> Vec<String> {
        let report = Report::read(&report.to_string()).unwrap();
        let checks = scenario.check_report(kind, &report);
        checks.into_iter().filter_map(|check| check.result.err()).collect()
    }

    /// A wrong figure in a good report of a scenario must fail one check.
    fn each_must_fail(name: &str, scenario: Scenario, wrong: &[(&str, Value)]) {
        let kind = kind(name);
        let good = report(kind, scenario, scenario.mode());
        for (pointer, value) in wrong {
            let mut report = good.clone();
            *report.pointer_mut(pointer).unwrap() = value.clone();
            let failures = failures(kind, scenario, &report);
            assert_eq!(failures.len(), 1, "{pointer}: {failures:?}");
        }
    }

    #[test]
    fn each_scenario_accepts_its_report_and_no_other() {
        for kind in Architecture::ALL.into_iter().flat_map(Kind::all) {
            let reporting = Scenario::all(kind).into_iter();
            let own = [Scenario::Hostile, Scenario::Bounded, Scenario::Moving, Scenario::Refused];
            for scenario in reporting.filter(|scenario| !own.contains(scenario)) {
                for mode in ["legacy", "trapped", "direct"] {
                    let report = report(kind, scenario, mode);
                    let failures = failures(kind, scenario, &report);
                    assert_eq!(
                        failures.is_empty(),
                        mode == scenario.mode(),
                        "{scenario:?} {mode}: {failures:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_host_runs_what_it_can_show() {
        use Scenario::{Bounded, Direct, Hostile, Moving, Off, Refused, Unisolated};
        let grows = [Direct, Off, Unisolated, Hostile, Bounded, Moving];
        assert_eq!(Scenario::all(kind("vtd")), grows);
        let others = [Direct, Off, Unisolated, Hostile, Moving];
        assert_eq!(Scenario::all(kind("vtd-6.1")), others);
        assert_eq!(Scenario::all(kind("smmu-16k")), others);
        assert_eq!(Scenario::all(kind("none")), [Refused]);
        assert_eq!(Scenario::all(kind("amd")), grows);
        assert_eq!(Scenario::all(kind("amd-6.1")), [Direct, Off, Unisolated, Moving]);
        assert_eq!(Scenario::all(kind("amd-newest")), [Unisolated]);
        let untraced = [Direct, Off, Unisolated, Hostile];
        assert_eq!(Scenario::all(kind("vtd-iommufd")), untraced);
        assert_eq!(Scenario::all(kind("smmu-64k")), untraced);
    }

    #[test]
    fn a_wrong_figure_fails() {
        let wrong = [
            ("/host/page_size", json!(16384)),
            ("/functions/0/phases/1/io/bytes_verified", json!(1)),
            ("/functions/0/phases/1/io/interrupts", json!(0)),
            ("/functions/0/phases/0/io/bytes_wrong", json!(1)),
            ("/functions/0/phases/1/io/queues", json!(1)),
            ("/functions/0/phases/1/io/commands", json!(0)),
            ("/functions/0/phases/1/io/mmio_exits", json!(1)),
            ("/functions/0/phases/1/table_exits_after_switch", json!(1)),
            ("/functions/0/phases/1/table_exits_after_switch", Value::Null),
            ("/functions/0/phases/1/configure/doorbell_exits", json!(2)),
            ("/functions/1/phases/1/configure/routing_updates", json!(0)),
            ("/functions/1/phases/1/configure/interrupt_setups", json!(10)),
            ("/functions/1/phases/1/mask_unmask/exits", json!(1)),
            ("/functions/1/phases/0/mask_unmask/exits", json!(399)),
            ("/functions/1/phases/1/interrupts/lost", json!(1)),
            ("/functions/1/id", json!("0000:09:00.0")),
        ];
        each_must_fail("vtd", Scenario::Direct, &wrong);
        each_must_fail("smmu", Scenario::Direct, &wrong);
    }

    #[test]
    fn a_set_up_that_is_slower_than_the_legacy_one_or_cannot_be_compared_fails() {
        each_must_fail(
            "vtd",
            Scenario::Direct,
            &[
                ("/functions/0/phases/1/configure/ns_each/0", json!(100_000_000)),
                ("/functions/0/phases/0/configure/ns_each/2", json!(40_000_000)),
                ("/functions/0/phases/0/configure/ns_each", json!([90_000_000, 90_000_000])),
                ("/functions/0/phases/0/configure/irqfds", json!(0)),
                ("/functions/1/phases/0/configure/routing_updates", json!(0)),
                ("/functions/1/phases/1/configure/table_exits", json!(1)),
            ],
        );
    }

    #[test]
    fn a_lost_interrupt_of_the_software_function_fails() {
        each_must_fail(
            "smmu",
            Scenario::Direct,
            &[
                ("/functions/2/phases/0/interrupts/raised", json!(EVENTS - 1)),
                ("/functions/2/phases/1/interrupts/observed", json!(EVENTS)),
                ("/functions/2/phases/1/interrupts/spurious", json!(1)),
                ("/functions/2/phases/1/interrupts/while_masked", json!(1)),
                ("/functions/2/phases/1/interrupts", Value::Null),
                ("/functions/2/phases/1/neighbour/exits", json!(1)),
            ],
        );
    }

    #[test]
    fn commands_cost_exits_on_larger_pages_until_the_table_is_direct() {
        each_must_fail(
            "smmu-16k",
            Scenario::Direct,
            &[
                ("/host/page_size", json!(4096)),
                ("/functions/0/phases/0/io/mmio_exits", json!(1023)),
                ("/functions/0/phases/1/io/mmio_exits", json!(1)),
            ],
        );
    }

    #[test]
    fn another_reason_than_isolation_or_a_call_that_saves_nothing_fails() {
        each_must_fail(
            "vtd",
            Scenario::Unisolated,
            &[
                ("/functions/0/phases/1/reasons", json!(["policy"])),
                ("/functions/0/phases/1/configure/table_exits", json!(64)),
                ("/functions/0/phases/1/configure/exits", json!(335)),
            ],
        );
    }
}
