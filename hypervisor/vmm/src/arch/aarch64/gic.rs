//! The interrupt controller that KVM emulates: GICv3 with an interrupt translation service.
//!
//! Sources: Linux `Documentation/virt/kvm/devices/arm-vgic-v3.rst` and `arm-vgic-its.rst`.

use kvm_bindings::{
    KVM_CREATE_DEVICE_TEST, KVM_DEV_ARM_ITS_CTRL_RESET, KVM_DEV_ARM_VGIC_CTRL_INIT,
    KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_NR_IRQS,
    KVM_VGIC_ITS_ADDR_TYPE, KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST,
    kvm_create_device, kvm_device_attr, kvm_device_type, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, Error, VmFd};
use pvmsi_hypervisor::Platform;

use super::contract::{DISTRIBUTOR, ITS, ITS_DOORBELL, REDISTRIBUTORS};
use super::gic_registers::PowerOnRegisters;
use super::saved::{SavedInterrupts, unsupported};
use crate::error::MachineError;

/// Interrupts beside LPIs: 32 private ones, and the least number of shared ones.
const INTERRUPTS: u32 = 64;

/// Whether KVM emulates what the machine needs.
pub(super) fn is_available(vm: &VmFd) -> bool {
    [kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS]
        .into_iter()
        .all(|kind| {
            let flags = KVM_CREATE_DEVICE_TEST;
            vm.create_device(&mut kvm_create_device { type_: kind, fd: 0, flags }).is_ok()
        })
}

/// Distributor, redistributors and translation service.
pub(crate) struct InterruptController {
    gic: DeviceFd,
    its: DeviceFd,
    power_on: PowerOnRegisters,
}

impl InterruptController {
    /// Creates it; before the first vCPU.
    ///
    /// # Errors
    /// KVM's.
    pub(crate) fn create(vm: &VmFd) -> Result<Self, MachineError> {
        let gic = create(vm, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3)
            .map_err(MachineError::kvm("creating a GICv3"))?;
        let its = create(vm, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS)
            .map_err(MachineError::kvm("creating an interrupt translation service"))?;
        Ok(Self { gic, its, power_on: PowerOnRegisters::default() })
    }

    /// Which messages it takes.
    pub(crate) fn platform(&self) -> Platform {
        Platform::Aarch64 { its_doorbell: ITS_DOORBELL }
    }

    /// All vCPUs are there: puts it into the memory map and switches it on.
    ///
    /// # Errors
    /// KVM's.
    pub(crate) fn finish(&mut self, cpus: u8) -> Result<(), MachineError> {
        let place = |device: &DeviceFd, kind: u32, address: u64| {
            set(device, KVM_DEV_ARM_VGIC_GRP_ADDR, u64::from(kind), &address)
        };
        let finish = || {
            set(&self.gic, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &INTERRUPTS)?;
            place(&self.gic, KVM_VGIC_V3_ADDR_TYPE_DIST, DISTRIBUTOR.start)?;
            place(&self.gic, KVM_VGIC_V3_ADDR_TYPE_REDIST, REDISTRIBUTORS)?;
            control(&self.gic, KVM_DEV_ARM_VGIC_CTRL_INIT)?;
            place(&self.its, KVM_VGIC_ITS_ADDR_TYPE, ITS.start)?;
            control(&self.its, KVM_DEV_ARM_VGIC_CTRL_INIT)?;
            PowerOnRegisters::read(&self.gic, cpus)
        };
        self.power_on = finish().map_err(MachineError::kvm("setting the GICv3 up"))?;
        Ok(())
    }

    /// Back to power-on, all vCPUs at rest.
    ///
    /// # Errors
    /// KVM's.
    pub(crate) fn reset(&self, _vm: &VmFd) -> Result<(), MachineError> {
        // The translation service first: it takes its interrupts out of the redistributors.
        control(&self.its, KVM_DEV_ARM_ITS_CTRL_RESET)
            .and_then(|()| self.power_on.restore(&self.gic))
            .map_err(MachineError::kvm("resetting the GICv3"))
    }

    /// # Errors
    /// Always.
    pub(crate) fn save(&self, _vm: &VmFd) -> Result<SavedInterrupts, MachineError> {
        Err(unsupported())
    }

    /// # Errors
    /// None: there is no such state.
    pub(crate) fn restore(&self, _vm: &VmFd, saved: &SavedInterrupts) -> Result<(), MachineError> {
        match *saved {}
    }
}

fn create(vm: &VmFd, kind: kvm_device_type) -> Result<DeviceFd, Error> {
    vm.create_device(&mut kvm_create_device { type_: kind, fd: 0, flags: 0 })
}

fn control(device: &DeviceFd, command: u32) -> Result<(), Error> {
    device.set_device_attr(&kvm_device_attr {
        flags: 0,
        group: KVM_DEV_ARM_VGIC_GRP_CTRL,
        attr: u64::from(command),
        addr: 0,
    })
}

/// Gives KVM an attribute's value, which it reads during the call.
fn set<T: Copy>(device: &DeviceFd, group: u32, attr: u64, value: &T) -> Result<(), Error> {
    let addr = std::ptr::from_ref(value).expose_provenance() as u64;
    device.set_device_attr(&kvm_device_attr { flags: 0, group, attr, addr })
}
