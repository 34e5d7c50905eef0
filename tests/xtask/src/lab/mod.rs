//! `cargo xtask lab`: the main job in an emulated host with Linux, KVM, VFIO and an IOMMU.

mod bounded;
pub(crate) mod built;
mod description;
mod host;
mod hostile;
mod initramfs;
mod kernel;
mod kind;
mod linux;
mod machine;
mod matrix;
mod moving;
mod program;
mod refused;
mod scenario;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Args, ValueEnum};

use self::host::Host;
use self::initramfs::Addition;
pub(crate) use self::kind::Kind;
pub(crate) use self::linux::{Extent, LinuxLab, LinuxScenario};
use self::machine::{Hardware, Step};
pub(crate) use self::scenario::Scenario;
use crate::architecture::Architecture;
use crate::check::{self, Check};
use crate::conformance::Expected;
use crate::process;
use crate::soak::Plan;
use crate::workspace::Workspace;

/// Bound of one boot of the emulated host, on two processors that others may use as well.
const BOOT_LIMIT: Duration = Duration::from_secs(900);

/// The program that takes the place of a VMM in some scenarios; also its package.
const HOST_PROGRAM: &str = "pvmsi-host-lab";

/// Options of `cargo xtask lab`.
#[derive(Args)]
pub(crate) struct Options {
    /// The architecture of the emulated host.
    #[arg(value_enum)]
    architecture: Architecture,
    /// On which host of the architecture; the first when not given.
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(Kind::names()))]
    host: Option<String>,
    /// Which case to run.
    #[arg(long, value_enum, default_value = "all")]
    scenario: Choice,
    /// How long `moving`, in each of its parts, and `linux-moving` move; one minute when not given.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1000))]
    minutes: Option<u64>,
    /// Of scenarios with Linux guests, run only what is in `cargo xtask test`.
    #[arg(long)]
    short: bool,
    /// Run all hosts of the architecture and all that they can show, but for Linux guests, and print a table. What has
    /// held on the same commit is not run again: each result is written to target/lab/ARCHITECTURE/matrix.jsonl as it comes.
    #[arg(long, conflicts_with_all = ["host", "scenario", "short", "json"])]
    matrix: bool,
    /// Print the report of the run (with all: of `direct`) as JSON on stdout.
    #[arg(long)]
    json: bool,
}

/// What can be asked for.
#[derive(Clone, Copy)]
enum Choice {
    One(Scenario),
    Linux(LinuxScenario),
    All,
}

/// Runs the scenarios; true when every check holds.
///
/// # Errors
/// When something cannot be prepared or run.
pub(crate) fn command(workspace: &Workspace, options: &Options) -> Result<bool> {
    if options.matrix {
        return matrix::command(workspace, options);
    }
    let kind = options.kind()?;
    let possible = Scenario::all(kind);
    let moves = match options.scenario {
        Choice::All => possible.contains(&Scenario::Moving),
        Choice::One(scenario) => scenario == Scenario::Moving,
        Choice::Linux(scenario) => scenario == LinuxScenario::Moving,
    };
    if options.minutes.is_some() && !moves {
        bail!("--minutes is how long the scenarios \"moving\" and \"linux-moving\" move");
    }
    let scenarios = match options.scenario {
        Choice::All => possible,
        Choice::Linux(scenario) => return linux::command(workspace, options, kind, scenario),
        Choice::One(scenario) if possible.contains(&scenario) => vec![scenario],
        Choice::One(scenario) => {
            bail!("the host {} cannot show {}", kind.name, scenario.name())
        }
    };
    let pvmsi = workspace.build_pvmsi(kind.architecture)?;
    let lab = Lab::prepare(workspace, kind, &scenarios)?;
    let mut good = true;
    for (index, &scenario) in scenarios.iter().enumerate() {
        let run = lab.run(&pvmsi, scenario, options.minutes())?;
        good &= check::print(scenario.name(), &run.checks);
        match (&run.shown, options.json) {
            (Some(shown), true) if index == 0 => process::print(&shown.json),
            (Some(shown), false) => process::print(&shown.text),
            _ => {}
        }
    }
    Ok(good)
}

impl Options {
    /// The host that is named.
    fn kind(&self) -> Result<&'static Kind> {
        match &self.host {
            Some(name) => Kind::named(self.architecture, name),
            None => Kind::usual(self.architecture),
        }
    }

    /// How long interrupts are moved.
    fn minutes(&self) -> u64 {
        self.minutes.unwrap_or(1)
    }
}

impl ValueEnum for Choice {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self::All,
            Self::One(Scenario::Direct),
            Self::One(Scenario::Off),
            Self::One(Scenario::Unisolated),
            Self::One(Scenario::Hostile),
            Self::One(Scenario::Bounded),
            Self::One(Scenario::Moving),
            Self::One(Scenario::Refused),
            Self::Linux(LinuxScenario::Events),
            Self::Linux(LinuxScenario::Peers),
            Self::Linux(LinuxScenario::Moving),
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Self::All => Some(
                PossibleValue::new("all")
                    .help("One after the other, but for those with Linux guests"),
            ),
            Self::One(scenario) => scenario.to_possible_value(),
            Self::Linux(scenario) => scenario.to_possible_value(),
        }
    }
}

/// An emulated host, ready to boot.
pub(crate) struct Lab {
    host: Host,
    /// Which tests of the conformance suite its guests cannot run.
    conformance: Expected,
    /// Programs that scenarios need beside `pvmsi`.
    additions: Vec<Addition>,
}

/// What a scenario has shown.
pub(crate) struct Run {
    /// What was measured.
    pub shown: Option<Shown>,
    /// What must hold.
    pub checks: Vec<Check>,
}

/// A report.
pub(crate) struct Shown {
    /// One object.
    pub json: String,
    /// For people.
    pub text: String,
}

impl Lab {
    /// Completes the lab's parts under the build folder, as far as scenarios need them.
    ///
    /// # Errors
    /// When they cannot be had.
    pub(crate) fn prepare(
        workspace: &Workspace,
        kind: &'static Kind,
        scenarios: &[Scenario],
    ) -> Result<Self> {
        let architecture = kind.architecture;
        if architecture.description().software_function {
            workspace.build_machine_tests(architecture)?;
        }
        let mut additions = Vec::new();
        if scenarios.iter().any(|scenario| scenario.has_host_program()) {
            let program = workspace.build_program(architecture, HOST_PROGRAM)?;
            additions.push(Addition::program(&program, format!("bin/{}", HOST_PROGRAM)));
        }
        Ok(Self {
            host: Host::prepare(workspace, kind)?,
            conformance: Expected::read(workspace, architecture)?,
            additions,
        })
    }

    /// As [`prepare`](Self::prepare), for [`soak`](Self::soak).
    ///
    /// # Errors
    /// When the parts cannot be had.
    pub(crate) fn prepare_for_soak(
        workspace: &Workspace,
        architecture: Architecture,
    ) -> Result<Self> {
        Ok(Self {
            host: Host::prepare(workspace, Kind::usual(architecture)?)?,
            conformance: Expected::read(workspace, architecture)?,
            additions: Vec::new(),
        })
    }

    /// Whether a guest of the emulated host takes an interrupt exactly once.
    pub(crate) fn counts_exactly(architecture: Architecture) -> bool {
        architecture.description().exact_interrupts
    }

    /// Boots the host for a soak; returns its report.
    ///
    /// # Errors
    /// When the host does not boot or does not come to its end.
    pub(crate) fn soak(&self, pvmsi: &Path, plan: Plan) -> Result<String> {
        let folder = self.host.scratch("soak");
        fs::create_dir_all(&folder)?;
        let archive = folder.join("initramfs.gz");
        let limit = Duration::from_secs(plan.limit().saturating_add(30));
        let steps = [Step { name: "soak", limit, command: plan.shell_command() }];
        let hardware = Hardware::USUAL;
        let root = folder.join("root");
        initramfs::pack(&self.host, pvmsi, &steps, &[], &root, &archive)?;
        let title = format!("{}, soak", self.title());
        let results = process::step(&title, || {
            machine::boot(
                &self.host,
                &archive,
                &hardware,
                &folder,
                limit.saturating_add(BOOT_LIMIT),
            )
        })?;
        Ok(results.outcome("soak")?.output)
    }

    /// Boots the host for a scenario and judges what it shows. `minutes` is how long interrupts are moved.
    ///
    /// # Errors
    /// When the host does not boot or does not come to its end.
    pub(crate) fn run(&self, pvmsi: &Path, scenario: Scenario, minutes: u64) -> Result<Run> {
        let kind = self.host.kind();
        let hardware = scenario.hardware();
        let folder = self.host.scratch(scenario.name());
        fs::create_dir_all(&folder)?;
        let archive = folder.join("initramfs.gz");
        let steps = scenario.steps(kind, minutes);
        let limit = steps.iter().fold(BOOT_LIMIT, |sum, step| sum.saturating_add(step.limit));
        let root = folder.join("root");
        let additions = if scenario.has_host_program() { &self.additions[..] } else { &[] };
        initramfs::pack(&self.host, pvmsi, &steps, additions, &root, &archive)?;
        let title =
            format!("{}, scenario \"{}\": {}", self.title(), scenario.name(), scenario.about());
        let results = process::step(&title, || {
            machine::boot(&self.host, &archive, &hardware, &folder, limit)
        })?;
        let run = scenario.judge(kind, &results, &self.conformance);
        if run.checks.iter().any(|check| check.result.is_err()) {
            process::show_tail(&folder.join("console.log"));
        }
        Ok(run)
    }

    /// The release of the host's kernel.
    ///
    /// # Errors
    /// When it is not noted.
    fn release(&self) -> Result<String> {
        self.host.release()
    }

    fn title(&self) -> String {
        let kind = self.host.kind();
        format!("lab {}, host {} ({kind})", kind.architecture.name(), kind.name)
    }
}
