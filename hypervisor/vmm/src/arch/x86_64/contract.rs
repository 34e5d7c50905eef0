//! The machine in numbers, as MACHINE.md has them, and what it needs of the host.

use std::ops::Range;

use kvm_ioctls::Cap;

use crate::doorbell::Doorbell;

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
pub(super) const ECAM: Range<u64> = 0xfea0_0000..0xfeb0_0000;
/// The page of the MMIO doorbell.
pub(crate) const DOORBELL_REGISTER: Range<u64> = 0xfebf_f000..0xfec0_0000;
/// Where KVM keeps what it needs for old Intel processors: three pages and one, outside everything else.
pub(super) const KVM_TSS: usize = 0xfffb_d000;
pub(super) const IO_APIC: u32 = 0xfec0_0000;
pub(super) const LOCAL_APIC: u32 = 0xfee0_0000;
/// The GSI of COM1.
pub(crate) const SERIAL_GSI: u32 = 4;

pub(crate) const ELF_MACHINE: u16 = elf::abi::EM_X86_64;
pub(crate) const GUEST_TARGET: &str = "x86_64-unknown-none";

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
