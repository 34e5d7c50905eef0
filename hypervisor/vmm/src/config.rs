//! What a machine is built from.

use std::fmt;
use std::io::Write;
use std::path::PathBuf;

use pvmsi_hypervisor::Policy;
use pvmsi_protocol::FunctionId;
use pvmsi_software::SoftwareOptions;

use crate::arch;
use crate::doorbell::Doorbell;

/// The most vCPUs of a machine: 254 on x86_64, 16 on arm64.
pub const CPUS_MAX: u8 = arch::CPUS_MAX;

/// What runs in a machine. Both start as MACHINE.md says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// An ELF64 program, linked to physical addresses in RAM behind what the machine keeps there.
    BareMetal(Vec<u8>),
    /// A Linux kernel, which finds its machine described as firmware would do it.
    Linux {
        /// The kernel, as distributions install it: on x86_64 a bzImage, or an ELF file with an entry for PVH; on arm64 an Image, also compressed.
        kernel: Vec<u8>,
        /// The first file system, as the kernel takes it.
        initrd: Option<Vec<u8>>,
    },
}

/// What a machine is built from. Start from [`MachineConfig::new`] or [`MachineConfig::linux`] and change what differs.
pub struct MachineConfig {
    /// What runs.
    pub program: Program,
    /// The guest's command line.
    pub command_line: String,
    /// RAM in bytes, a multiple of the host's page size; at most 63 GiB.
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
    /// Whether the interrupts of functions of this host are pinned to their processors when they are set up, so that the host's kernel keeps its hands off a direct table (x86).
    pub pin_interrupts: bool,
    /// Whether threads of the machine run the software functions. Without, the caller calls [`SoftwareDevice::run`](pvmsi_software::SoftwareDevice::run) itself.
    pub run_devices: bool,
    /// Where the serial output goes, besides [`Machine::serial_output`](crate::Machine::serial_output).
    pub console: Option<Box<dyn Write + Send>>,
}

impl MachineConfig {
    /// A machine for this ELF64 program, with one vCPU, 256 MiB and no functions; policy direct, the usual doorbell of the architecture.
    pub fn new(guest: Vec<u8>) -> Self {
        Self::with(Program::BareMetal(guest))
    }

    /// The same for a Linux kernel.
    pub fn linux(kernel: Vec<u8>, initrd: Option<Vec<u8>>) -> Self {
        Self::with(Program::Linux { kernel, initrd })
    }

    fn with(program: Program) -> Self {
        Self {
            program,
            command_line: String::new(),
            memory_bytes: 256 << 20,
            cpus: 1,
            policy: Policy::Direct,
            doorbell: Doorbell::default(),
            functions: Vec::new(),
            vectors_per_call: None,
            pin_interrupts: true,
            run_devices: true,
            console: None,
        }
    }
}

/// The usual one of the architecture.
impl Default for Doorbell {
    fn default() -> Self {
        let [usual, _] = arch::DOORBELLS;
        usual
    }
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
    /// The most vectors that the guest is granted; `None` for as many as the function has.
    pub most_vectors: Option<u16>,
}

impl FunctionConfig {
    /// A software function with the machine's policy.
    pub fn software(vectors: u16) -> Self {
        let options = SoftwareOptions { vectors, ..SoftwareOptions::default() };
        Self::new(Backend::Software(options))
    }

    /// A function with the machine's policy.
    pub(crate) fn new(backend: Backend) -> Self {
        Self { backend, policy: None, allow_unisolated: false, most_vectors: None }
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
