//! The registers of the GICv3 at power-on, to go back to.
//!
//! KVM has a reset for the translation service only. For the rest a reset reads
//! all registers that hold state once, before the first instruction, and writes
//! them back: registers that set bits only are cleared first.
//!
//! Source: Arm GICv3 architecture specification (IHI 0069), register offsets.

use kvm_bindings::{
    KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, KVM_DEV_ARM_VGIC_GRP_DIST_REGS,
    KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, KVM_DEV_ARM_VGIC_V3_MPIDR_SHIFT, kvm_device_attr,
};
use kvm_ioctls::{DeviceFd, Error};

/// Registers that clear what they are written to, by their distance from those that set it.
const CLEAR_DISTANCE: u64 = 0x80;

/// One register of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Register {
    group: u32,
    attr: u64,
    /// A write only sets bits; all are cleared through the register at [`CLEAR_DISTANCE`] first.
    sets: bool,
}

/// What they held, in the order in which they are written back.
#[derive(Debug, Default)]
pub(super) struct PowerOnRegisters(Vec<(Register, u64)>);

impl PowerOnRegisters {
    /// Reads them from a controller that has just been initialised, of a machine with so many vCPUs.
    ///
    /// # Errors
    /// KVM's.
    pub(super) fn read(gic: &DeviceFd, cpus: u8) -> Result<Self, Error> {
        let mut all = Vec::new();
        for register in distributor() {
            all.push((register, get(gic, register)?));
        }
        for affinity in 0..u64::from(cpus) {
            for register in redistributor(affinity) {
                all.push((register, get(gic, register)?));
            }
            for register in cpu_interface(affinity) {
                // Active priorities beyond the first register are there on some hosts only.
                if let Ok(value) = get(gic, register) {
                    all.push((register, value));
                }
            }
        }
        Ok(Self(all))
    }

    /// Writes them back. All vCPUs are at rest.
    ///
    /// # Errors
    /// KVM's.
    pub(super) fn restore(&self, gic: &DeviceFd) -> Result<(), Error> {
        self.0.iter().try_for_each(|&(register, value)| {
            if register.sets {
                let attr = register.attr.saturating_add(CLEAR_DISTANCE);
                set(gic, Register { attr, ..register }, u64::from(u32::MAX))?;
            }
            set(gic, register, value)
        })
    }
}

fn state(group: u32, attr: u64) -> Register {
    Register { group, attr, sets: false }
}

/// GICD_CTLR first, so that nothing is delivered meanwhile, then the 32 shared interrupts.
fn distributor() -> Vec<Register> {
    let group = KVM_DEV_ARM_VGIC_GRP_DIST_REGS;
    let plain = |offset| state(group, offset);
    let sets = |offset| Register { sets: true, ..plain(offset) };
    let mut all = vec![plain(0x0000)]; // GICD_CTLR
    // GICD_ISENABLER1, GICD_ISPENDR1, GICD_ISACTIVER1, GICD_IGROUPR1
    all.extend([sets(0x104), sets(0x204), sets(0x304), plain(0x084)]);
    all.extend((0x420..0x440).step_by(4).map(plain)); // GICD_IPRIORITYR8 to 15
    all.extend((0xc08..0xc10).step_by(4).map(plain)); // GICD_ICFGR2 and 3
    all.extend((0x6100..0x6200).step_by(8).map(plain)); // GICD_IROUTER32 to 63, low halves
    all
}

/// GICR_CTLR first: with LPIs on, the tables' addresses cannot be written.
fn redistributor(affinity: u64) -> Vec<Register> {
    const SGI_FRAME: u64 = 0x1_0000;
    let group = KVM_DEV_ARM_VGIC_GRP_REDIST_REGS;
    let plain = |offset: u64| state(group, of_cpu(affinity, offset));
    let sets = |offset: u64| Register { sets: true, ..plain(offset | SGI_FRAME) };
    let frame = |offset: u64| plain(offset | SGI_FRAME);
    let mut all = vec![plain(0x0000)]; // GICR_CTLR
    all.extend((0x70..0x80).step_by(4).map(plain)); // GICR_PROPBASER, GICR_PENDBASER
    // GICR_ISENABLER0, GICR_ISPENDR0, GICR_ISACTIVER0, GICR_IGROUPR0
    all.extend([sets(0x100), sets(0x200), sets(0x300), frame(0x080)]);
    all.extend((0x400..0x420).step_by(4).map(frame)); // GICR_IPRIORITYR0 to 7
    all.extend((0xc00..0xc08).step_by(4).map(frame)); // GICR_ICFGR0 and 1
    all
}

fn cpu_interface(affinity: u64) -> Vec<Register> {
    let register = |crn: u64, crm: u64, op2: u64| {
        let number = 3 << 14 | crn << 7 | crm << 3 | op2;
        state(KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, of_cpu(affinity, number))
    };
    // ICC_IGRPEN0, ICC_IGRPEN1, ICC_CTLR, ICC_PMR, ICC_BPR0, ICC_BPR1
    let mut all = vec![register(12, 12, 6), register(12, 12, 7), register(12, 12, 4)];
    all.extend([register(4, 6, 0), register(12, 8, 3), register(12, 12, 3)]);
    all.extend((4..8).map(|op2| register(12, 8, op2))); // ICC_AP0R0 to 3
    all.extend((0..4).map(|op2| register(12, 9, op2))); // ICC_AP1R0 to 3
    all
}

fn of_cpu(affinity: u64, offset: u64) -> u64 {
    affinity << KVM_DEV_ARM_VGIC_V3_MPIDR_SHIFT | offset
}

fn get(gic: &DeviceFd, Register { group, attr, .. }: Register) -> Result<u64, Error> {
    let mut value = 0_u64;
    let addr = (&raw mut value).expose_provenance() as u64;
    let mut attribute = kvm_device_attr { flags: 0, group, attr, addr };
    // SAFETY: KVM writes 32 or, for registers of the CPU interface, 64 bits to `value`, which
    // outlives the call.
    unsafe { gic.get_device_attr(&mut attribute) }?;
    // 32 bits are the lower half: the host is little endian.
    Ok(value)
}

fn set(gic: &DeviceFd, Register { group, attr, .. }: Register, value: u64) -> Result<(), Error> {
    let addr = (&raw const value).expose_provenance() as u64;
    gic.set_device_attr(&kvm_device_attr { flags: 0, group, attr, addr })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delivery_is_off_before_anything_else_is_written() {
        assert_eq!(distributor().first().unwrap().attr, 0);
        assert_eq!(redistributor(3).first().unwrap().attr, 3 << 32);
    }

    #[test]
    fn registers_have_the_numbers_of_the_kernel_interface() {
        let pmr = cpu_interface(1)[3];
        assert_eq!(pmr.attr, 1 << 32 | 0xc230, "ICC_PMR_EL1: 3, 0, 4, 6, 0");
        let enable = redistributor(0).into_iter().find(|register| register.sets).unwrap();
        assert_eq!(enable.attr, 0x1_0100);
    }
}
