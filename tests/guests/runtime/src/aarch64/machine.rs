//! The machine's own registers: serial port, report channel, end of the run.

use crate::mmio::Register;

const SERIAL_DATA: usize = 0x0900_0000;
const SERIAL_LINE_STATUS: usize = SERIAL_DATA + 5;
const REPORT: usize = 0x0a01_0000;
const EXIT_STATUS: usize = 0x0a01_0004;

/// The serial port's line status register.
pub(crate) fn line_status() -> u8 {
    // SAFETY: the machine contract has the register there.
    unsafe { Register::at(SERIAL_LINE_STATUS) }.read()
}

/// Writes the serial port's data register.
pub(crate) fn transmit(byte: u8) {
    // SAFETY: the machine contract has the register there; it takes any byte.
    unsafe { Register::at(SERIAL_DATA) }.write(byte);
}

/// Hands a page to the report channel.
pub(crate) fn report(page_number: u32) {
    // SAFETY: the machine contract has the register there; the machine only reads the page.
    unsafe { Register::at(REPORT) }.write(page_number);
}

/// Ends the run; nothing happens where that is not possible.
pub(crate) fn end_run(status: u8) {
    // SAFETY: the machine contract has the register there.
    unsafe { Register::at(EXIT_STATUS) }.write(u32::from(status));
}
