//! What tells the emulated hosts of one architecture from those of another.

use super::kernel::Series;
use super::kind::{Iommu, Kind};
use crate::architecture::Architecture;

/// The emulated hosts of an architecture.
pub(super) struct Description {
    /// The emulator and its package.
    pub emulator: &'static str,
    pub emulator_package: &'static str,
    /// What it reads when it starts a kernel with serial console.
    pub firmware: &'static [&'static str],
    /// Machine and processor.
    pub machine: &'static [&'static str],
    /// The IOMMU of a kind; the second argument says whether it offers to remap interrupts, where the
    /// machine leaves the choice.
    pub iommu: fn(&Kind, bool) -> Vec<String>,
    /// The serial port, in the emulator's terms, that carries the results in the file named.
    pub results_port: fn(&str) -> Vec<String>,
    /// That port's device in the host.
    pub results_device: &'static str,
    /// What the kernel must be told.
    pub kernel_arguments: &'static str,
    /// Drivers that the host loads.
    pub drivers: &'static [&'static str],
    /// Whether direct scenarios account for interrupts under load, on a software function, and run
    /// the machine's own tests: where no machine of the project has a KVM that could be used
    /// instead.
    pub software_function: bool,
    /// Whether a guest of this host takes an interrupt exactly once. Under QEMU's emulation of SVM
    /// one injection in some is delivered twice: KVM's trace has one message, one injection, and
    /// two ends of interrupt.
    pub exact_interrupts: bool,
}

impl Architecture {
    /// Its emulated hosts.
    pub(super) fn description(self) -> &'static Description {
        match self {
            Self::X86_64 => &X86_64,
            Self::Aarch64 => &AARCH64,
        }
    }
}

/// SVM for nested KVM.
const X86_64: Description = Description {
    emulator: "qemu-system-x86_64",
    emulator_package: "qemu-system-x86",
    firmware: &["bios-256k.bin", "kvmvapic.bin", "linuxboot_dma.bin"],
    machine: &["-machine", "q35,kernel-irqchip=split", "-cpu", "max"],
    iommu: |kind, remapping| {
        let remapping = if remapping { "on" } else { "off" };
        match kind.iommu {
            Iommu::None | Iommu::SmmuV3 => Vec::new(),
            Iommu::VtD => arguments(&[
                "-device",
                &format!("intel-iommu,intremap={remapping},caching-mode=on"),
            ]),
            Iommu::Amd => {
                // 6.1 leaves remapping off where the IOMMU has x2APIC ids and the processors do not use them.
                let wide = if kind.kernel == Series::V6_1 { "off" } else { "on" };
                // It is a PCI function as well, whose address shall be none of the others'.
                arguments(&[
                    "-device",
                    "AMDVI-PCI,id=iommu,addr=0x10",
                    "-device",
                    &format!(
                        "amd-iommu,pci-id=iommu,intremap={remapping},xtsup={wide},dma-remap=on"
                    ),
                ])
            }
        }
    },
    results_port: |file| arguments(&["-serial", &format!("file:{file}")]),
    results_device: "ttyS1",
    // Without no_timer_check the kernel panics when a busy machine holds the emulated timer up.
    kernel_arguments: "console=ttyS0 no_timer_check intel_iommu=on",
    drivers: &["kvm-amd", "vfio_iommu_type1", "vfio-pci", "virtio_net"],
    software_function: false,
    exact_interrupts: false,
};

/// EL2 for KVM, GICv3 with its translation service: interrupts are always remapped.
const AARCH64: Description = Description {
    emulator: "qemu-system-aarch64",
    emulator_package: "qemu-system-arm",
    firmware: &[],
    machine: &[
        "-machine",
        "virt,virtualization=on,gic-version=3,iommu=smmuv3",
        "-cpu",
        "neoverse-n1",
    ],
    iommu: |_, _| Vec::new(),
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
    drivers: &["vfio_iommu_type1", "vfio-pci", "virtio_net"],
    software_function: true,
    exact_interrupts: true,
};

fn arguments(list: &[&str]) -> Vec<String> {
    list.iter().map(|&argument| argument.to_owned()).collect()
}
