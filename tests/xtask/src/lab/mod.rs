//! `cargo xtask lab`: the main job in an emulated host with Linux, KVM, VFIO and an IOMMU.

mod host;
mod initramfs;
mod machine;
mod scenario;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};

use self::host::Host;
pub(crate) use self::scenario::Scenario;
use crate::check::{self, Check};
use crate::process;
use crate::report::Report;
use crate::workspace::Workspace;

/// Bound of one boot of the emulated host, on two processors that others may use as well.
const BOOT_LIMIT: Duration = Duration::from_secs(420);

/// Options of `cargo xtask lab`.
#[derive(Args)]
pub(crate) struct Options {
    /// The architecture of the emulated host.
    #[arg(value_enum)]
    architecture: Architecture,
    /// Which case to run.
    #[arg(long, value_enum, default_value = "all")]
    scenario: Choice,
    /// Print the report of the run (with all: of `direct`) as JSON on stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Architecture {
    #[value(name = "x86_64")]
    X86_64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Choice {
    /// Interrupts are remapped: the table becomes direct.
    Direct,
    /// The service is off: the guest works the standard way.
    Off,
    /// Interrupts are not remapped: the table stays trapped.
    Unisolated,
    /// One after the other.
    All,
}

/// Runs the scenarios; true when every check holds.
///
/// # Errors
/// When something cannot be prepared or run.
pub(crate) fn command(workspace: &Workspace, options: &Options) -> Result<bool> {
    let Architecture::X86_64 = options.architecture;
    let scenarios: &[Scenario] = match options.scenario {
        Choice::Direct => &[Scenario::Direct],
        Choice::Off => &[Scenario::Off],
        Choice::Unisolated => &[Scenario::Unisolated],
        Choice::All => Scenario::ALL,
    };
    let pvmsi = workspace.build_pvmsi()?;
    let lab = Lab::prepare(workspace)?;
    let mut good = true;
    for (index, &scenario) in scenarios.iter().enumerate() {
        let run = lab.run(&pvmsi, scenario)?;
        good &= check::print(scenario.name(), &run.checks);
        match (&run.report, options.json) {
            (Some((text, _)), true) if index == 0 => process::print(text),
            (Some((_, report)), false) => process::print(&report.to_string()),
            _ => {}
        }
    }
    Ok(good)
}

/// The emulated host, ready to boot.
pub(crate) struct Lab {
    host: Host,
    folder: std::path::PathBuf,
}

/// What a scenario has shown.
pub(crate) struct Run {
    /// The report of `pvmsi run` as it was printed, and read.
    pub report: Option<(String, Report)>,
    /// What must hold.
    pub checks: Vec<Check>,
}

impl Lab {
    /// Completes the lab's parts under the build folder.
    ///
    /// # Errors
    /// When they cannot be had.
    pub(crate) fn prepare(workspace: &Workspace) -> Result<Self> {
        let folder = workspace.target.join("lab/x86_64");
        Ok(Self { host: Host::prepare(&folder)?, folder })
    }

    /// Boots the host for a scenario and judges what it shows.
    ///
    /// # Errors
    /// When the host does not boot or does not come to its end.
    pub(crate) fn run(&self, pvmsi: &Path, scenario: Scenario) -> Result<Run> {
        let folder = self.folder.join(scenario.name());
        fs::create_dir_all(&folder)?;
        let archive = folder.join("initramfs.gz");
        let steps = scenario.steps();
        initramfs::pack(&self.host, pvmsi, &steps, &folder.join("root"), &archive)?;
        let title = format!("lab x86_64, scenario \"{}\": {}", scenario.name(), scenario.about());
        let results = process::step(&title, || {
            machine::boot(&self.host, &archive, &scenario.hardware(), &folder, BOOT_LIMIT)
        })?;
        let run = scenario.judge(&results);
        if run.checks.iter().any(|check| check.result.is_err()) {
            process::show_tail(&folder.join("console.log"));
        }
        Ok(run)
    }
}
