//! The arm64 machine: GICv3 with an interrupt translation service, PSCI, devices in memory, a device tree.

mod device_tree;
mod devices;
mod exits;
mod gic;
mod gic_registers;
mod linux;
mod pci;
#[cfg(test)]
pub(crate) mod programs;
mod registers;
mod saved;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;

use kvm_ioctls::{Cap, Kvm, VmFd};
use pvmsi_hypervisor::{Platform, Service, SmcccFilter};
use pvmsi_protocol::ServiceBlock;

use crate::boot::Boot;
use crate::config::Doorbell;
use crate::error::MachineError;
use crate::memory;
use crate::probe::{Check, RemappingSigns};

pub(crate) use devices::{device_read, device_write};
pub(crate) use exits::run;
pub(crate) use gic::InterruptController;
pub(crate) use linux::load as load_linux;
pub(crate) use pci::PciConfig;
pub(crate) use registers::{PowerOnState, Start, VcpuModel, describe};
pub(crate) use saved::{SavedInterrupts, SavedVcpu};

/// The most vCPUs: affinity level 0 of GICv3 counts to 16.
pub(crate) const CPUS_MAX: u8 = 16;

const DISTRIBUTOR: Range<u64> = 0x0800_0000..0x0801_0000;
const ITS: Range<u64> = 0x0808_0000..0x080a_0000;
/// GITS_TRANSLATER, where messages go.
const ITS_DOORBELL: u64 = 0x0809_0040;
const REDISTRIBUTORS: u64 = 0x080a_0000;
/// Bytes of one redistributor.
const REDISTRIBUTOR_BYTES: u64 = 0x2_0000;
/// The UART, registers one byte apart.
const SERIAL: Range<u64> = 0x0900_0000..0x0900_0008;
/// Its shared peripheral interrupt, and the GSI of that.
pub(crate) const SERIAL_GSI: u32 = 0;
/// The first GSI that is free for messages.
pub(crate) const FIRST_MESSAGE_GSI: u32 = 1;
/// The MMIO doorbell: a page of the largest size, the register at its start.
pub(crate) const DOORBELL_REGISTER: Range<u64> = 0x0a00_0000..0x0a01_0000;
const REPORT: u64 = 0x0a01_0000;
const EXIT: u64 = 0x0a01_0004;
/// Where BARs are placed.
pub(crate) const BAR_WINDOW: Range<u64> = 0x1000_0000..0x3eff_0000;
/// Configuration space of bus 0.
const ECAM: Range<u64> = 0x3f00_0000..0x3f10_0000;
/// Where RAM starts, and the device tree lies.
const RAM_START: u64 = 0x4000_0000;
/// Where RAM can be: as far as on x86_64.
pub(crate) const RAM: [Range<u64>; 1] = [Range { start: RAM_START, end: 0x10_0000_0000 }];
/// The least RAM: the first 2 MiB are the machine's.
pub(crate) const RAM_MIN: u64 = 4 << 20;
/// Segments of the guest lie here or above.
pub(crate) const LOAD_MIN: u64 = 0x4020_0000;

pub(crate) const ELF_MACHINE: u16 = elf::abi::EM_AARCH64;
pub(crate) const GUEST_TARGET: &str = "aarch64-unknown-none-softfloat";
pub(crate) const PLATFORM: Platform = Platform::Aarch64 { its_doorbell: ITS_DOORBELL };

pub(crate) const DOORBELLS: [Doorbell; 2] = [Doorbell::Hvc, Doorbell::Mmio];
pub(crate) const DOORBELL_HELP: &str =
    "How the guest rings: an SMCCC call (HVC or SMC), or a register at 0x0A000000";

pub(crate) const REQUIRED: [(Cap, &str); 5] = [
    (Cap::DeviceCtrl, "devices in the kernel"),
    (Cap::Irqfd, "irqfds"),
    (Cap::IrqRouting, "interrupt routing"),
    (Cap::ImmediateExit, "immediate_exit (Linux 4.13)"),
    (Cap::ArmPsci02, "PSCI 0.2"),
];
pub(crate) const KVM_REMEDY: &str = "use a kernel with CONFIG_KVM that was started at EL2 (the firmware decides; \
     the kernel log says 'kvm' and why not)";
pub(crate) const IOMMU_REMEDY: &str = "switch the SMMU on in the firmware, and see that its tables describe it (ACPI IORT, or iommu-map in the \
     device tree) and that iommu.passthrough or arm-smmu parameters do not disable it";
pub(crate) const REMAPPING: RemappingSigns = RemappingSigns {
    confined: &["ITS-"],
    good: "messages go through a translation service (ITS)",
    free: &["GICv2m", "MBI-"],
    bad: "messages go to the interrupt controller without translation",
    remedy: "only a GICv3 interrupt translation service (ITS) behind the SMMU confines a function to its own interrupts; \
             see that the firmware describes the ITS, and that the kernel has CONFIG_ARM_GIC_V3_ITS",
};

const FILTER_REMEDY: &str = "this KVM cannot hand SMCCC calls to user space; use Linux 6.4 or later, or --doorbell mmio, which the guest \
     finds in its device tree";

/// What else `pvmsi probe` asks of KVM.
pub(crate) fn kvm_checks(kvm: &Kvm) -> Vec<Check> {
    let vm = match kvm.create_vm() {
        Ok(vm) => vm,
        Err(error) => {
            return vec![Check::bad(
                "VM",
                "no-vm",
                format!("KVM_CREATE_VM: {error}"),
                "see the kernel log",
            )];
        }
    };
    let its = if gic::is_available(&vm) {
        Check::good("guest's ITS", "KVM emulates a GICv3 with ITS")
    } else {
        Check::bad(
            "guest's ITS",
            "no-its",
            "KVM emulates no GICv3 with ITS",
            "message signalled interrupts of guests need a host with GICv3 or later",
        )
    };
    let filter = if SmcccFilter::is_available(&vm) {
        Check::good("SMCCC filter", "HVC can be the doorbell")
    } else {
        // Not a condition: the other doorbell does not need it.
        Check::good("SMCCC filter", format!("none: {FILTER_REMEDY}"))
    };
    vec![its, filter]
}

/// Loads a bare-metal program, and the device tree at the start of RAM.
///
/// # Errors
/// When it does not fit, or is no such program.
pub(crate) fn load_bare_metal(boot: &Boot<'_>, elf: &[u8]) -> Result<Start, MachineError> {
    let entry = memory::load(boot.memory, elf)?;
    device_tree::write(boot, None)?;
    Ok(Start { entry, device_tree: RAM_START, granule: None })
}

/// Makes the service findable: lets KVM hand its SMCCC calls out. The device tree says the rest.
///
/// # Errors
/// When KVM has no SMCCC filter and the guest is to ring by HVC.
pub(crate) fn open_doorbell(
    vm: &VmFd,
    service: &Service,
    doorbell: Option<Doorbell>,
) -> Result<Option<ServiceBlock>, MachineError> {
    match doorbell {
        Some(Doorbell::Mmio) => Ok(service.offer(None, Some(DOORBELL_REGISTER.start))),
        Some(_) => {
            SmcccFilter::install(vm).map_err(|error| MachineError::Kvm {
                operation: "setting KVM's SMCCC filter",
                source: io::Error::other(format!("{error}; {FILTER_REMEDY}")),
            })?;
            Ok(service.offer(None, None))
        }
        None => Ok(None),
    }
}
