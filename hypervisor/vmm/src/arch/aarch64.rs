//! The arm64 machine: GICv3 with an interrupt translation service, PSCI, devices in memory, a device tree.

mod contract;
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

use kvm_ioctls::{Kvm, VmFd};
use pvmsi_hypervisor::{Service, SmcccFilter};
use pvmsi_protocol::ServiceBlock;

use crate::boot::Boot;
use crate::doorbell::Doorbell;
use crate::error::MachineError;
use crate::memory;
use crate::probe::check::{Check, RemappingWords};
use contract::RAM_START;

pub(crate) use contract::{
    BAR_WINDOW, CPUS_MAX, DOORBELL_HELP, DOORBELL_REGISTER, DOORBELLS, ELF_MACHINE,
    FIRST_MESSAGE_GSI, GUEST_TARGET, IOMMU_REMEDY, KVM_REMEDY, LOAD_MIN, RAM, RAM_MIN, REQUIRED,
    SERIAL_GSI,
};
pub(crate) use devices::{device_read, device_write};
pub(crate) use exits::run;
pub(crate) use gic::InterruptController;
pub(crate) use linux::load as load_linux;
pub(crate) use pci::PciConfig;
pub(crate) use registers::{PowerOnState, Start, VcpuModel, describe};
pub(crate) use saved::{SavedInterrupts, SavedVcpu};

pub(crate) const REMAPPING: RemappingWords = RemappingWords {
    good: "messages go through a translation service (ITS)",
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
