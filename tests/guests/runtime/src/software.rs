//! The software function, as a driver finds it.

use pvmsi_software::config::{DEVICE_ID, VENDOR_ID};

use crate::pci;

/// Whether a function is one.
pub fn is_software(function: &pci::Function) -> bool {
    function.vendor_device() == (VENDOR_ID, DEVICE_ID)
}

/// Where an offset of BAR 0 lies, with the BAR at `base` in the identity map.
pub fn address(base: usize, offset: u64) -> usize {
    // Nothing is lost: a guest has 64 bits.
    base.wrapping_add(usize::try_from(offset).unwrap_or_default())
}
