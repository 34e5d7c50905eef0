//! Devices in memory: UART, report channel, exit register, configuration space.

use std::time::Instant;

use super::contract::{ECAM, EXIT, REPORT, SERIAL};
use crate::bus::{Action, Bus, word};
use crate::measurements::ExitKind;

/// A load. `false` when no device is there.
pub(crate) fn device_read(bus: &Bus, address: u64, data: &mut [u8]) -> bool {
    let kind = if SERIAL.contains(&address) {
        // Wider loads find the register in their lowest byte.
        if let [first, rest @ ..] = data {
            *first = bus.serial.read(serial_register(address));
            rest.fill(0);
        }
        ExitKind::Serial
    } else if ECAM.contains(&address) {
        bus.pci.ecam().read(address.saturating_sub(ECAM.start), data);
        ExitKind::PciConfig
    } else {
        return false;
    };
    bus.exits.count(kind);
    true
}

/// A store; `None` when no device is there. The exit is counted before anything else happens, except that the end of a section is dated first.
pub(crate) fn device_write(bus: &Bus, address: u64, data: &[u8]) -> Option<Action> {
    let now = Instant::now();
    if SERIAL.contains(&address) {
        bus.exits.count(ExitKind::Serial);
        if let [first, ..] = data {
            bus.serial.write(serial_register(address), *first);
        }
    } else if ECAM.contains(&address) {
        bus.exits.count(ExitKind::PciConfig);
        bus.pci.ecam().write(address.saturating_sub(ECAM.start), data);
    } else if address == REPORT {
        return Some(bus.report(word(data), now));
    } else if address == EXIT {
        bus.exits.count(ExitKind::Other);
        if let Some(status) = word(data) {
            let [status, ..] = status.to_le_bytes();
            return Some(Action::Exit(status));
        }
    } else {
        return None;
    }
    Some(Action::Continue)
}

fn serial_register(address: u64) -> u8 {
    let [register, ..] = address.wrapping_sub(SERIAL.start).to_le_bytes();
    register
}
