//! The VM in KVM: memory, interrupt routes, vCPUs.

use std::io;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VmFd};
use pvmsi_hypervisor::KvmRoutes;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::arch::{self, FIRST_MESSAGE_GSI, VcpuModel};
use crate::bus::Bus;
use crate::error::MachineError;
use crate::vcpu::Vcpu;

/// The first memory slot of the RAM; those behind it are for functions.
const RAM_SLOT: u32 = 0;

/// A VM.
///
/// # Errors
/// When this KVM lacks something, or refuses.
pub(super) fn create(kvm: &Kvm) -> Result<VmFd, MachineError> {
    for (capability, name) in arch::REQUIRED {
        if !kvm.check_extension(capability) {
            return Err(MachineError::Kvm {
                operation: "looking for what the machine needs of KVM",
                source: io::Error::other(format!("this KVM lacks {name}")),
            });
        }
    }
    loop {
        match kvm.create_vm() {
            // The kernel waits for others here and may be interrupted.
            Err(error) if error.errno() == libc::EINTR => {}
            other => return other.map_err(MachineError::kvm("KVM_CREATE_VM")),
        }
    }
}

/// The first memory slot that is not RAM's.
pub(super) fn first_free_slot(memory: &GuestMemoryMmap) -> u32 {
    u32::try_from(memory.num_regions()).unwrap_or(u32::MAX).saturating_add(RAM_SLOT)
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
///
/// # Errors
/// When this KVM lacks something.
pub(super) fn routes(vm: &Arc<VmFd>) -> Result<KvmRoutes, MachineError> {
    let pins = KvmRoutes::default_pins(FIRST_MESSAGE_GSI);
    KvmRoutes::new(Arc::clone(vm), pins, FIRST_MESSAGE_GSI..).map_err(|error| MachineError::Kvm {
        operation: "looking for what the routing table needs of KVM",
        source: io::Error::other(error),
    })
}

/// The vCPUs.
///
/// # Errors
/// KVM's.
pub(super) fn create_vcpus(
    kvm: &Kvm,
    vm: &VmFd,
    cpus: u8,
    bus: &Bus,
) -> Result<Vec<Vcpu>, MachineError> {
    let model = VcpuModel::new(kvm, vm, cpus, bus.offer)?;
    (0..cpus)
        .map(|index| {
            let vcpu =
                vm.create_vcpu(u64::from(index)).map_err(MachineError::kvm("KVM_CREATE_VCPU"))?;
            let power_on = model.apply(&vcpu, index)?;
            Ok(Vcpu::new(index, vcpu, power_on))
        })
        .collect()
}
