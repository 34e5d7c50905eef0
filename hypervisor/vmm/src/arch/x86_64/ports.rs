//! The I/O ports: who answers.

use std::time::Instant;

use pvmsi_guest_report::REPORT_PORT;

use super::pci::{ADDRESS_PORT, DATA_PORTS};
use crate::bus::{Action, Bus, word};
use crate::config::Doorbell;
use crate::exits::ExitKind;

/// The doorbell's port.
pub(super) const DOORBELL: u16 = 0x5650;
const RESET: u16 = 0xcf9;
/// System reset and CPU reset.
const RESET_VALUE: u8 = 0x06;
const EXIT: u16 = 0xf4;
/// COM1: eight registers.
const SERIAL: u16 = 0x3f8;
const SERIAL_END: u16 = 0x400;

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
