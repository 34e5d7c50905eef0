//! The machine in numbers, as MACHINE.md has them, and what it needs of the host.

use std::ops::Range;

use kvm_ioctls::Cap;

use crate::doorbell::Doorbell;

/// The most vCPUs: affinity level 0 of GICv3 counts to 16.
pub(crate) const CPUS_MAX: u8 = 16;

pub(super) const DISTRIBUTOR: Range<u64> = 0x0800_0000..0x0801_0000;
pub(super) const ITS: Range<u64> = 0x0808_0000..0x080a_0000;
/// GITS_TRANSLATER, where messages go.
pub(super) const ITS_DOORBELL: u64 = 0x0809_0040;
pub(super) const REDISTRIBUTORS: u64 = 0x080a_0000;
/// Bytes of one redistributor.
pub(super) const REDISTRIBUTOR_BYTES: u64 = 0x2_0000;
/// The UART, registers one byte apart.
pub(super) const SERIAL: Range<u64> = 0x0900_0000..0x0900_0008;
/// Its shared peripheral interrupt, and the GSI of that.
pub(crate) const SERIAL_GSI: u32 = 0;
/// The first GSI that is free for messages.
pub(crate) const FIRST_MESSAGE_GSI: u32 = 1;
/// The MMIO doorbell: a page of the largest size, the register at its start.
pub(crate) const DOORBELL_REGISTER: Range<u64> = 0x0a00_0000..0x0a01_0000;
pub(super) const REPORT: u64 = 0x0a01_0000;
pub(super) const EXIT: u64 = 0x0a01_0004;
/// Where BARs are placed.
pub(crate) const BAR_WINDOW: Range<u64> = 0x1000_0000..0x3eff_0000;
/// Configuration space of bus 0.
pub(super) const ECAM: Range<u64> = 0x3f00_0000..0x3f10_0000;
/// Where RAM starts, and the device tree lies.
pub(super) const RAM_START: u64 = 0x4000_0000;
/// Where RAM can be: as far as on x86_64.
pub(crate) const RAM: [Range<u64>; 1] = [Range { start: RAM_START, end: 0x10_0000_0000 }];
/// The least RAM: the first 2 MiB are the machine's.
pub(crate) const RAM_MIN: u64 = 4 << 20;
/// Segments of the guest lie here or above.
pub(crate) const LOAD_MIN: u64 = 0x4020_0000;

pub(crate) const ELF_MACHINE: u16 = elf::abi::EM_AARCH64;
pub(crate) const GUEST_TARGET: &str = "aarch64-unknown-none-softfloat";

pub(crate) const DOORBELLS: [Doorbell; 2] = [Doorbell::Hvc, Doorbell::Mmio];
pub(crate) const DOORBELL_HELP: &str =
    "How the guest rings: an SMCCC call (HVC or SMC), or a register at 0x0A000000";

pub(crate) const REQUIRED: [(Cap, &str); 5] = [
    (Cap::DeviceCtrl, "devices in the kernel"),
    (Cap::Irqfd, "irqfds"),
    (Cap::IrqRouting, "interrupt routing"),
    (Cap::ImmediateExit, "immediate_exit (Linux 4.13)"),
    (Cap::ArmPsci02, "PSCI 0.2"),
];
pub(crate) const KVM_REMEDY: &str = "use a kernel with CONFIG_KVM that was started at EL2 (the firmware decides; \
     the kernel log says 'kvm' and why not)";
pub(crate) const IOMMU_REMEDY: &str = "switch the SMMU on in the firmware, and see that its tables describe it (ACPI IORT, or iommu-map in the \
     device tree) and that iommu.passthrough or arm-smmu parameters do not disable it";
