//! The x86_64 machine: PICs, I/O APIC and local APICs, ports, CPUID, configuration mechanism 1.

mod acpi;
mod boot;
mod cpuid;
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

use std::ops::Range;

use kvm_ioctls::{Cap, Kvm, VmFd};
use pvmsi_hypervisor::{Platform, Service};
use pvmsi_protocol::ServiceBlock;

use crate::boot::Boot;
use crate::bus::{Action, Bus};
use crate::config::Doorbell;
use crate::error::MachineError;
use crate::exits::ExitKind;
use crate::memory;
use crate::probe::{Check, RemappingSigns};

pub(crate) use cpuid::VcpuModel;
pub(crate) use exits::run;
pub(crate) use irqchip::{InterruptController, PINS as FIRST_MESSAGE_GSI};
pub(crate) use linux::load as load_linux;
pub(crate) use pci::PciConfig;
pub(crate) use registers::{PowerOnState, Start, describe};
pub(crate) use saved::{SavedInterrupts, SavedVcpu};

/// The most vCPUs: APIC ids are 8 bits wide and 255 means all of them.
pub(crate) const CPUS_MAX: u8 = 254;
/// Where RAM can be: below the BARs, and as far as every processor of this architecture can address.
pub(crate) const RAM: [Range<u64>; 2] = [0..0xc000_0000, 0x1_0000_0000..0x10_0000_0000];
/// The least RAM: the first MiB is the machine's.
pub(crate) const RAM_MIN: u64 = 2 << 20;
/// Segments of the guest lie here or above.
pub(crate) const LOAD_MIN: u64 = 1 << 20;
/// Where BARs are placed.
pub(crate) const BAR_WINDOW: Range<u64> = 0xc000_0000..0xfea0_0000;
/// Configuration space of bus 0 in memory.
const ECAM: Range<u64> = 0xfea0_0000..0xfeb0_0000;
/// The page of the MMIO doorbell.
pub(crate) const DOORBELL_REGISTER: Range<u64> = 0xfebf_f000..0xfec0_0000;
/// Where KVM keeps what it needs for old Intel processors: three pages and one, outside everything else.
const KVM_TSS: usize = 0xfffb_d000;
const IO_APIC: u32 = 0xfec0_0000;
const LOCAL_APIC: u32 = 0xfee0_0000;
/// The GSI of COM1.
pub(crate) const SERIAL_GSI: u32 = 4;

pub(crate) const ELF_MACHINE: u16 = elf::abi::EM_X86_64;
pub(crate) const GUEST_TARGET: &str = "x86_64-unknown-none";
pub(crate) const PLATFORM: Platform = Platform::X86_64;

pub(crate) const DOORBELLS: [Doorbell; 2] = [Doorbell::Port, Doorbell::Mmio];
pub(crate) const DOORBELL_HELP: &str =
    "How the guest rings: I/O port 0x5650, or a register at 0xFEBFF000";

pub(crate) const REQUIRED: [(Cap, &str); 4] = [
    (Cap::Irqchip, "an interrupt controller in the kernel"),
    (Cap::Irqfd, "irqfds"),
    (Cap::IrqRouting, "interrupt routing"),
    (Cap::ImmediateExit, "immediate_exit (Linux 4.13)"),
];
pub(crate) const KVM_REMEDY: &str = "load the module (modprobe kvm_intel or kvm_amd) and see that virtualization is enabled in the firmware; \
     without KVM, `cargo xtask lab x86_64` shows the same in an emulated host";
pub(crate) const IOMMU_REMEDY: &str =
    "switch VT-d or AMD-Vi on in the firmware; on Intel, boot with intel_iommu=on";
pub(crate) const REMAPPING: RemappingSigns = RemappingSigns {
    confined: &["IR-"],
    good: "the host's interrupts are remapped",
    free: &["IO-APIC", "PCI-MSI"],
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

/// A load. `false` when no device is there.
pub(crate) fn device_read(bus: &Bus, address: u64, data: &mut [u8]) -> bool {
    let offset = address.checked_sub(ECAM.start).filter(|_| ECAM.contains(&address));
    let Some(offset) = offset else { return false };
    bus.pci.ecam().read(offset, data);
    bus.exits.count(ExitKind::PciConfig);
    true
}

/// A store; `None` when no device is there.
pub(crate) fn device_write(bus: &Bus, address: u64, data: &[u8]) -> Option<Action> {
    let offset = address.checked_sub(ECAM.start).filter(|_| ECAM.contains(&address))?;
    bus.exits.count(ExitKind::PciConfig);
    bus.pci.ecam().write(offset, data);
    Some(Action::Continue)
}
