//! `cargo xtask conformance`: the conformance suite, in process and from inside a guest.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::architecture::Architecture;
use crate::check::{self, Check};
use crate::demo;
use crate::guests::CONFORMANCE;
use crate::process;
use crate::workspace::Workspace;

/// Bound of one run, in seconds.
pub(crate) const LIMIT: u64 = 600;

/// The functions that the guest wants: options of `--function`, and what the guest is told of them.
const FUNCTIONS: [(&str, &str); 8] = [
    ("vectors=8", "direct"),
    ("vectors=8,pv-msi=trapped", "trapped"),
    ("vectors=8,pv-msi=off", "denied"),
    ("vectors=8,isolated=no", "direct+open"),
    ("vectors=8,isolated=no,allow-unisolated=yes", "direct+open+allowed"),
    ("vectors=8,isolated=no,allow-unisolated=yes,pv-msi=trapped", "trapped+open+allowed"),
    ("vectors=64", "direct"),
    ("vectors=300", "direct"),
];

/// Some messages go to the third.
const CPUS: &str = "3";

/// Why a test is skipped that wants a machine without the service.
const WITHOUT_SERVICE: &str = "this machine offers the service";

/// Options of `cargo xtask conformance`.
#[derive(Args)]
pub(crate) struct Options {
    /// Run the suite from inside a guest, on this machine's /dev/kvm.
    #[arg(long)]
    vm: bool,
    /// Prove the suite: run it on halves that are wrong in one thing each, and count those caught.
    #[arg(long, conflicts_with = "vm")]
    mutants: bool,
    /// Write down which tests a guest cannot run, instead of comparing.
    #[arg(long, requires = "vm")]
    bless: bool,
}

/// Whether the machine offers the service.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    On,
    Off,
}

/// Runs it; true when every check holds. Without options the halves of this repository are tested in process.
///
/// # Errors
/// Without KVM where it is needed, or when a build fails.
pub(crate) fn command(workspace: &Workspace, options: &Options) -> Result<bool> {
    if !options.vm {
        let what: &[&str] = if options.mutants { &["mutants"] } else { &["run", "--strict"] };
        return in_process(workspace, what);
    }
    if let Some(why) = demo::kvm_missing() {
        bail!("{why}\nThe same runs in an emulated host: cargo xtask lab x86_64");
    }
    let architecture = Architecture::native()?;
    let pvmsi = workspace.build_pvmsi(architecture)?;
    if options.bless {
        let ktap = read(&run(&pvmsi, Service::On)?.1).map_err(anyhow::Error::msg)?;
        fs::write(list(workspace, architecture), ktap.skipped_list())?;
    }
    Ok(check::print("conformance, from inside a guest", &checks(workspace, &pvmsi)?))
}

/// Starts the guest as a machine of another make does: by PVH, on an emulated PC, where it finds nothing to test.
///
/// # Errors
/// When the guest does not say so.
pub(crate) fn starts_by_pvh(workspace: &Workspace) -> Result<()> {
    let guest = workspace.build_pvmsi(Architecture::X86_64)?.with_file_name(CONFORMANCE);
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-machine", "q35,accel=tcg", "-m", "128", "-nodefaults", "-display", "none"]);
    command.args(["-no-reboot", "-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4"]);
    command.arg("-kernel").arg(guest);
    let (_, text) = process::capture("qemu", &mut command, Duration::from_secs(120), false)?;
    if !text.contains("KTAP version 1") || !text.contains("no software function") {
        bail!("the guest printed: {text:?}");
    }
    Ok(())
}

fn in_process(workspace: &Workspace, arguments: &[&str]) -> Result<bool> {
    let mut command = workspace.cargo();
    command.args(["run", "--quiet", "--locked", "--package", "pvmsi-conformance", "--"]);
    let status = command.args(arguments).status().context("cannot start cargo")?;
    Ok(status.success())
}

/// Runs the suite with and without the service, on this machine's KVM.
///
/// # Errors
/// When a run does not come to an end.
pub(crate) fn checks(workspace: &Workspace, pvmsi: &Path) -> Result<Vec<Check>> {
    let expected = Expected::read(workspace, Architecture::native()?)?;
    let mut checks = Vec::new();
    for (name, service) in [("with the service", Service::On), ("without", Service::Off)] {
        let (status, text) =
            process::step(&format!("the suite in a guest, {name}"), || run(pvmsi, service))?;
        checks.push(Check::new(name, expected.judge(service, status, &text)));
    }
    Ok(checks)
}

/// The arguments of `pvmsi`, as a shell takes them. `guest` is where the image is; `exact`: the host delivers no interrupt twice.
pub(crate) fn arguments(service: Service, exact: bool, guest: &str) -> Vec<String> {
    let mut arguments: Vec<String> = vec!["run".into()];
    for (options, _) in FUNCTIONS {
        arguments.extend(["--function".into(), format!("software:{options}")]);
    }
    let said: Vec<_> = FUNCTIONS.iter().map(|(_, said)| *said).collect();
    let (policy, on) = if service == Service::On { ("direct", 1) } else { ("off", 0) };
    let exact = u8::from(exact);
    let append = format!("functions={} service={on} exact={exact}", said.join(","));
    let fixed = ["--cpus", CPUS, "--report", "none", "--pv-msi", policy, "--timeout"];
    arguments.extend(fixed.map(str::to_owned));
    arguments.extend([LIMIT.to_string(), "--append".into(), append, guest.into()]);
    arguments
}

/// Exit status and output.
fn run(pvmsi: &Path, service: Service) -> Result<(i32, String)> {
    let guest = pvmsi.with_file_name(CONFORMANCE);
    let mut command = Command::new(pvmsi);
    command.args(arguments(service, true, &guest.to_string_lossy()));
    let limit = Duration::from_secs(LIMIT.saturating_add(60));
    let (status, text) = process::capture("pvmsi run", &mut command, limit, false)?;
    Ok((status.code().unwrap_or(-1), text))
}

/// The tests that a guest of an architecture cannot run; the matrix of the book is made from it, too.
fn list(workspace: &Workspace, architecture: Architecture) -> PathBuf {
    workspace
        .root
        .join("tests/conformance/in-a-guest")
        .join(architecture.name())
        .with_extension("txt")
}

/// Which tests must be skipped, and why; all others must pass.
pub(crate) struct Expected(BTreeMap<String, String>);

impl Expected {
    /// Reads the list of an architecture.
    ///
    /// # Errors
    /// When it is not there or cannot be understood.
    pub(crate) fn read(workspace: &Workspace, architecture: Architecture) -> Result<Self> {
        let file = list(workspace, architecture);
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let line = |line: &str| {
            let (test, why) = line.split_once(": ")?;
            Some((test.to_owned(), why.to_owned()))
        };
        let lines: Option<_> = text.lines().map(line).collect();
        lines.map(Self).with_context(|| format!("{} has a line without a reason", file.display()))
    }

    /// Exit status and output of a run against the list.
    pub(crate) fn judge(&self, service: Service, status: i32, text: &str) -> Result<(), String> {
        let ktap = read(text)?;
        check::equal("tests failed", ktap.failed.join(", ").as_str(), "")?;
        check::equal("exit status of pvmsi run", status, 0)?;
        if service == Service::On {
            if ktap.skipped == self.0 {
                return Ok(());
            }
            let other = |a: &BTreeMap<String, String>, b: &BTreeMap<String, String>| {
                let differ = a.iter().filter(|(test, why)| b.get(*test) != Some(why));
                differ.map(|(test, why)| format!("{test}: {why}")).collect::<Vec<_>>().join("; ")
            };
            return Err(format!(
                "skipped, but not in the list: [{}]; in the list, but not skipped: [{}]; if that is right: cargo xtask conformance --vm --bless",
                other(&ktap.skipped, &self.0),
                other(&self.0, &ktap.skipped),
            ));
        }
        let wanted = self.0.iter().filter(|(_, why)| *why == WITHOUT_SERVICE);
        let mut wanted: Vec<_> = wanted.map(|(test, _)| test.clone()).collect();
        let mut passed = ktap.passed;
        wanted.sort();
        passed.sort();
        check::equal("tests passed", passed, wanted)
    }
}

/// What a run says of its tests.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ktap {
    passed: Vec<String>,
    failed: Vec<String>,
    skipped: BTreeMap<String, String>,
}

impl Ktap {
    fn skipped_list(&self) -> String {
        self.skipped.iter().fold(String::new(), |mut list, (test, why)| {
            let _ = writeln!(list, "{test}: {why}");
            list
        })
    }
}

/// Reads KTAP, version 1: every test of the plan, in its order.
fn read(text: &str) -> Result<Ktap, String> {
    let mut lines = text.lines().map(str::trim_end).skip_while(|line| *line != "KTAP version 1");
    lines.next().ok_or("no line \"KTAP version 1\"")?;
    let plan = lines.next().and_then(|line| line.strip_prefix("1..")?.parse::<usize>().ok());
    let plan = plan.ok_or("no plan after the version")?;
    let mut ktap = Ktap::default();
    let mut seen = 0_usize;
    for line in lines {
        let (good, rest) = match (line.strip_prefix("ok "), line.strip_prefix("not ok ")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ if line.starts_with("Bail out!") => return Err(line.to_owned()),
            _ => continue,
        };
        seen = seen.saturating_add(1);
        let (number, rest) = rest.split_once(' ').ok_or_else(|| format!("no name: {line}"))?;
        check::equal("number of a test", number, seen.to_string().as_str())?;
        match rest.split_once(" # SKIP ") {
            Some((name, why)) => drop(ktap.skipped.insert(name.to_owned(), why.to_owned())),
            None if good => ktap.passed.push(rest.to_owned()),
            None => {
                eprintln!(
                    "{}",
                    text.lines()
                        .filter(|line| line.starts_with("# "))
                        .collect::<Vec<_>>()
                        .join("\n")
                );
                ktap.failed.push(rest.to_owned());
            }
        }
    }
    check::equal("tests that came to an end", seen, plan)?;
    Ok(ktap)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "a warning\nKTAP version 1\n1..3\nok 1 a\n# b (H-1): why\nok 2 b # SKIP this machine offers the service\nok 3 c # SKIP other\n";

    fn expected() -> Expected {
        let lines = [("b", WITHOUT_SERVICE), ("c", "other")];
        Expected(lines.map(|(test, why)| (test.to_owned(), why.to_owned())).into())
    }

    #[test]
    fn a_run_as_listed_is_accepted() {
        assert_eq!(expected().judge(Service::On, 0, RUN), Ok(()));
        let off = RUN.replace("ok 1 a", "ok 1 a # SKIP off");
        let off = off.replace(&format!("b # SKIP {WITHOUT_SERVICE}"), "b");
        assert_eq!(expected().judge(Service::Off, 0, &off), Ok(()));
    }

    #[test]
    fn what_differs_from_the_list_is_told() {
        for (from, to) in [
            ("ok 1 a", "not ok 1 a"),
            ("ok 1 a", "ok 1 a # SKIP why"),
            ("c # SKIP other", "c"),
            ("c # SKIP other", "c # SKIP another"),
            ("1..3", "1..4"),
            ("KTAP version 1", "TAP version 14"),
            ("ok 2 b", "ok 3 b"),
        ] {
            assert!(expected().judge(Service::On, 0, &RUN.replace(from, to)).is_err(), "{to}");
        }
        assert!(expected().judge(Service::On, 1, RUN).is_err());
        assert!(expected().judge(Service::Off, 0, RUN).is_err());
    }

    #[test]
    fn the_guest_is_told_of_every_function() {
        let arguments = arguments(Service::On, true, "guest");
        let given = arguments.iter().filter(|argument| argument.starts_with("software:")).count();
        assert_eq!(given, FUNCTIONS.len());
        assert!(arguments.iter().any(|argument| argument.contains("functions=direct,trapped")));
    }
}
