//! What tells the emulated host of one architecture from that of another.

use crate::architecture::Architecture;

/// The page size of a host's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageSize {
    /// 4 KiB.
    K4,
    /// 16 KiB: NVMe's doorbells share a page with its vector table.
    K16,
}

/// The emulated host of an architecture.
pub(super) struct Description {
    /// The emulator and its package.
    pub emulator: &'static str,
    pub emulator_package: &'static str,
    /// Machine, processor and IOMMU; the argument says whether interrupts are remapped, where the
    /// machine leaves the choice.
    pub machine: fn(bool) -> Vec<String>,
    /// The serial port, in the emulator's terms, that carries the results in the file named.
    pub results_port: fn(&str) -> Vec<String>,
    /// That port's device in the host.
    pub results_device: &'static str,
    /// What the kernel must be told.
    pub kernel_arguments: &'static str,
    /// Its packages come from these suites; none: from those of the machine that runs the emulator.
    pub suites: Option<&'static [&'static str]>,
    /// The kernels' packages, by page size: regular expressions.
    pub kernels: &'static [(PageSize, &'static str)],
    /// In the order in which they are loaded.
    pub modules: &'static [Module],
    /// Whether direct scenarios account for interrupts under load, on a software function, and run
    /// the machine's own tests: where no machine of the project has a KVM that could be used
    /// instead.
    pub software_function: bool,
    /// Whether a guest of this host takes an interrupt exactly once. Under QEMU's emulation of SVM
    /// one injection in some is delivered twice: KVM's trace has one message, one injection, and
    /// two ends of interrupt.
    pub exact_interrupts: bool,
}

/// A module of the host's kernel.
pub(super) struct Module {
    pub name: &'static str,
    /// Without it there is no lab; others are left out where a kernel lacks them or has them built in.
    pub required: bool,
}

impl PageSize {
    /// In bytes.
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::K4 => 4096,
            Self::K16 => 16384,
        }
    }

    /// Its folder.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::K4 => "4k",
            Self::K16 => "16k",
        }
    }
}

impl Architecture {
    /// Its emulated host.
    pub(super) fn description(self) -> &'static Description {
        match self {
            Self::X86_64 => &X86_64,
            Self::Aarch64 => &AARCH64,
        }
    }
}

impl Module {
    const fn required(name: &'static str) -> Self {
        Self { name, required: true }
    }

    const fn optional(name: &'static str) -> Self {
        Self { name, required: false }
    }
}

/// VT-d, and SVM for nested KVM.
const X86_64: Description = Description {
    emulator: "qemu-system-x86_64",
    emulator_package: "qemu-system-x86",
    machine: |remapping| {
        let remapping = if remapping { "on" } else { "off" };
        arguments(&[
            "-machine",
            "q35,kernel-irqchip=split",
            "-cpu",
            "max",
            "-device",
            &format!("intel-iommu,intremap={remapping},caching-mode=on"),
        ])
    },
    results_port: |file| arguments(&["-serial", &format!("file:{file}")]),
    results_device: "ttyS1",
    // Without no_timer_check the kernel panics when a busy machine holds the emulated timer up.
    kernel_arguments: "console=ttyS0 no_timer_check intel_iommu=on",
    suites: None,
    // The long-term series that Debian 12 and 13 both have. The generic flavour: the cloud flavour
    // lacks KVM for AMD, and SVM is what is emulated.
    kernels: &[(PageSize::K4, r"^linux-image-6\.12\.[^-]*-amd64-unsigned$")],
    modules: &[
        Module::optional("irqbypass"),
        Module::required("kvm"),
        Module::optional("ccp"),
        Module::required("kvm-amd"),
        Module::optional("iommufd"),
        Module::required("vfio"),
        Module::required("vfio_iommu_type1"),
        Module::required("vfio-pci-core"),
        Module::required("vfio-pci"),
        Module::optional("failover"),
        Module::optional("net_failover"),
        Module::optional("virtio_net"),
    ],
    software_function: false,
    exact_interrupts: false,
};

/// EL2 for KVM, GICv3 with its translation service, SMMUv3: interrupts are always remapped.
const AARCH64: Description = Description {
    emulator: "qemu-system-aarch64",
    emulator_package: "qemu-system-arm",
    machine: |_| {
        arguments(&[
            "-machine",
            "virt,virtualization=on,gic-version=3,iommu=smmuv3",
            "-cpu",
            "neoverse-n1",
        ])
    },
    // The machine has one UART of its own.
    results_port: |file| {
        arguments(&[
            "-chardev",
            &format!("file,id=results,path={file}"),
            "-device",
            "pci-serial,chardev=results,addr=3",
        ])
    },
    results_device: "ttyS0",
    kernel_arguments: "console=ttyAMA0",
    // The oldest release with a kernel of 16K pages.
    suites: Some(&["trixie", "trixie-security"]),
    kernels: &[
        (PageSize::K4, r"^linux-image-6\.12\.[^-]*-cloud-arm64-unsigned$"),
        (PageSize::K16, r"^linux-image-6\.12\.[^-]*-arm64-16k-unsigned$"),
    ],
    modules: &[
        Module::optional("irqbypass"),
        Module::optional("iommufd"),
        Module::required("vfio"),
        Module::required("vfio_iommu_type1"),
        Module::required("vfio-pci-core"),
        Module::required("vfio-pci"),
        Module::optional("failover"),
        Module::optional("net_failover"),
        Module::optional("virtio_net"),
    ],
    software_function: true,
    exact_interrupts: true,
};

fn arguments(list: &[&str]) -> Vec<String> {
    list.iter().map(|&argument| argument.to_owned()).collect()
}
