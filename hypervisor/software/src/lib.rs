//! A PCI function in software: the embedded default and the test double that behaves like hardware.
//!
//! Its vector table and pending bits lie in memory that it shares with the
//! guest. It raises an interrupt only where the mask bit found there is clear,
//! keeps the event in the pending bit array otherwise, and emits whatever
//! message the table holds. Registers beside the table share its page on
//! purpose.
//!
//! Two views of one function: `SoftwareFunction` is what a driver of the host
//! sees (configuration space, BAR, interrupt set-up), `SoftwareDevice` is the
//! device itself, to be run by a thread that the VMM owns. Both are there with
//! the feature `function`, which is on by default. Without it there are
//! [`registers`] and [`config`], which need no operating system.
#![cfg_attr(not(feature = "function"), no_std)]
#![doc = ""]
#![doc = include_str!("../README.md")]

pub mod config;
pub mod registers;

#[cfg(feature = "function")]
mod config_space;
#[cfg(feature = "function")]
mod device;
#[cfg(feature = "function")]
mod function;
#[cfg(feature = "function")]
mod saved;
#[cfg(feature = "function")]
mod sync;

#[cfg(feature = "function")]
pub use device::SoftwareDevice;
#[cfg(feature = "function")]
pub use function::{SoftwareFunction, SoftwareOptions};
#[cfg(feature = "function")]
pub use saved::{SoftwareDeviceState, SoftwareStateError};

#[cfg(test)]
mod tests {
    use super::config::{DEVICE_CONTROL, DEVICE_ID, MSIX, MSIX_CONTROL, POWER_CONTROL, VENDOR_ID};
    use super::registers::*;

    const DATA_SHEET: &str = include_str!("../README.md");

    #[test]
    fn the_constants_are_those_of_the_data_sheet() {
        let registers = [
            (ID, "ID"),
            (VECTORS, "VECTORS"),
            (DOORBELL, "DOORBELL"),
            (FIRST, "FIRST"),
            (ROTATION, "ROTATION"),
            (PACE, "PACE"),
            (CONTROL, "CONTROL"),
            (DONE, "DONE"),
            (TABLE, "vector table"),
            (PENDING, "pending bit array"),
            (EVENTS, "EVENTS"),
            (SENT, "SENT"),
            (SENDING, "SENDING"),
        ];
        for (offset, name) in registers {
            let row = format!("\n| 0x{offset:04X} | {name}");
            assert!(DATA_SHEET.contains(&row), "{row}");
        }
        assert!(DATA_SHEET.contains(&format!("0x{VENDOR_ID:04X}:0x{DEVICE_ID:04X}")));
        assert!(DATA_SHEET.contains(&format!("control/status at 0x{POWER_CONTROL:x}:")));
        assert!(DATA_SHEET.contains(&format!("Device Control at 0x{DEVICE_CONTROL:x},")));
        assert!(DATA_SHEET.contains(&format!("\n| 0x{MSIX:x} | MSI-X:")));
        assert_eq!(MSIX_CONTROL, MSIX + 2);
        assert!(DATA_SHEET.contains("\n128 KiB,") && BAR_BYTES == 128 << 10);
        assert_eq!(entry_word(2047, 3), TABLE + 2048 * 16 - 4);
        assert_eq!(pending_word(2047), PENDING + 2048 / 8 - 4);
        assert_eq!(of_vector(SENT, 2), 0x1_2008);
    }
}
