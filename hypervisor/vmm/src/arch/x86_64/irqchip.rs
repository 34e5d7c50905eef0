//! The interrupt controllers that KVM emulates: the routes of their pins, and their state at power-on.

use kvm_bindings::{
    KVM_CAP_X2APIC_API, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, kvm_enable_cap,
    kvm_irqchip,
};
use kvm_ioctls::{Cap, VmFd};
use pvmsi_hypervisor::Platform;

use super::contract::KVM_TSS;
use super::saved::SavedInterrupts;
use crate::error::MachineError;

/// Pins of the I/O APIC, and the first GSI that is free for messages.
pub(crate) const PINS: u32 = 24;

/// PICs, I/O APIC and, with each vCPU, a local APIC.
pub(crate) struct InterruptController {
    /// The state of PICs and I/O APIC after their creation, to go back to.
    power_on: SavedInterrupts,
    extended_destination_ids: bool,
}

impl InterruptController {
    /// Creates them; before the first vCPU.
    ///
    /// # Errors
    /// KVM's.
    pub(crate) fn create(vm: &VmFd) -> Result<Self, MachineError> {
        vm.set_tss_address(KVM_TSS).map_err(MachineError::kvm("KVM_SET_TSS_ADDR"))?;
        vm.create_irq_chip().map_err(MachineError::kvm("KVM_CREATE_IRQCHIP"))?;
        let extended_destination_ids = take_extended_destination_ids(vm)?;
        let power_on = read(vm)?;
        Ok(Self { power_on, extended_destination_ids })
    }

    /// Which messages they take.
    pub(crate) fn platform(&self) -> Platform {
        Platform::X86_64 { extended_destination_ids: self.extended_destination_ids }
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

/// Has KVM take destination ids of 32 bits in messages, where it can (Linux 4.8); whether it does. From then on local APICs in x2APIC mode are read and written with ids of 32 bits as well.
///
/// # Errors
/// When KVM says that it can, and then refuses.
fn take_extended_destination_ids(vm: &VmFd) -> Result<bool, MachineError> {
    let wanted = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
    let known = u32::try_from(vm.check_extension_int(Cap::X2ApicApi)).unwrap_or(0);
    if known & wanted != wanted {
        return Ok(false);
    }
    let args = [u64::from(wanted), 0, 0, 0];
    vm.enable_cap(&kvm_enable_cap { cap: KVM_CAP_X2APIC_API, args, ..Default::default() })
        .map_err(MachineError::kvm("KVM_ENABLE_CAP (KVM_CAP_X2APIC_API)"))?;
    Ok(true)
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
