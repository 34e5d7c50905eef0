//! Linux guests in the emulated host: their drivers, unmodified, below this project's VMM and below
//! QEMU.

mod parts;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use pvmsi_linux_lab::plan::{Boot, Outcome, Plan, Suite};
use pvmsi_linux_lab::report::{Policy, Vmm};

use self::parts::{Kernel, Parts, Series};
use super::Options;
use super::description::PageSize;
use super::host::Host;
use super::initramfs::{self, Addition};
use super::machine::{self, Hardware, NVME, Step};
use crate::architecture::Architecture;
use crate::check::{self, Check};
use crate::process;
use crate::target::Target;
use crate::workspace::{Profile, Workspace};

/// The program that drives the guests, inside and outside.
const PROGRAM: &str = "pvmsi-linux-lab";

/// Init of a guest.
const GUEST_INIT: &str = include_str!("../../../../lab/guest-init");

/// Bound of a run.
const LIMIT: Duration = Duration::from_secs(3600);

/// What is run with Linux guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LinuxScenario {
    /// The same events below QEMU and below `pvmsi run`.
    #[value(name = "linux-peers")]
    Peers,
}

impl LinuxScenario {
    /// Its name on the command line and of its folder.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Peers => "linux-peers",
        }
    }
}

/// What a run has shown.
pub(crate) struct Run {
    /// What was counted.
    pub outcome: Outcome,
    /// What must hold.
    pub checks: Vec<Check>,
}

/// `cargo xtask lab … --scenario linux…`; true when every check holds.
///
/// # Errors
/// When something cannot be prepared or run.
pub(crate) fn command(
    workspace: &Workspace,
    options: &Options,
    scenario: LinuxScenario,
) -> Result<bool> {
    let run = run(workspace, options.architecture, scenario, PageSize::K4)?;
    process::print(&serde_json::to_string(&run.outcome)?);
    Ok(check::print(scenario.name(), &run.checks))
}

/// Runs a scenario on a host with pages of a size.
///
/// # Errors
/// When something cannot be prepared, or the host does not come to its end.
pub(crate) fn run(
    workspace: &Workspace,
    architecture: Architecture,
    scenario: LinuxScenario,
    pages: PageSize,
) -> Result<Run> {
    let pvmsi = workspace.build_pvmsi(architecture)?;
    let program = build_program(workspace, architecture)?;
    let host = Host::prepare(workspace, architecture, &[pages])?;
    let mut parts = Parts::new(workspace, architecture);
    let kernel = parts.kernel(Series::Stable)?;
    let qemu = parts.qemu()?;
    let folder = host.scratch(scenario.name());
    fs::create_dir_all(&folder)?;
    let native = architecture == Architecture::native()?;
    let guest = Guest { host: &host, program: &program, native };
    let initrd = guest.initrd(&kernel, &folder.join("guest"))?;
    let inside = format!("/guests/{}", kernel.release);
    let plan = Plan {
        boots: vec![Boot {
            vmm: Vmm::Qemu,
            policy: None,
            module: false,
            kernel: inside.clone(),
            functions: vec![NVME.to_owned()],
            suite: Suite::Peers,
        }],
    };
    let plan_file = folder.join("plan.json");
    fs::write(&plan_file, serde_json::to_string(&plan)?)?;
    let additions = [
        Addition::program(&program, format!("bin/{PROGRAM}")),
        Addition::file(&plan_file, "plan.json".to_owned()),
        Addition::file(&kernel.image, format!("{}/vmlinuz", inside.trim_start_matches('/'))),
        Addition::file(&initrd, format!("{}/initrd", inside.trim_start_matches('/'))),
        Addition::file(&qemu.folder, "qemu".to_owned()),
    ];
    let steps = [Step {
        name: "linux",
        limit: LIMIT,
        command: format!(
            "mount -t tracefs trace /sys/kernel/tracing && {PROGRAM} conduct /plan.json"
        ),
    }];
    let archive = folder.join("initramfs.gz");
    initramfs::pack(&host, pages, &pvmsi, &steps, &additions, &folder.join("root"), &archive)?;
    let hardware = Hardware { isolation: true, pages };
    let title = format!("lab {}, scenario \"{}\"", architecture.name(), scenario.name());
    let results = process::step(&title, || {
        machine::boot(&host, &archive, &hardware, &folder, LIMIT.saturating_add(LIMIT))
    })?;
    let result = results.outcome("linux")?;
    let outcome: Outcome = serde_json::from_str(&result.output)
        .with_context(|| format!("exit status {}, no outcome", result.status))?;
    Ok(Run { checks: Vec::new(), outcome })
}

/// Builds the program that drives the guests.
fn build_program(workspace: &Workspace, architecture: Architecture) -> Result<PathBuf> {
    let target = Target::linux(workspace, architecture)?;
    process::step(&format!("building {PROGRAM} for {}", architecture.name()), || {
        let mut command = target.cargo_in(&workspace.root);
        command.args(["build", "--quiet", "--release", "--package", PROGRAM]);
        process::run("cargo build", &mut command, Duration::from_secs(1200))
    })?;
    workspace.program(architecture, Profile::Release, PROGRAM)
}

/// What guests are made of.
struct Guest<'a> {
    host: &'a Host,
    program: &'a Path,
    native: bool,
}

impl Guest<'_> {
    /// The initial file system of guests with a kernel; `folder` is scratch space.
    fn initrd(&self, kernel: &Kernel, folder: &Path) -> Result<PathBuf> {
        let root = folder.join(&kernel.release);
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        for name in ["bin", "dev", "proc", "sys"] {
            fs::create_dir_all(root.join(name))?;
        }
        initramfs::write_program(&root.join("init"), GUEST_INIT.as_bytes())?;
        initramfs::copy(&self.host.busybox(), &root.join("bin/busybox"))?;
        initramfs::add(
            &Addition::program(self.program, format!("bin/{PROGRAM}")),
            &root,
            self.native,
        )?;
        initramfs::add(&Addition::file(&kernel.modules, "modules".to_owned()), &root, self.native)?;
        let archive = folder.join(format!("{}.cpio", kernel.release));
        parts::plain_archive(&root, &archive)?;
        Ok(archive)
    }
}
