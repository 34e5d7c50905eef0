//! The I/O ports: who answers.

use std::time::Instant;

use pvmsi_guest_report::REPORT_PORT;

use super::pci::{ADDRESS_PORT, DATA_PORTS};
use crate::bus::{Action, Bus, word};
use crate::doorbell::Doorbell;
use crate::measurements::ExitKind;

/// The doorbell's port.
pub(super) const DOORBELL: u16 = 0x5650;
pub(super) const RESET: u16 = 0xcf9;
/// System reset and CPU reset.
pub(super) const RESET_VALUE: u8 = 0x06;
const EXIT: u16 = 0xf4;
/// COM1.
pub(super) const SERIAL: u16 = 0x3f8;
pub(super) const SERIAL_PORTS: u8 = 8;
const SERIAL_END: u16 = 0x400;
/// The sleep registers of a hardware-reduced ACPI platform (ACPI 6.5, 4.8.3.7).
pub(super) const SLEEP_CONTROL: u16 = 0x5670;
pub(super) const SLEEP_STATUS: u16 = 0x5671;
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
/// The sleep type of S5.
pub(super) const SLEEP_TYPE_OFF: u8 = 5;

/// `in`.
pub(super) fn read(bus: &Bus, port: u16, data: &mut [u8]) {
    data.fill(0xff);
    let kind = match port {
        SERIAL..SERIAL_END => {
            for byte in data {
                *byte = bus.serial.read(serial_register(port));
            }
            ExitKind::Serial
        }
        ADDRESS_PORT => {
            bus.pci.read_address(data);
            ExitKind::PciConfig
        }
        _ if DATA_PORTS.contains(&port) => {
            bus.pci.read_data(port, data);
            ExitKind::PciConfig
        }
        // The machine is awake, and never wakes up.
        SLEEP_CONTROL | SLEEP_STATUS => {
            data.fill(0);
            ExitKind::Other
        }
        _ => ExitKind::Other,
    };
    bus.exits.count(kind);
}

/// `out`. The exit is counted before anything else happens, except that the end of a section is dated first.
pub(super) fn write(bus: &Bus, port: u16, data: &[u8]) -> Action {
    let now = Instant::now();
    match port {
        DOORBELL if bus.doorbell == Some(Doorbell::Port) => {
            bus.exits.count(ExitKind::Doorbell);
            bus.ring(word(data));
        }
        REPORT_PORT => return bus.report(word(data), now),
        SERIAL..SERIAL_END => {
            bus.exits.count(ExitKind::Serial);
            for byte in data {
                bus.serial.write(serial_register(port), *byte);
            }
        }
        ADDRESS_PORT => {
            bus.exits.count(ExitKind::PciConfig);
            bus.pci.write_address(data);
        }
        RESET => {
            bus.exits.count(ExitKind::Other);
            if data == [RESET_VALUE] {
                return Action::Reset;
            }
        }
        SLEEP_CONTROL => {
            bus.exits.count(ExitKind::Other);
            if data == [SLEEP_ENABLE | SLEEP_TYPE_OFF << SLEEP_TYPE_SHIFT] {
                return Action::Exit(0);
            }
        }
        EXIT => {
            bus.exits.count(ExitKind::Other);
            if let [status] = data {
                return Action::Exit(*status);
            }
        }
        _ if DATA_PORTS.contains(&port) => {
            bus.exits.count(ExitKind::PciConfig);
            bus.pci.write_data(port, data);
        }
        _ => bus.exits.count(ExitKind::Other),
    }
    Action::Continue
}

fn serial_register(port: u16) -> u8 {
    let [register, _] = port.wrapping_sub(SERIAL).to_le_bytes();
    register
}
