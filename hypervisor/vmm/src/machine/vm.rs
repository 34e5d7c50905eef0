//! The VM in KVM: memory, interrupt routes, vCPUs.

use std::io;
use std::sync::Arc;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VmFd};
use pvmsi_hypervisor::KvmRoutes;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::bus::{Bus, DOORBELL_PORT};
use crate::config::Doorbell;
use crate::error::MachineError;
use crate::memory;
use crate::vcpu::Vcpu;
use crate::x86_64::cpuid;
use crate::x86_64::irqchip::{self, PINS};

/// The memory slot of the RAM; all others are for functions.
pub(super) const RAM_SLOT: u32 = 0;

/// A VM with interrupt controllers.
///
/// # Errors
/// When this KVM lacks something, or refuses.
pub(super) fn create(kvm: &Kvm) -> Result<VmFd, MachineError> {
    for (capability, name) in [
        (Cap::Irqchip, "an interrupt controller in the kernel"),
        (Cap::Irqfd, "irqfds"),
        (Cap::IrqRouting, "interrupt routing"),
        (Cap::ImmediateExit, "immediate_exit (Linux 4.13)"),
    ] {
        if !kvm.check_extension(capability) {
            return Err(MachineError::Kvm {
                operation: "looking for what the machine needs of KVM",
                source: io::Error::other(format!("this KVM lacks {name}")),
            });
        }
    }
    let vm = loop {
        match kvm.create_vm() {
            // The kernel waits for others here and may be interrupted.
            Err(error) if error.errno() == libc::EINTR => {}
            other => break other.map_err(MachineError::kvm("KVM_CREATE_VM"))?,
        }
    };
    vm.set_tss_address(memory::KVM_TSS).map_err(MachineError::kvm("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip().map_err(MachineError::kvm("KVM_CREATE_IRQCHIP"))?;
    Ok(vm)
}

/// Shows the RAM to the guest.
///
/// # Errors
/// KVM's.
pub(super) fn map_ram(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), MachineError> {
    for (slot, region) in (RAM_SLOT..).zip(memory.iter()) {
        let host = region
            .get_host_address(vm_memory::MemoryRegionAddress(0))
            .map_err(|error| MachineError::Memory(error.to_string()))?;
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: u64::try_from(host.addr())
                .map_err(|error| MachineError::Memory(error.to_string()))?,
        };
        // SAFETY: the region stays mapped as long as the VM's vCPUs exist: `Parts` drops the
        // memory last.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(MachineError::kvm("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

/// The routing table: the pins of the interrupt controllers, and everything else for messages.
pub(super) fn routes(vm: &Arc<VmFd>) -> KvmRoutes {
    let base = irqchip::base_routes();
    let entries = u32::try_from(vm.check_extension_int(Cap::IrqRouting)).unwrap_or(0);
    let taken = u32::try_from(base.len()).unwrap_or(0);
    let end = entries.saturating_sub(taken).saturating_add(PINS).max(PINS);
    KvmRoutes::new(Arc::clone(vm), base, PINS..end)
}

/// The vCPUs, each with its CPUID.
///
/// # Errors
/// KVM's.
pub(super) fn create_vcpus(
    kvm: &Kvm,
    vm: &VmFd,
    cpus: u8,
    bus: &Bus,
) -> Result<Vec<Vcpu>, MachineError> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(MachineError::kvm("KVM_GET_SUPPORTED_CPUID"))?;
    let (port, mmio) = match bus.doorbell {
        Some(Doorbell::Port) => (Some(DOORBELL_PORT), None),
        Some(Doorbell::Mmio) => (None, Some(memory::DOORBELL_PAGE)),
        None => (None, None),
    };
    let block = bus.service.offer(port, mmio);
    (0..cpus)
        .map(|index| {
            let vcpu =
                vm.create_vcpu(u64::from(index)).map_err(MachineError::kvm("KVM_CREATE_VCPU"))?;
            let cpuid =
                cpuid::for_vcpu(&supported, index, cpus, block.as_ref()).map_err(|error| {
                    MachineError::Kvm {
                        operation: "building CPUID",
                        source: io::Error::other(format!("{error:?}")),
                    }
                })?;
            vcpu.set_cpuid2(&cpuid).map_err(MachineError::kvm("KVM_SET_CPUID2"))?;
            Vcpu::new(index, vcpu)
        })
        .collect()
}
