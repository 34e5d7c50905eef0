//! The x86_64 machine: PICs, I/O APIC and local APICs, ports, CPUID, configuration mechanism 1.

mod acpi;
mod boot;
mod contract;
mod cpuid;
mod devices;
mod exits;
mod irqchip;
mod linux;
mod pci;
mod ports;
#[cfg(test)]
pub(crate) mod programs;
mod registers;
mod saved;
#[cfg(test)]
mod tests;

use kvm_ioctls::{Kvm, VmFd};
use pvmsi_hypervisor::Service;
use pvmsi_protocol::ServiceBlock;

use crate::boot::Boot;
use crate::doorbell::Doorbell;
use crate::error::MachineError;
use crate::memory;
use crate::probe::check::{Check, RemappingWords};

pub(crate) use contract::{
    BAR_WINDOW, CPUS_MAX, DOORBELL_HELP, DOORBELL_REGISTER, DOORBELLS, ELF_MACHINE, GUEST_TARGET,
    IOMMU_REMEDY, KVM_REMEDY, LOAD_MIN, RAM, RAM_MIN, REQUIRED, SERIAL_GSI,
};
pub(crate) use cpuid::VcpuModel;
pub(crate) use devices::{device_read, device_write};
pub(crate) use exits::run;
pub(crate) use irqchip::{InterruptController, PINS as FIRST_MESSAGE_GSI};
pub(crate) use linux::load as load_linux;
pub(crate) use pci::PciConfig;
pub(crate) use registers::{PowerOnState, Start, describe};
pub(crate) use saved::{SavedInterrupts, SavedVcpu};

pub(crate) const REMAPPING: RemappingWords = RemappingWords {
    good: "the host's interrupts are remapped",
    bad: "interrupts are not remapped",
    remedy: "switch interrupt remapping on in the firmware (VT-d, AMD-Vi), and take intremap=off or nointremap off the \
             kernel's command line; without it the kernel refuses to attach functions, or they stay trapped",
};

/// What else `pvmsi probe` asks of KVM.
pub(crate) fn kvm_checks(_kvm: &Kvm) -> Vec<Check> {
    Vec::new()
}

/// Loads a bare-metal program, and what it needs in the first MiB.
///
/// # Errors
/// When it does not fit, or is no such program.
pub(crate) fn load_bare_metal(boot: &Boot<'_>, elf: &[u8]) -> Result<Start, MachineError> {
    let entry = memory::load(boot.memory, elf)?;
    boot::write(boot.memory, boot.command_line)?;
    Ok(Start::BareMetal { entry })
}

/// Makes the service findable: what the guest's CPUID will show.
///
/// # Errors
/// None here.
pub(crate) fn open_doorbell(
    _vm: &VmFd,
    service: &Service,
    doorbell: Option<Doorbell>,
) -> Result<Option<ServiceBlock>, MachineError> {
    Ok(match doorbell {
        Some(Doorbell::Mmio) => service.offer(None, Some(DOORBELL_REGISTER.start)),
        Some(_) => service.offer(Some(ports::DOORBELL), None),
        None => None,
    })
}
