//! Where things are in configuration space, in bytes. The rest is as the PCI Express Base Specification has it.

/// Vendor ID: of the range that is not assigned.
pub const VENDOR_ID: u16 = 0xfffe;
/// Device ID.
pub const DEVICE_ID: u16 = 0x5650;

/// Built-in self-test: bit 6 starts it, which resets the function as a whole.
pub const SELF_TEST: u64 = 0x0f;
/// The power management capability.
pub const POWER_MANAGEMENT: u64 = 0x40;
/// Power Management Control/Status: the power state in bits 1 and 0.
pub const POWER_CONTROL: u64 = POWER_MANAGEMENT + 4;
/// The PCI Express capability.
pub const PCI_EXPRESS: u64 = 0x50;
/// Device Control: bit 15 initiates a function level reset.
pub const DEVICE_CONTROL: u64 = PCI_EXPRESS + 8;
/// The MSI-X capability.
pub const MSIX: u64 = 0x90;
/// Message Control of MSI-X: Enable in bit 15, Function Mask in bit 14.
pub const MSIX_CONTROL: u64 = MSIX + 2;
