//! `cargo xtask test`: every check of the project, in the order of their cost.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use crate::architecture::Architecture;
use crate::bench;
use crate::conformance;
use crate::demo;
use crate::fuzz::{self, FuzzTarget};
use crate::guests;
use crate::lab::{Extent, Kind, Lab, LinuxLab, LinuxScenario, Scenario};
use crate::model;
use crate::module;
use crate::package;
use crate::process;
use crate::shim;
use crate::soak::{self, Plan};
use crate::summary::{Counts, Summary, Verdict};
use crate::target::Target;
use crate::workspace::{Workspace, cargo_in};

/// Bound of a build or of a test run.
const LIMIT: Duration = Duration::from_secs(1200);

/// The tests that need /dev/kvm; a package of their own, so that all others run everywhere.
const KVM_TESTS: &str = "pvmsi-kvm-tests";

/// Says that a machine of continuous integration has no KVM, and may not have it.
const WITHOUT_KVM: &str = "PVMSI_CI_WITHOUT_KVM";

/// The release of cargo-deny that the configuration was written for.
const CARGO_DENY: &str = "0.20.2";

/// How long each fuzz target runs: enough to repeat its corpus and to find what is shallow.
const FUZZING: Duration = Duration::from_secs(10);

/// The short soak of a test run; a longer one is a command of its own.
const SOAK: Plan = Plan { seconds: 20, seed: 1 };

/// The emulated host beside the usual ones: the one whose pages show what larger pages cost.
const LARGE_PAGES: &str = "smmu-16k";

/// Options of `cargo xtask test`.
#[derive(Args)]
pub(crate) struct Options {
    /// Leave the emulated hosts out (they take the longest).
    #[arg(long)]
    no_lab: bool,
}

/// Runs all; true when nothing failed.
///
/// # Errors
/// None: failures are counted.
pub(crate) fn command(workspace: &Workspace, options: &Options) -> Result<bool> {
    let mut summary = Summary::default();
    let native = Architecture::native()?;
    let others = || Architecture::ALL.into_iter().filter(|&other| other != native);
    summary.step("format", || format(workspace));
    summary.step("test vectors, read in Python", || vectors(workspace));
    summary.step("clippy", || clippy(workspace));
    summary.step("clippy of the host service, without KVM, without VFIO, without either", || {
        clippy_of_seams(workspace)
    });
    for other in others() {
        let name = other.name();
        summary.step(&format!("clippy for {name}"), || clippy_for(workspace, other));
    }
    for architecture in Architecture::ALL {
        let name = architecture.name();
        summary.step(&format!("clippy of the guests for {name}"), || {
            clippy_of_guests(workspace, architecture)
        });
    }
    licences(workspace, &mut summary);
    summary.step("guest half for C kernels", || Ok(Verdict::Checked(shim::checks(workspace)?)));
    summary.step("Debian package of the Linux module", || {
        Ok(Verdict::Checked(package::checks(workspace)?))
    });
    for architecture in Architecture::ALL {
        let title = format!("Linux guest module for {}", architecture.name());
        summary.step(&title, || {
            let stable = module::Series::Stable;
            Ok(Verdict::Checked(module::build_checks(workspace, architecture, &stable, true)?))
        });
    }
    for architecture in Architecture::ALL {
        let name = architecture.name();
        summary.step(&format!("bare-metal build of the guest's crates for {name}"), || {
            bare_metal(workspace, architecture)
        });
        summary.step(&format!("guests for {name}"), || {
            guests::build(workspace, architecture).map(|()| Verdict::Passed)
        });
    }
    summary.step("unit and documentation tests", || {
        let selection = ["--workspace", "--exclude", KVM_TESTS, "--exclude", model::PACKAGE];
        cargo_test(workspace.cargo(), &selection)
    });
    summary.step("bench: counts within their bounds", || bench(workspace));
    fuzzing(workspace, &mut summary);
    summary.step("model of the host service", || model::explore(workspace, true));
    summary.step("model of the host service: seeded bugs", || {
        // Unoptimised it takes ten times as long.
        cargo_test(workspace.cargo(), &["--release", "--package", model::PACKAGE])
    });
    summary.step("locks of the host service", || model::locks(workspace).map(Verdict::Counted));
    for other in others() {
        emulated_tests(workspace, other, &mut summary);
    }
    let kvm = Kvm::find();
    summary.step("tests on KVM", || {
        // One machine at a time: its vCPUs spin, and KVM waits for all of them when memory slots
        // change. On two processors that others use as well, five machines starve each other.
        let selection = ["--package", KVM_TESTS, "--", "--test-threads", "1"];
        kvm.require(|| cargo_test(workspace.cargo(), &selection))
    });
    summary.step("demo", || {
        kvm.require(|| Ok(Verdict::Checked(demo::checks(&workspace.build_pvmsi(native)?)?)))
    });
    summary.step("conformance suite from inside a guest", || {
        kvm.require(|| {
            let pvmsi = workspace.build_pvmsi(native)?;
            Ok(Verdict::Checked(conformance::checks(workspace, &pvmsi)?))
        })
    });
    summary.step("soak", || {
        kvm.require(|| {
            let text = soak::on_kvm(&workspace.build_pvmsi(native)?, SOAK)?;
            Ok(Verdict::Checked(soak::checks(&text, SOAK)))
        })
    });
    for architecture in Architecture::ALL {
        if options.no_lab {
            let name = format!("lab {}", architecture.name());
            summary.step(&name, || Ok(Verdict::Skipped("--no-lab".to_owned())));
        } else {
            lab(workspace, architecture, &mut summary);
        }
    }
    summary.step("conformance guest, started by PVH", || {
        if options.no_lab {
            return Ok(Verdict::Skipped("--no-lab".to_owned()));
        }
        // The emulator is there: the lab has fetched it.
        conformance::starts_by_pvh(workspace).map(|()| Verdict::Passed)
    });
    Ok(summary.finish())
}

fn format(workspace: &Workspace) -> Result<Verdict> {
    let apart = ["", "tests/guests"].into_iter().chain(fuzz::PROJECTS);
    for folder in apart.map(|folder| workspace.root.join(folder)) {
        let mut command = cargo_in(&folder);
        command.args(["fmt", "--all", "--check"]);
        process::run("cargo fmt", &mut command, LIMIT).context("run: cargo fmt --all")?;
    }
    Ok(Verdict::Passed)
}

/// The reader that shares nothing with the Rust halves.
fn vectors(workspace: &Workspace) -> Result<Verdict> {
    if !process::available("python3") {
        return without_python(is_set("CI"));
    }
    let mut command = Command::new("python3");
    command.arg(workspace.root.join("spec/vectors/decode.py"));
    process::run("decode.py", &mut command, LIMIT)?;
    Ok(Verdict::Passed)
}

fn without_python(required: bool) -> Result<Verdict> {
    anyhow::ensure!(!required, "python3 is missing; CI is set, so it must be there");
    Ok(Verdict::Skipped("python3 is missing".to_owned()))
}

/// Whether a variable of the environment says yes.
fn is_set(name: &str) -> bool {
    std::env::var(name).is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false"))
}

fn clippy(workspace: &Workspace) -> Result<Verdict> {
    let mut command = workspace.cargo();
    command.args(["clippy", "--quiet", "--locked", "--workspace", "--all-targets"]);
    command.args(["--", "-D", "warnings"]);
    process::run("cargo clippy", &mut command, LIMIT)?;
    Ok(Verdict::Passed)
}

/// The host service for VMMs that bring seams of their own. With both features it is built with
/// the rest.
fn clippy_of_seams(workspace: &Workspace) -> Result<Verdict> {
    for features in ["", "kvm", "vfio"] {
        let mut command = workspace.cargo();
        command.args(["clippy", "--quiet", "--locked", "--package", "pvmsi-hypervisor"]);
        command.args(["--all-targets", "--no-default-features", "--features", features]);
        command.args(["--", "-D", "warnings"]);
        process::run("cargo clippy", &mut command, LIMIT)
            .with_context(|| format!("the features are {features:?}"))?;
    }
    Ok(Verdict::Passed)
}

/// The same for what this machine does not run itself.
fn clippy_for(workspace: &Workspace, architecture: Architecture) -> Result<Verdict> {
    let mut command = Target::linux(workspace, architecture)?.cargo_in(&workspace.root);
    command.args(["clippy", "--quiet", "--locked", "--release", "--all-targets"]);
    command.args(["--workspace", "--exclude", "xtask", "--", "-D", "warnings"]);
    process::run("cargo clippy", &mut command, LIMIT)?;
    Ok(Verdict::Passed)
}

fn clippy_of_guests(workspace: &Workspace, architecture: Architecture) -> Result<Verdict> {
    let mut command = guests::cargo(workspace, architecture, "clippy")?;
    command.args(["--locked", "--", "-D", "warnings"]);
    process::run("cargo clippy", &mut command, LIMIT)?;
    Ok(Verdict::Passed)
}

/// Licences, bans and sources need only the lock file; advisories need a database from the network.
fn licences(workspace: &Workspace, summary: &mut Summary) {
    let mut deny = None;
    summary.step("dependencies: licences, bans, sources", || {
        let deny = deny.insert(cargo_deny(workspace)?);
        let apart = ["", "tests/guests"].into_iter().chain(fuzz::PROJECTS);
        for manifest in apart.map(|folder| workspace.root.join(folder).join("Cargo.toml")) {
            let mut command = Command::new(&*deny);
            command.current_dir(&workspace.root).arg("--manifest-path").arg(manifest);
            command.args(["--locked", "--config", "deny.toml", "--log-level", "error"]);
            command.args(["check", "bans", "licenses", "sources"]);
            process::run("cargo deny check", &mut command, LIMIT)?;
        }
        Ok(Verdict::Passed)
    });
    summary.step("dependencies: advisories", || {
        let Some(deny) = &deny else {
            return Ok(Verdict::Skipped("cargo-deny is not there".to_owned()));
        };
        let mut fetch = Command::new(deny);
        fetch.current_dir(&workspace.root).args(["--log-level", "off", "fetch", "db"]);
        fetch.stderr(std::process::Stdio::null());
        if process::run("cargo deny fetch", &mut fetch, Duration::from_secs(60)).is_err() {
            return Ok(Verdict::Skipped(
                "the advisory database cannot be fetched from github.com".to_owned(),
            ));
        }
        let mut command = Command::new(deny);
        command.current_dir(&workspace.root).args(["--log-level", "error", "check"]);
        command.args(["--disable-fetch", "advisories"]);
        process::run("cargo deny check advisories", &mut command, LIMIT)?;
        Ok(Verdict::Passed)
    });
}

/// The installed cargo-deny, or one that is built under the build folder (about a minute).
fn cargo_deny(workspace: &Workspace) -> Result<PathBuf> {
    if process::available("cargo-deny") {
        return Ok("cargo-deny".into());
    }
    let tools = workspace.target.join("tools");
    let program = tools.join("bin/cargo-deny");
    if !program.is_file() {
        process::step("building cargo-deny", || {
            let mut command = workspace.cargo();
            command.args(["install", "cargo-deny", "--version", CARGO_DENY, "--locked", "--quiet"]);
            // Unoptimised: built in a quarter of the time, and it has little to do here.
            command.args(["--no-default-features", "--profile", "dev", "--root"]).arg(&tools);
            command.arg("--target-dir").arg(tools.join("build"));
            process::run("cargo install cargo-deny", &mut command, LIMIT)
        })?;
    }
    Ok(program)
}

/// What a guest kernel links must build without an operating system, on its own features.
fn bare_metal(workspace: &Workspace, architecture: Architecture) -> Result<Verdict> {
    let mut command = Target::bare_metal(workspace, architecture)?.cargo_in(&workspace.root);
    command.args(["build", "--quiet", "--locked"]);
    command.args(["--package", "pvmsi-guest", "--package", "pvmsi-protocol"]);
    process::run("cargo build", &mut command, LIMIT)?;
    Ok(Verdict::Passed)
}

fn cargo_test(mut command: Command, selection: &[&str]) -> Result<Verdict> {
    command.args(["test", "--quiet", "--locked", "--no-fail-fast"]).args(selection);
    let (status, output) = process::capture("cargo test", &mut command, LIMIT, true)?;
    let counts = Counts::of_cargo_test(&output);
    // A crate that does not compile, or a test that ends its process, has no summary line.
    Ok(Verdict::Counted(if status.success() || counts.failed() > 0 {
        counts
    } else {
        counts.with_failure()
    }))
}

/// Counts by valgrind. One that cannot be had is a reason to skip at home, not in continuous
/// integration.
fn bench(workspace: &Workspace) -> Result<Verdict> {
    match bench::valgrind(workspace) {
        Err(why) if !is_set("CI") => Ok(Verdict::Skipped(format!("{why:#}"))),
        result => result.and_then(|()| Ok(Verdict::Checked(bench::checks(workspace)?))),
    }
}

/// A bounded run of each fuzz target from its corpus. A C++ compiler that cannot be had is a reason
/// to skip at home, not in continuous integration.
fn fuzzing(workspace: &Workspace, summary: &mut Summary) {
    let missing = fuzz::compiler(workspace).err().filter(|_| !is_set("CI"));
    let unless_missing = |action: &dyn Fn() -> Result<Verdict>| match &missing {
        Some(why) => Ok(Verdict::Skipped(format!("{why:#}"))),
        None => action(),
    };
    summary.step("clippy of the fuzz targets", || unless_missing(&|| clippy_of_fuzzing(workspace)));
    for target in FuzzTarget::ALL {
        summary.step(&format!("fuzz {}", target.name()), || {
            unless_missing(&|| {
                eprintln!("{}", fuzz::smoke(workspace, target, FUZZING)?);
                Ok(Verdict::Passed)
            })
        });
    }
}

fn clippy_of_fuzzing(workspace: &Workspace) -> Result<Verdict> {
    for folder in fuzz::PROJECTS {
        let mut command = cargo_in(&workspace.root.join(folder));
        command.args(["clippy", "--quiet", "--locked", "--all-targets", "--target-dir"]);
        command.arg(workspace.target.join("fuzz/clippy")).args(["--", "-D", "warnings"]);
        process::run("cargo clippy", &mut command, LIMIT)?;
    }
    Ok(Verdict::Passed)
}

/// Unit tests on an emulated processor. What needs KVM cannot run on it.
fn emulated_tests(workspace: &Workspace, architecture: Architecture, summary: &mut Summary) {
    let name = architecture.name();
    summary.step(&format!("unit and documentation tests for {name}, emulated"), || {
        let mut command = Target::linux(workspace, architecture)?.cargo_in(&workspace.root);
        command.env(WITHOUT_KVM, "1");
        // The lab needs what is built here, and optimised code is emulated in a tenth of the time.
        cargo_test(
            command,
            &[
                &["--release", "--workspace", "--exclude", "xtask", "--exclude", KVM_TESTS][..],
                &["--exclude", model::PACKAGE],
            ]
            .concat(),
        )
    });
    summary.step(&format!("tests on KVM for {name}"), || {
        Ok(Verdict::Skipped(format!(
            "this machine emulates single programs of {name}, not its KVM; the lab has one"
        )))
    });
}

/// What the emulated hosts of an architecture show in the time that continuous integration has: all on the
/// usual one, and of another what it alone can show. The rest is named, not run.
fn lab(workspace: &Workspace, architecture: Architecture, summary: &mut Summary) {
    let name = format!("lab {}", architecture.name());
    let usual = Kind::all(architecture).take(1).map(|kind| {
        let in_short = |scenario: &Scenario| *scenario != Scenario::Moving;
        (kind, Scenario::all(kind).into_iter().filter(in_short).collect())
    });
    let large = Kind::all(architecture)
        .filter(|kind| kind.name == LARGE_PAGES)
        .map(|kind| (kind, vec![Scenario::Direct]));
    let sample: Vec<_> = usual.chain(large).collect();
    let mut usual = None;
    for (kind, scenarios) in &sample {
        let name = format!("{name}, host {}", kind.name);
        let mut parts = None;
        summary.step(&format!("{name}: set-up"), || {
            let pvmsi = workspace.build_pvmsi(architecture)?;
            parts = Some((pvmsi, Lab::prepare(workspace, kind, scenarios)?));
            Ok(Verdict::Passed)
        });
        for &scenario in scenarios {
            summary.step(&format!("{name}: {}", scenario.name()), || match &parts {
                Some((pvmsi, lab)) => {
                    let run = lab.run(pvmsi, scenario, 1)?;
                    if let Some(shown) = &run.shown {
                        eprintln!("{}", shown.text);
                    }
                    Ok(Verdict::Checked(run.checks))
                }
                None => Ok(Verdict::Skipped("the set-up failed".to_owned())),
            });
        }
        usual = usual.or(parts);
    }
    for kind in Kind::all(architecture).filter(|kind| sample.iter().all(|(run, _)| run != kind)) {
        summary.step(&format!("{name}, host {}", kind.name), || {
            let why =
                format!("takes time: cargo xtask lab {} --host {}", architecture.name(), kind.name);
            Ok(Verdict::Skipped(why))
        });
    }
    summary.step(&format!("{name}: moving"), || {
        let why = "takes ten minutes for each part: cargo xtask lab";
        let name = architecture.name();
        Ok(Verdict::Skipped(format!("{why} {name} --scenario moving --minutes 10")))
    });
    summary.step(&format!("{name}: linux, in short"), || {
        let scenario = LinuxScenario::Events;
        let kind = Kind::usual(architecture)?;
        let lab = LinuxLab::prepare(workspace, kind, scenario, Extent::Short)?;
        let run = lab.run(scenario, Extent::Short)?;
        eprintln!("{}", run.text);
        Ok(Verdict::Checked(run.checks))
    });
    if Lab::counts_exactly(architecture) {
        summary.step(&format!("{name}: soak"), || match &usual {
            Some((pvmsi, lab)) => {
                let text = lab.soak(pvmsi, SOAK)?;
                Ok(Verdict::Checked(soak::checks(&text, SOAK)))
            }
            None => Ok(Verdict::Skipped("the set-up failed".to_owned())),
        });
    }
}

/// Whether tests can use this machine's KVM.
struct Kvm {
    missing: Option<String>,
    required: bool,
}

impl Kvm {
    fn find() -> Self {
        Self { missing: demo::kvm_missing(), required: is_set("CI") && !is_set(WITHOUT_KVM) }
    }

    /// Runs a step that needs KVM. Without it the step is skipped, on a machine of continuous
    /// integration it fails: a check that silently stops running is none.
    fn require(&self, action: impl FnOnce() -> Result<Verdict>) -> Result<Verdict> {
        match &self.missing {
            None => action(),
            Some(why) if self.required => anyhow::bail!(
                "{why}; CI is set, so KVM must be there: give the machine KVM, or set {WITHOUT_KVM}=1"
            ),
            Some(why) => Ok(Verdict::Skipped(why.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_kvm_skips_at_home_and_fails_in_continuous_integration() {
        let outcome = |missing: Option<&str>, required| {
            Kvm { missing: missing.map(str::to_owned), required }.require(|| Ok(Verdict::Passed))
        };
        assert!(matches!(outcome(None, true), Ok(Verdict::Passed)));
        assert!(matches!(outcome(Some("none"), false), Ok(Verdict::Skipped(_))));
        assert!(outcome(Some("none"), true).is_err());
    }

    #[test]
    fn missing_python_skips_at_home_and_fails_in_continuous_integration() {
        assert!(matches!(without_python(false), Ok(Verdict::Skipped(_))));
        assert!(without_python(true).is_err());
    }
}
