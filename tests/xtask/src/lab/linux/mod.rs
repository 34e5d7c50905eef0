//! Linux guests in the emulated host: their drivers, unmodified, below this project's VMM and below
//! QEMU.

mod judge;
mod parts;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use pvmsi_linux_lab::plan::{Boot, Outcome, Plan, Suite};
use pvmsi_linux_lab::report::{LinuxEvent, Policy, Vmm};
use serde_json::{Value, json};
use std::slice;

use self::parts::{Kernel, Parts};
use super::host::Host;
use super::initramfs::{self, Addition, Packing};
use super::kernel::Series;
use super::kind::{Kind, PageSize};
use super::machine::{self, Hardware, NETWORK, NVME, Step};
use super::program::Program;
use super::{BOOT_LIMIT, HOST_PROGRAM, Options};
use crate::architecture::Architecture;
use crate::check::{self, Check};
use crate::process;
use crate::report::SCHEMA;
use crate::workspace::Workspace;

/// The program that drives the guests, inside and outside.
const PROGRAM: &str = "pvmsi-linux-lab";

/// Init of a guest.
const GUEST_INIT: &str = include_str!("../../../../lab/guest-init");

/// Bound of a guest's events, its boot included, on average.
const GUEST_LIMIT: Duration = Duration::from_secs(1500);

/// Guests of each kind, in turn; the median of their times counts.
const ROUNDS: usize = 5;

/// What is run with Linux guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LinuxScenario {
    /// Linux below `pvmsi run`: all that it does with a function, under every policy.
    #[value(name = "linux")]
    Events,
    /// The same events below QEMU and below `pvmsi run`.
    #[value(name = "linux-peers")]
    Peers,
    /// The host moves its interrupts back to back while Linux reads from its drive: for `--minutes`.
    #[value(name = "linux-moving")]
    Moving,
}

impl LinuxScenario {
    /// Its name on the command line and of its folder.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Events => "linux",
            Self::Peers => "linux-peers",
            Self::Moving => "linux-moving",
        }
    }
}

/// Which part of a scenario's guests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// All.
    Full,
    /// The most telling ones, in a few minutes.
    Short,
}

/// What a run has shown.
pub(crate) struct Run {
    /// What was counted.
    pub events: Vec<LinuxEvent>,
    /// What must hold.
    pub checks: Vec<Check>,
    /// For people: the events, and what is compared.
    pub text: String,
}

impl Run {
    /// The report: one object of schema `pvmsi.report/1`.
    fn report(&self) -> Value {
        let first = self.events.first();
        let wrong: Vec<_> = self.checks.iter().filter_map(Check::complaint).collect();
        json!({
            "schema": SCHEMA,
            "host": {
                "kernel": first.map(|event| event.host_kernel.as_str()),
                "page_size": first.map(|event| event.page_size),
            },
            "functions": [],
            "linux": self.events,
            "failures": wrong,
        })
    }
}

/// `cargo xtask lab … --scenario linux…`; true when every check holds.
///
/// # Errors
/// When something cannot be prepared or run.
pub(crate) fn command(
    workspace: &Workspace,
    options: &Options,
    kind: &'static Kind,
    scenario: LinuxScenario,
) -> Result<bool> {
    if !kind.remaps() || kind.is_built() {
        bail!("the host {} cannot run Linux guests with functions", kind.name);
    }
    let extent = if options.short { Extent::Short } else { Extent::Full };
    let mut lab = LinuxLab::prepare(workspace, kind, scenario, extent)?;
    lab.seconds = options.minutes().saturating_mul(60);
    let run = lab.run(scenario, extent)?;
    let good = check::print(scenario.name(), &run.checks);
    if options.json {
        process::print(&run.report().to_string());
    } else {
        process::print(&run.text);
    }
    Ok(good)
}

/// Parts of the scenarios, ready.
pub(crate) struct LinuxLab {
    kind: &'static Kind,
    /// One for each kind that takes part.
    hosts: Vec<Host>,
    pvmsi: PathBuf,
    program: PathBuf,
    kernels: Vec<Kernel>,
    qemu: Option<Program>,
    kexec: Program,
    /// Where the host's interrupts are moved.
    mover: Option<PathBuf>,
    /// For how long.
    seconds: u64,
}

/// The host of some guests.
struct HostBoot {
    name: &'static str,
    kind: &'static Kind,
    hardware: Hardware,
    boots: Vec<Boot>,
}

impl LinuxLab {
    /// Completes the parts under the build folder.
    ///
    /// # Errors
    /// When they cannot be had.
    pub(crate) fn prepare(
        workspace: &Workspace,
        kind: &'static Kind,
        scenario: LinuxScenario,
        extent: Extent,
    ) -> Result<Self> {
        let architecture = kind.architecture;
        let pvmsi = workspace.build_pvmsi(architecture)?;
        let program = workspace.build_program(architecture, PROGRAM)?;
        let mut hosts = vec![Host::prepare(workspace, kind)?];
        if let (LinuxScenario::Peers, Some(large)) = (scenario, with_large_pages(kind)) {
            hosts.push(Host::prepare(workspace, large)?);
        }
        let mut parts = Parts::new(workspace, architecture);
        let mut kernels = vec![parts.kernel(Series::V6_12)?];
        if (scenario, extent) == (LinuxScenario::Events, Extent::Full) {
            kernels.push(parts.kernel(Series::Newest)?);
        }
        let kexec = parts.kexec()?;
        let qemu = match scenario {
            LinuxScenario::Peers => Some(parts.qemu()?),
            LinuxScenario::Events | LinuxScenario::Moving => None,
        };
        let mover = match scenario {
            LinuxScenario::Moving => Some(workspace.build_program(architecture, HOST_PROGRAM)?),
            LinuxScenario::Events | LinuxScenario::Peers => None,
        };
        Ok(Self { kind, hosts, pvmsi, program, kernels, qemu, kexec, mover, seconds: 60 })
    }

    /// Boots the hosts of a scenario, and judges what was counted. A host that does not come to its
    /// end is a check that has failed: what the others have shown is kept.
    ///
    /// # Errors
    /// When there is nothing to run.
    pub(crate) fn run(&self, scenario: LinuxScenario, extent: Extent) -> Result<Run> {
        let mut run = Run { events: Vec::new(), checks: Vec::new(), text: String::new() };
        for host in plan(self.kind, &self.kernels, scenario, extent)? {
            let outcome = match self.boot(scenario, &host) {
                Ok(outcome) => outcome,
                Err(error) => {
                    let name = format!("{}: the host comes to its end", host.name);
                    run.checks.push(Check::new(&name, Err(format!("{error:#}"))));
                    continue;
                }
            };
            let mut checks = judge::checks(&outcome, host.hardware.isolation);
            match (scenario, host.kind.pages) {
                (LinuxScenario::Peers, PageSize::K16 | PageSize::K64) => {
                    checks.extend(judge::large_page_checks(&outcome));
                }
                (LinuxScenario::Peers, PageSize::K4) => {
                    checks.extend(judge::peer_checks(&outcome));
                    run.text.push_str(&judge::first_blocks(&outcome.events));
                }
                (LinuxScenario::Events | LinuxScenario::Moving, _) => {}
            }
            for mut check in checks {
                check.name = format!("{}: {}", host.name, check.name);
                run.checks.push(check);
            }
            run.text.insert_str(0, &judge::table(self.kind.architecture, &outcome.events));
            run.events.extend(outcome.events);
        }
        if let Some(qemu) = &self.qemu {
            run.text.push_str(&format!("QEMU {} of Debian\n", qemu.version));
        }
        Ok(run)
    }

    /// Boots a host, and lets it run its guests.
    fn boot(&self, scenario: LinuxScenario, host: &HostBoot) -> Result<Outcome> {
        let parts = self
            .hosts
            .iter()
            .find(|parts| parts.kind() == host.kind)
            .with_context(|| format!("the host {} was not prepared", host.kind.name))?;
        let folder = parts.scratch(scenario.name()).join(host.name.replace(' ', "-"));
        fs::create_dir_all(&folder)?;
        let native = self.kind.architecture == Architecture::native()?;
        let guest = Guest { host: parts, program: &self.program, native };
        let plan_file = folder.join("plan.json");
        fs::write(
            &plan_file,
            serde_json::to_string(&Plan { boots: host.boots.clone(), seconds: self.seconds })?,
        )?;
        let mut additions = vec![
            Addition::program(&self.program, format!("bin/{PROGRAM}")),
            Addition::file(&plan_file, "plan.json".to_owned()),
        ];
        if let Some(qemu) = &self.qemu {
            additions.push(Addition::file(&qemu.folder, "qemu".to_owned()));
        }
        if let Some(mover) = &self.mover {
            additions.push(Addition::program(mover, format!("bin/{HOST_PROGRAM}")));
        }
        for kernel in &self.kernels {
            if host.boots.iter().all(|boot| boot.kernel != inside(kernel)) {
                continue;
            }
            let initrd = guest.initrd(kernel, &self.kexec, &folder.join("guest"))?;
            let to = inside(kernel);
            let to = to.trim_start_matches('/');
            additions.push(Addition::file(&kernel.image, format!("{to}/vmlinuz")));
            additions.push(Addition::file(&initrd, format!("{to}/initrd")));
        }
        let boots = u32::try_from(host.boots.len())?;
        let moving = Duration::from_secs(self.seconds);
        let limit = GUEST_LIMIT.saturating_add(moving).saturating_mul(boots);
        let steps = [Step {
            name: "linux",
            limit,
            command: format!(
                "mount -t tracefs trace /sys/kernel/tracing && {PROGRAM} conduct /plan.json"
            ),
        }];
        let archive = folder.join("initramfs.gz");
        let root = folder.join("root");
        initramfs::pack(parts, &self.pvmsi, &steps, &additions, &root, &archive)?;
        let title = format!(
            "lab {}, host {}, scenario \"{}\", {}: {boots} guests",
            self.kind.architecture.name(),
            host.kind.name,
            scenario.name(),
            host.name
        );
        let results = process::step(&title, || {
            let limit = limit.saturating_add(BOOT_LIMIT);
            machine::boot(parts, &archive, &host.hardware, &folder, limit)
        })?;
        let result = results.outcome("linux")?;
        serde_json::from_str(&result.output)
            .with_context(|| format!("exit status {}, no outcome", result.status))
    }
}

/// The kind that is the same but for larger pages, which peers meet as well.
fn with_large_pages(kind: &Kind) -> Option<&'static Kind> {
    let same = |other: &&Kind| {
        (other.kernel, other.iommu, other.attach) == (kind.kernel, kind.iommu, kind.attach)
    };
    Kind::all(kind.architecture).filter(same).find(|other| other.pages.bytes() > kind.pages.bytes())
}

/// Which guests run on which hosts.
fn plan(
    kind: &'static Kind,
    kernels: &[Kernel],
    scenario: LinuxScenario,
    extent: Extent,
) -> Result<Vec<HostBoot>> {
    let stable = kernels.first().context("no guest kernel")?;
    let host = |name, isolation, kind, boots| HostBoot {
        name,
        kind,
        hardware: Hardware { isolation, linux: true, parallel: true, ..Hardware::USUAL },
        boots,
    };
    let mut hosts = Vec::new();
    match scenario {
        LinuxScenario::Peers => {
            let mut boots = Vec::new();
            let rounds = if extent == Extent::Full { ROUNDS } else { 1 };
            for round in 0..rounds {
                let suite = if round == 0 { Suite::Peers } else { Suite::Bind };
                boots.extend(peers(stable, suite));
            }
            if extent == Extent::Full {
                boots.extend(peers(stable, Suite::Unplug));
            }
            hosts.push(host("pages of 4K", true, kind, boots));
            if let (Some(large), Extent::Full) = (with_large_pages(kind), extent) {
                let boots = peers(stable, Suite::Peers);
                hosts.push(host("pages of 16K", true, large, boots));
            }
        }
        LinuxScenario::Moving => {
            let mut boot = events(stable, Policy::Direct, true, Suite::Moving);
            boot.functions.truncate(1);
            hosts.push(host("moving", true, kind, vec![boot]));
        }
        LinuxScenario::Events => {
            let chosen = if extent == Extent::Full { kernels } else { slice::from_ref(stable) };
            let mut boots = Vec::new();
            for kernel in chosen {
                let policies: &[Policy] = match extent {
                    Extent::Full => &[Policy::Direct, Policy::Trapped, Policy::Off],
                    Extent::Short => &[Policy::Direct],
                };
                for &policy in policies {
                    boots.push(events(kernel, policy, true, Suite::Events));
                }
                if extent == Extent::Full {
                    boots.push(events(kernel, Policy::Off, false, Suite::Events));
                    boots.push(events(kernel, Policy::Direct, false, Suite::Events));
                    boots.push(events(kernel, Policy::Direct, true, Suite::Reload));
                    boots.push(events(kernel, Policy::Direct, true, Suite::Tight));
                }
            }
            hosts.push(host("isolated", true, kind, boots));
            if extent == Extent::Full {
                let mut boot = events(stable, Policy::Direct, true, Suite::Events);
                boot.isolation = false;
                hosts.push(host("not isolated", false, kind, vec![boot]));
            }
        }
    }
    Ok(hosts)
}

/// A guest below each VMM.
fn peers(kernel: &Kernel, suite: Suite) -> Vec<Boot> {
    let boot = |vmm, policy, module| Boot {
        vmm,
        policy,
        module,
        kernel: inside(kernel),
        functions: match suite {
            Suite::Bind => vec![NVME.to_owned()],
            _ => vec![NVME.to_owned(), NETWORK.to_owned()],
        },
        isolation: true,
        suite,
    };
    let mut boots = vec![
        boot(Vmm::Qemu, None, false),
        boot(Vmm::Pvmsi, Some(Policy::Off), false),
        boot(Vmm::Pvmsi, Some(Policy::Direct), true),
    ];
    if suite != Suite::Bind {
        // Counts, not times: once is enough.
        boots.push(boot(Vmm::Pvmsi, Some(Policy::Direct), false));
    }
    boots
}

/// A guest with both functions.
fn events(kernel: &Kernel, policy: Policy, module: bool, suite: Suite) -> Boot {
    Boot {
        vmm: Vmm::Pvmsi,
        policy: Some(policy),
        module,
        kernel: inside(kernel),
        functions: vec![NVME.to_owned(), NETWORK.to_owned()],
        isolation: true,
        suite,
    }
}

/// Folder of a guest's kernel in the host.
fn inside(kernel: &Kernel) -> String {
    format!("/guests/{}", kernel.release)
}

/// What guests are made of.
struct Guest<'a> {
    host: &'a Host,
    program: &'a Path,
    native: bool,
}

impl Guest<'_> {
    /// The initial file system of guests with a kernel; `folder` is scratch space.
    fn initrd(&self, kernel: &Kernel, kexec: &Program, folder: &Path) -> Result<PathBuf> {
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
        // The next kernel's: no module of ours, and no other kernel.
        let next = folder.join(format!("{}-next.cpio", kernel.release));
        initramfs::archive_of(&root, &next, &Packing::Plain)?;
        fs::create_dir_all(root.join("boot"))?;
        initramfs::copy(&next, &root.join("boot/initrd"))?;
        initramfs::copy(&kernel.image, &root.join("boot/vmlinuz"))?;
        let tool = Addition::file(&kexec.folder, "kexec".to_owned());
        initramfs::add(&tool, &root, self.native)?;
        initramfs::copy(&kernel.module, &root.join("modules/pvmsi.ko"))?;
        initramfs::archive_of(&root, &archive, &Packing::Plain)?;
        Ok(archive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(release: &str) -> Kernel {
        let nowhere = PathBuf::new();
        Kernel {
            release: release.to_owned(),
            image: nowhere.clone(),
            modules: nowhere.clone(),
            module: nowhere,
        }
    }

    fn planned(
        architecture: Architecture,
        scenario: LinuxScenario,
        extent: Extent,
    ) -> Vec<HostBoot> {
        plan(Kind::usual(architecture).unwrap(), &[kernel("6.12"), kernel("7.3")], scenario, extent)
            .unwrap()
    }

    #[test]
    fn each_policy_meets_each_kernel_with_and_without_the_module() {
        for architecture in Architecture::ALL {
            let hosts = planned(architecture, LinuxScenario::Events, Extent::Full);
            let [isolated, unisolated] = hosts.as_slice() else { panic!("two hosts") };
            for kernel in ["/guests/6.12", "/guests/7.3"] {
                for (policy, module, suite) in [
                    (Policy::Direct, true, Suite::Events),
                    (Policy::Trapped, true, Suite::Events),
                    (Policy::Off, true, Suite::Events),
                    (Policy::Off, false, Suite::Events),
                    (Policy::Direct, false, Suite::Events),
                    (Policy::Direct, true, Suite::Reload),
                    (Policy::Direct, true, Suite::Tight),
                ] {
                    let found = isolated.boots.iter().filter(|boot| {
                        boot.kernel == kernel
                            && (boot.policy, boot.module) == (Some(policy), module)
                            && boot.suite == suite
                    });
                    assert_eq!(found.count(), 1, "{kernel} {policy:?} {module} {suite:?}");
                }
            }
            assert!(isolated.hardware.isolation && isolated.boots.iter().all(|b| b.isolation));
            assert!(!unisolated.hardware.isolation && !unisolated.boots.is_empty());
            assert!(unisolated.boots.iter().all(|boot| !boot.isolation && boot.module));
        }
    }

    #[test]
    fn peers_alternate_and_meet_large_pages_on_arm64() {
        let hosts = planned(Architecture::X86_64, LinuxScenario::Peers, Extent::Full);
        let [host] = hosts.as_slice() else { panic!("one host") };
        let kinds: Vec<_> =
            host.boots.iter().map(|boot| (boot.vmm, boot.policy, boot.module)).collect();
        let round = [
            (Vmm::Qemu, None, false),
            (Vmm::Pvmsi, Some(Policy::Off), false),
            (Vmm::Pvmsi, Some(Policy::Direct), true),
        ];
        let all = [&round[..], &[(Vmm::Pvmsi, Some(Policy::Direct), false)]].concat();
        let (first, others) = kinds.split_at(4);
        let (others, last) = others.split_at(others.len() - 4);
        assert_eq!(first, all, "counted once");
        assert_eq!(others, round.repeat(ROUNDS - 1));
        assert_eq!(last, all, "they are unplugged");
        let hosts = planned(Architecture::Aarch64, LinuxScenario::Peers, Extent::Full);
        let pages: Vec<_> = hosts.iter().map(|host| host.kind.pages).collect();
        assert_eq!(pages, [PageSize::K4, PageSize::K16]);
    }

    #[test]
    fn the_report_names_what_is_wrong() {
        let run = Run {
            events: Vec::new(),
            checks: vec![
                Check::new("one", Ok(())),
                Check::new("two", Err("0, must be 1".to_owned())),
            ],
            text: String::new(),
        };
        let report = run.report();
        assert_eq!(report.get("schema").unwrap(), SCHEMA);
        assert_eq!(report.get("linux").unwrap(), &json!([]));
        assert_eq!(report.get("failures").unwrap(), &json!(["two: 0, must be 1"]));
    }
}
