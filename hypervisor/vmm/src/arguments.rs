//! The arguments of `pvmsi`'s commands, and its exit statuses.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::PossibleValue;
use clap::{ArgAction, Args, ValueEnum};
use pvmsi_hypervisor::{HostPaths, Policy};
use pvmsi_protocol::{FunctionId, VECTORS_MAX};

use crate::arch;
use crate::config::FunctionConfig;
use crate::doorbell::Doorbell;

/// Exit statuses of `pvmsi`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// All is well.
    Success = 0,
    /// A check failed, or direct mode is not possible.
    Failed = 1,
    /// What was asked for makes no sense.
    Usage = 2,
    /// The host cannot do it.
    Host = 3,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status as u8)
    }
}

const RUN_HELP: &str = "\
Functions:
  software[:vectors=N][,isolated=no]             a function in software (64 vectors)
  vfio:BDF                                       a function of this host, bound to vfio-pci
  each with [,pv-msi=off|trapped|direct]         a lower policy for this function alone
            [,most-vectors=N]                    the most vectors that the guest is granted
       and  [,allow-unisolated=yes]              map its table although the host does not confine its
                                                 interrupts: the guest can raise any interrupt of the host,
                                                 which must not move the function's (keep irqbalance off)

Exit status:
  0  the guest finished; no interrupt was lost, spurious or delivered while masked;
     a Linux guest switched itself off
  1  a check failed, or the guest says that something is wrong
  2  the arguments make no sense
  3  this host cannot run it, or what it prints is not taken

Examples:
  pvmsi run --cpus 2 --function software:vectors=2048 --function software:isolated=no
  pvmsi run --function vfio:0000:01:00.0 --pv-msi trapped --report json > report.json
  pvmsi run --append 'pairs=200 writes=200' ./my-guest
  pvmsi run --kernel /boot/vmlinuz --initrd /boot/initrd.img --append console=ttyS0 --memory 1G \\
            --function vfio:0000:01:00.0         Linux; Ctrl-A X ends it, poweroff does so well";

/// Arguments of `pvmsi run`.
#[derive(Debug, Args)]
#[command(after_help = RUN_HELP)]
pub(crate) struct RunArguments {
    /// A PCI function of the machine; any number of them, at 00:01.0, 00:02.0 and so on
    #[arg(long = "function", value_name = "KIND[:OPTIONS]")]
    pub(crate) functions: Vec<FunctionConfig>,
    /// How far PV-MSI goes: off (the guest finds nothing, and MSI-X works as ever; MSI is hidden as always), trapped (calls, but no mapping), direct
    #[arg(long = "pv-msi", value_name = "POLICY", default_value = "direct", value_parser = parse_policy)]
    pub(crate) policy: Policy,
    /// vCPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=i64::from(arch::CPUS_MAX)))]
    pub(crate) cpus: u8,
    /// RAM, with K, M or G; distributions' Linux needs 512M or more
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
    pub(crate) memory: u64,
    /// What is printed on stdout: a table (none for Linux), one JSON object (schema pvmsi.report/1), or nothing
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = ReportFormat::Text)]
    pub(crate) report: ReportFormat,
    /// Write the report, as JSON, to this file as well
    #[arg(long, value_name = "PATH")]
    pub(crate) report_file: Option<PathBuf>,
    #[arg(long, value_name = "KIND", value_enum, default_value_t, help = arch::DOORBELL_HELP)]
    pub(crate) doorbell: Doorbell,
    /// The most vectors that one call sets up before it answers busy, and the guest repeats it [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(VECTORS_MAX)))]
    pub(crate) vectors_per_call: Option<u16>,
    /// Pin the interrupts of functions of this host to the processors that serve them (x86; takes root): the host's kernel touches mask bits of a direct table when it moves them
    #[arg(long, value_name = "yes|no", default_value = "yes", action = ArgAction::Set, value_parser = parse_yes_or_no)]
    pub(crate) pin_interrupts: bool,
    /// End the run, as failed, after this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) timeout: Option<u64>,
    /// Boot this Linux kernel; standard input is its serial console's (a terminal: Ctrl-A X ends the run)
    #[arg(long, value_name = "PATH", conflicts_with_all = ["guest", "elf"])]
    pub(crate) kernel: Option<PathBuf>,
    /// The first file system of the Linux kernel
    #[arg(long, value_name = "PATH", requires = "kernel")]
    pub(crate) initrd: Option<PathBuf>,
    /// Command line for the guest
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) append: String,
    /// The guest, an ELF program; the same as the argument without a name
    #[arg(long, value_name = "PATH", conflicts_with = "elf")]
    guest: Option<PathBuf>,
    /// The guest, an ELF program [default: pvmsi-demo-guest beside pvmsi]
    #[arg(value_name = "GUEST")]
    elf: Option<PathBuf>,
    /// What to log on stderr, as off, warn, debug or pvmsi_hypervisor=trace
    #[arg(long, value_name = "FILTER", default_value = "warn")]
    pub(crate) log: String,
}

impl RunArguments {
    /// The guest, if one was named.
    pub(crate) fn guest(&self) -> Option<PathBuf> {
        self.guest.clone().or_else(|| self.elf.clone())
    }
}

/// `--report`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportFormat {
    Text,
    Json,
    None,
}

impl ValueEnum for Doorbell {
    fn value_variants<'a>() -> &'a [Self] {
        &arch::DOORBELLS
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self {
            Self::Port => "port",
            Self::Hvc => "hvc",
            Self::Mmio => "mmio",
        }))
    }
}

const PROBE_HELP: &str = "\
Exit status:
  0  direct mode is possible for every function asked about; without one, the host is ready;
     what should be otherwise all the same is marked !!, with its remedy
  1  it is not; each problem comes with its remedy
  2  the arguments make no sense
  3  the result cannot be written

What it finds in use by this host (a mounted disk, swap, the network) it does not tell how to take
away. Run it as root, or as the user that will run the guests: what it may not read, it cannot judge.";

/// Arguments of `pvmsi probe`.
#[derive(Debug, Args)]
#[command(after_help = PROBE_HELP)]
pub(crate) struct ProbeArguments {
    /// Functions of this host, as lspci -D names them; without one, the host and all functions with MSI-X
    #[arg(value_name = "BDF", value_parser = parse_address)]
    pub(crate) functions: Vec<FunctionId>,
    /// One JSON object (schema pvmsi.probe/1)
    #[arg(long)]
    pub(crate) json: bool,
    /// Where sysfs is mounted
    #[arg(long, value_name = "ROOT", default_value = "/sys", hide = true)]
    pub(crate) sysfs: PathBuf,
    /// Where procfs is mounted
    #[arg(long, value_name = "ROOT", default_value = "/proc", hide = true)]
    pub(crate) procfs: PathBuf,
    /// Where devices are
    #[arg(long, value_name = "ROOT", default_value = "/dev", hide = true)]
    pub(crate) dev: PathBuf,
}

impl ProbeArguments {
    /// Where the host shows itself.
    pub(crate) fn paths(&self) -> HostPaths {
        let Self { sysfs, procfs, dev, .. } = self;
        HostPaths { sysfs: sysfs.clone(), procfs: procfs.clone(), dev: dev.clone() }
    }
}

fn parse_policy(text: &str) -> Result<Policy, String> {
    crate::function_argument::policy(text).ok_or_else(|| "write off, trapped or direct".to_owned())
}

fn parse_yes_or_no(text: &str) -> Result<bool, String> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err("write yes or no".to_owned()),
    }
}

fn parse_address(text: &str) -> Result<FunctionId, String> {
    text.parse().map_err(|error: pvmsi_protocol::ParseFunctionIdError| error.to_string())
}

fn parse_size(text: &str) -> Result<u64, String> {
    let explain = || format!("'{text}' is no size; write 64M or 1G");
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (text.get(..at), 10),
        Some((at, 'M' | 'm')) => (text.get(..at), 20),
        Some((at, 'G' | 'g')) => (text.get(..at), 30),
        _ => (Some(text), 0),
    };
    let number: u64 = digits.and_then(|digits| digits.parse().ok()).ok_or_else(explain)?;
    number.checked_mul(1 << shift).ok_or_else(explain)
}
