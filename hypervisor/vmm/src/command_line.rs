//! The command line of `pvmsi`.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use crate::arguments::{ProbeArguments, RunArguments, Status};
use crate::{output, probe, run};

/// Paravirtual MSI-X for KVM guests: the reference machine, and a check of hosts and functions.
#[derive(Debug, Parser)]
#[command(name = "pvmsi", version, arg_required_else_help = true, after_help = EXAMPLES)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  pvmsi probe                                    is this host ready, and which functions are eligible?
  pvmsi probe 0000:01:00.0                       can this function's vector table be mapped directly?
  pvmsi run --cpus 2 --function software:vectors=2048
                                                 the demo guest, with a function in software
  pvmsi run --function vfio:0000:01:00.0         the same with a function of this host
  pvmsi run --pv-msi off --report json GUEST     a guest of your own, the standard way, JSON on stdout";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a bare-metal guest with PCI functions, and report what it measured
    Run(RunArguments),
    /// Say whether this host and its functions can do direct mode, and what to change if not
    Probe(ProbeArguments),
}

/// Runs `pvmsi` with these arguments, the program's name first.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    match CommandLine::try_parse_from(arguments) {
        Ok(CommandLine { command: Command::Run(arguments) }) => run::command(&arguments).into(),
        Ok(CommandLine { command: Command::Probe(arguments) }) => probe::command(&arguments).into(),
        Err(error) => explain(&error).into(),
    }
}

/// Prints help, the version, or what is wrong with the arguments.
fn explain(error: &clap::Error) -> Status {
    let printed = error.print().and_then(|()| io::stdout().flush());
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            match output::unless_closed(printed) {
                Ok(()) => Status::Success,
                Err(error) => {
                    output::complain(&format!("error: this cannot be printed: {error}"));
                    Status::Host
                }
            }
        }
        // Whether it could be said or not.
        _ => Status::Usage,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use pvmsi_hypervisor::Policy;

    use super::*;
    use crate::arguments::ReportFormat;
    use crate::doorbell::Doorbell;
    use clap::CommandFactory;

    fn run(arguments: &[&str]) -> Result<RunArguments, String> {
        let all = ["pvmsi", "run"].iter().chain(arguments);
        match CommandLine::try_parse_from(all) {
            Ok(CommandLine { command: Command::Run(arguments) }) => Ok(arguments),
            Ok(_) => Err("not run".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn arguments_of_run() {
        let arguments = run(&[
            "--function",
            "software:vectors=2048",
            "--function",
            "vfio:0000:01:00.0,pv-msi=trapped",
            "--pv-msi",
            "trapped",
            "--cpus",
            "2",
            "--memory",
            "64M",
            "--report",
            "json",
            "--report-file",
            "report.json",
            "--doorbell",
            "mmio",
            "--vectors-per-call",
            "16",
            "--pin-interrupts",
            "no",
            "--timeout",
            "5",
            "--append",
            "pairs=2 writes=3",
            "guest.elf",
        ])
        .unwrap();
        assert_eq!(arguments.functions.len(), 2);
        assert_eq!(arguments.policy, Policy::Trapped);
        assert_eq!((arguments.cpus, arguments.memory), (2, 64 << 20));
        assert_eq!(arguments.report, ReportFormat::Json);
        assert_eq!(arguments.report_file, Some(PathBuf::from("report.json")));
        assert_eq!(arguments.doorbell, Doorbell::Mmio);
        assert_eq!(arguments.vectors_per_call, Some(16));
        assert!(!arguments.pin_interrupts);
        assert!(run(&[]).unwrap().pin_interrupts, "by default");
        assert_eq!(arguments.timeout, Some(5));
        assert_eq!(arguments.append, "pairs=2 writes=3");
        assert_eq!(arguments.guest(), Some(PathBuf::from("guest.elf")));
        assert_eq!(run(&["--guest", "g"]).unwrap().guest(), Some(PathBuf::from("g")));
        assert_eq!(run(&[]).unwrap().guest(), None);
        let linux = run(&["--kernel", "vmlinuz", "--initrd", "initrd.img"]).unwrap();
        assert_eq!(linux.kernel, Some(PathBuf::from("vmlinuz")));
        assert_eq!(linux.initrd, Some(PathBuf::from("initrd.img")));
    }

    #[test]
    fn wrong_arguments_are_explained() {
        for (arguments, part) in [
            (&["--function", "nvme"] as &[_], "write software:vectors=64"),
            (&["--pv-msi", "on"], "off, trapped or direct"),
            (&["--memory", "lots"], "write 64M or 1G"),
            (&["--memory", "99999999999G"], "write 64M or 1G"),
            (&["--cpus", "0"], "1..="),
            (&["--vectors-per-call", "0"], "1..="),
            (&["--pin-interrupts", "maybe"], "yes or no"),
            (&["--report", "xml"], "possible values: text, json, none"),
            (&["--doorbell", "bell"], "mmio"),
            (&["--guest", "a", "b"], "cannot be used with"),
            (&["--kernel", "a", "b"], "cannot be used with"),
            (&["--kernel", "a", "--guest", "b"], "cannot be used with"),
            (&["--initrd", "a"], "--kernel"),
        ] {
            let error = run(arguments).unwrap_err();
            assert!(error.contains(part), "{arguments:?}: {error}");
        }
    }
}
