//! The interrupt controllers that KVM emulates: the routes of their pins, and their state at power-on.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip,
};
use kvm_ioctls::VmFd;

use super::contract::KVM_TSS;
use super::saved::SavedInterrupts;
use crate::error::MachineError;

/// Pins of the I/O APIC, and the first GSI that is free for messages.
pub(crate) const PINS: u32 = 24;

/// PICs, I/O APIC and, with each vCPU, a local APIC.
pub(crate) struct InterruptController {
    /// The state of PICs and I/O APIC after their creation, to go back to.
    power_on: SavedInterrupts,
}

impl InterruptController {
    /// Creates them; before the first vCPU.
    ///
    /// # Errors
    /// KVM's.
    pub(crate) fn create(vm: &VmFd) -> Result<Self, MachineError> {
        vm.set_tss_address(KVM_TSS).map_err(MachineError::kvm("KVM_SET_TSS_ADDR"))?;
        vm.create_irq_chip().map_err(MachineError::kvm("KVM_CREATE_IRQCHIP"))?;
        let power_on = read(vm)?;
        Ok(Self { power_on })
    }

    /// All vCPUs are there.
    ///
    /// # Errors
    /// None here.
    pub(crate) fn finish(&mut self, _cpus: u8) -> Result<(), MachineError> {
        Ok(())
    }

    /// Back to power-on; local APICs are reset with their vCPUs.
    ///
    /// # Errors
    /// KVM's.
    pub(crate) fn reset(&self, vm: &VmFd) -> Result<(), MachineError> {
        self.restore(vm, &self.power_on)
    }

    /// The state of PICs and I/O APIC; local APICs are saved with their vCPUs.
    ///
    /// # Errors
    /// KVM's.
    pub(crate) fn save(&self, vm: &VmFd) -> Result<SavedInterrupts, MachineError> {
        read(vm)
    }

    /// Puts it back.
    ///
    /// # Errors
    /// KVM's.
    pub(crate) fn restore(&self, vm: &VmFd, saved: &SavedInterrupts) -> Result<(), MachineError> {
        saved
            .iter()
            .try_for_each(|chip| vm.set_irqchip(chip))
            .map_err(MachineError::kvm("KVM_SET_IRQCHIP"))
    }
}

fn read(vm: &VmFd) -> Result<SavedInterrupts, MachineError> {
    [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC]
        .into_iter()
        .map(|chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            vm.get_irqchip(&mut chip).map(|()| chip)
        })
        .collect::<Result<_, _>>()
        .map_err(MachineError::kvm("KVM_GET_IRQCHIP"))
}
