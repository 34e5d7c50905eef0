//! The machine's own ports: serial port, report channel, end of the run.

use pvmsi_guest_report::REPORT_PORT;
use x86_64::instructions::port::{Port, PortReadOnly};

const COM1_DATA: u16 = 0x3f8;
const COM1_LINE_STATUS: u16 = COM1_DATA + 5;
const EXIT_STATUS: u16 = 0xf4;

/// The serial port's line status register.
pub(crate) fn line_status() -> u8 {
    let mut port = PortReadOnly::<u8>::new(COM1_LINE_STATUS);
    // SAFETY: reading the line status of COM1 has no effect that matters.
    unsafe { port.read() }
}

/// Writes the serial port's data register.
pub(crate) fn transmit(byte: u8) {
    let mut port = Port::<u8>::new(COM1_DATA);
    // SAFETY: the data register of COM1 takes any byte.
    unsafe { port.write(byte) };
}

/// Hands a page to the report channel.
pub(crate) fn report(page_number: u32) {
    let mut port = Port::<u32>::new(REPORT_PORT);
    // SAFETY: the machine contract gives this port that meaning; the machine only reads the page.
    unsafe { port.write(page_number) };
}

/// Ends the run; nothing happens where that is not possible.
pub(crate) fn end_run(status: u8) {
    let mut port = Port::<u8>::new(EXIT_STATUS);
    // SAFETY: the machine contract gives this port that meaning; nothing runs after it.
    unsafe { port.write(status) };
}
