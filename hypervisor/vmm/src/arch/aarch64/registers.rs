//! The registers of a vCPU at the start, and in an error message.
//!
//! Source: KVM API documentation, `KVM_ARM_VCPU_INIT` and `KVM_SET_ONE_REG`.

use std::mem::offset_of;

use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_REG_ARM_CORE, KVM_REG_ARM64,
    KVM_REG_ARM64_SYSREG, KVM_REG_SIZE_U64, kvm_regs, kvm_vcpu_init, user_pt_regs,
};
use kvm_ioctls::{Error, Kvm, VcpuFd, VmFd};
use pvmsi_protocol::ServiceBlock;

use crate::error::MachineError;

/// EL1 with its own stack pointer, debug exceptions, SError, IRQ and FIQ masked.
const PSTATE: u64 = 0x3c5;

const X0: u64 = core_register(0);
const PC: u64 = core_register(offset_of!(user_pt_regs, pc));
const PSTATE_REGISTER: u64 = core_register(offset_of!(user_pt_regs, pstate));
const ELR_EL1: u64 = core_register(offset_of!(kvm_regs, elr_el1));
const ESR_EL1: u64 = system_register(3, 0, 5, 2, 0);
const FAR_EL1: u64 = system_register(3, 0, 6, 0, 0);
const ID_AA64MMFR0_EL1: u64 = system_register(3, 0, 0, 7, 0);

/// The id of a register in `struct kvm_regs`, which starts with `user_pt_regs`: its offset in 32-bit words.
const fn core_register(offset: usize) -> u64 {
    // An offset fits any integer.
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64 | (offset / 4) as u64
}

const fn system_register(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    let number = op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2;
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG as u64 | number
}

/// What all vCPUs have in common.
pub(crate) struct VcpuModel(kvm_vcpu_init);

impl VcpuModel {
    /// The processor that this host's KVM prefers, with PSCI.
    ///
    /// # Errors
    /// KVM's.
    pub(crate) fn new(
        _kvm: &Kvm,
        vm: &VmFd,
        _cpus: u8,
        _offer: Option<ServiceBlock>,
    ) -> Result<Self, MachineError> {
        let mut init = kvm_vcpu_init::default();
        vm.get_preferred_target(&mut init)
            .map_err(MachineError::kvm("KVM_ARM_PREFERRED_TARGET"))?;
        let [features, ..] = &mut init.features;
        *features |= 1 << KVM_ARM_VCPU_PSCI_0_2;
        Ok(Self(init))
    }

    /// Makes a new vCPU one of these.
    ///
    /// # Errors
    /// KVM's.
    pub(crate) fn apply(&self, vcpu: &VcpuFd, index: u8) -> Result<PowerOnState, MachineError> {
        let mut init = self.0;
        let [features, ..] = &mut init.features;
        if index > 0 {
            *features |= 1 << KVM_ARM_VCPU_POWER_OFF;
        }
        vcpu.vcpu_init(&init).map_err(MachineError::kvm("KVM_ARM_VCPU_INIT"))?;
        Ok(PowerOnState { init, boots: index == 0 })
    }
}

/// How the boot processor starts a program; the others wait for PSCI.
pub(crate) struct Start {
    /// The first instruction.
    pub(crate) entry: u64,
    /// Where the device tree lies: X0.
    pub(crate) device_tree: u64,
    /// The page size that the program cannot do without.
    pub(crate) granule: Option<Granule>,
}

/// A page size of the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Granule {
    K4,
    K16,
    K64,
}

impl Start {
    /// Whether this processor can run the program.
    ///
    /// # Errors
    /// When it lacks the page size, and KVM's.
    pub(crate) fn check(&self, vcpu: &VcpuFd) -> Result<(), MachineError> {
        let Some(granule) = self.granule else { return Ok(()) };
        let mut features = [0; 8];
        vcpu.get_one_reg(ID_AA64MMFR0_EL1, &mut features)
            .map_err(MachineError::kvm("reading ID_AA64MMFR0_EL1"))?;
        if granule.is_supported(u64::from_le_bytes(features)) {
            return Ok(());
        }
        let kibibytes = match granule {
            Granule::K4 => 4,
            Granule::K16 => 16,
            Granule::K64 => 64,
        };
        Err(MachineError::Guest(format!(
            "the kernel is built for pages of {kibibytes}K, which this host's processors cannot do; take one for others"
        )))
    }
}

impl Granule {
    /// Whether a processor with these memory model features has it (Arm Architecture Reference
    /// Manual, `ID_AA64MMFR0_EL1`).
    fn is_supported(self, features: u64) -> bool {
        match self {
            Self::K4 => features >> 28 & 0xf != 0xf,
            Self::K16 => features >> 20 & 0xf != 0,
            Self::K64 => features >> 24 & 0xf != 0xf,
        }
    }
}

/// What a machine reset brings a vCPU back to.
pub(crate) struct PowerOnState {
    init: kvm_vcpu_init,
    boots: bool,
}

impl PowerOnState {
    /// Brings the boot processor to the entry point, ready to run; the others are off.
    ///
    /// # Errors
    /// KVM's.
    pub(crate) fn restore(&self, vcpu: &VcpuFd, start: &Start) -> Result<(), Error> {
        vcpu.vcpu_init(&self.init)?;
        if self.boots {
            for (register, value) in
                [(PC, start.entry), (X0, start.device_tree), (PSTATE_REGISTER, PSTATE)]
            {
                vcpu.set_one_reg(register, &value.to_le_bytes())?;
            }
        }
        Ok(())
    }
}

/// The registers that tell where a vCPU stands, in one line.
pub(crate) fn describe(vcpu: &VcpuFd) -> String {
    let registers = [
        ("pc", PC),
        ("pstate", PSTATE_REGISTER),
        ("x0", X0),
        ("esr_el1", ESR_EL1),
        ("elr_el1", ELR_EL1),
        ("far_el1", FAR_EL1),
    ];
    let texts = registers.map(|(name, register)| {
        let mut bytes = [0; 8];
        match vcpu.get_one_reg(register, &mut bytes) {
            Ok(_) => format!("{name} {:#x}", u64::from_le_bytes(bytes)),
            Err(error) => format!("{name} unreadable ({error})"),
        }
    });
    texts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_have_the_ids_of_the_kernel_interface() {
        assert_eq!(X0, 0x6030_0000_0010_0000);
        assert_eq!(PC, 0x6030_0000_0010_0040);
        assert_eq!(PSTATE_REGISTER, 0x6030_0000_0010_0042);
        assert_eq!(ELR_EL1, 0x6030_0000_0010_0046);
        assert_eq!(ESR_EL1, 0x6030_0000_0013_c290);
        assert_eq!(ID_AA64MMFR0_EL1, 0x6030_0000_0013_c038);
    }

    #[test]
    fn page_sizes_are_those_of_the_processor() {
        let sizes = |features: u64| {
            [Granule::K4, Granule::K16, Granule::K64].map(|size| size.is_supported(features))
        };
        assert_eq!(sizes(0x1124), [true, false, true], "Cortex-A57");
        assert_eq!(sizes(0x10_1125), [true, true, true], "Neoverse N1");
        assert_eq!(sizes(0xff10_0000), [false, true, false]);
        assert_eq!(sizes(0x1020_0000), [true, true, true], "of 52-bit addresses, too");
    }
}
