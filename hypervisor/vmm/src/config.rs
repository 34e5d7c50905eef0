//! What a machine is built from.

use std::fmt;
use std::io::Write;
use std::path::PathBuf;

use pvmsi_hypervisor::{Policy, SoftwareOptions};
use pvmsi_protocol::FunctionId;

/// The most vCPUs: APIC ids are 8 bits wide and 255 means all of them.
pub const CPUS_MAX: u8 = 254;

/// What a machine is built from. Start from [`MachineConfig::new`] and change what differs.
pub struct MachineConfig {
    /// The guest: an ELF64 program, linked to physical addresses of 1 MiB and above.
    pub guest: Vec<u8>,
    /// The guest's command line.
    pub command_line: String,
    /// RAM in bytes, a multiple of 4096, at most 3 GiB.
    pub memory_bytes: u64,
    /// vCPUs, 1 to [`CPUS_MAX`].
    pub cpus: u8,
    /// How far PV-MSI goes; a function can have a lower policy.
    pub policy: Policy,
    /// How the guest rings.
    pub doorbell: Doorbell,
    /// The PCI functions, in the order of their addresses.
    pub functions: Vec<FunctionConfig>,
    /// The most vectors that one `configure` prepares before it answers *busy*; `None` for no bound.
    pub vectors_per_call: Option<u16>,
    /// Whether threads of the machine run the software functions. Without, the caller calls [`SoftwareDevice::run`](pvmsi_hypervisor::SoftwareDevice::run) itself.
    pub run_devices: bool,
    /// Where the serial output goes, besides [`Machine::serial_output`](crate::Machine::serial_output).
    pub console: Option<Box<dyn Write + Send>>,
}

impl MachineConfig {
    /// A machine with one vCPU, 256 MiB and no functions; policy direct, doorbell on its port.
    pub fn new(guest: Vec<u8>) -> Self {
        Self {
            guest,
            command_line: String::new(),
            memory_bytes: 256 << 20,
            cpus: 1,
            policy: Policy::Direct,
            doorbell: Doorbell::Port,
            functions: Vec::new(),
            vectors_per_call: None,
            run_devices: true,
            console: None,
        }
    }
}

/// How the guest rings the doorbell of PV-MSI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Doorbell {
    /// By a write to I/O port 0x5650.
    #[default]
    Port,
    /// By a write to the register at 0xFEBF_F000.
    Mmio,
}

/// A PCI function of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionConfig {
    /// What it is.
    pub backend: Backend,
    /// A policy of its own; the lower one of this and the machine's counts.
    pub policy: Option<Policy>,
    /// Map the table even though the host does not confine the function to its own interrupts. The guest can then raise any interrupt of the host.
    pub allow_unisolated: bool,
}

impl FunctionConfig {
    /// A software function with the machine's policy.
    pub fn software(vectors: u16) -> Self {
        let options = SoftwareOptions { vectors, ..SoftwareOptions::default() };
        Self { backend: Backend::Software(options), policy: None, allow_unisolated: false }
    }
}

/// What serves a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The function in software.
    Software(SoftwareOptions),
    /// A function of the host, bound to vfio-pci, by its address there.
    Vfio(FunctionId),
}

impl Backend {
    /// The sysfs folder of a function of the host.
    pub(crate) fn sysfs(address: FunctionId) -> PathBuf {
        PathBuf::from("/sys/bus/pci/devices").join(address.to_string())
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Software(SoftwareOptions { vectors, .. }) => {
                write!(f, "software:vectors={vectors}")
            }
            Self::Vfio(address) => write!(f, "vfio:{address}"),
        }
    }
}
