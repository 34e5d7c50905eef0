//! Devices in memory: configuration space.

use super::contract::ECAM;
use crate::bus::{Action, Bus};
use crate::measurements::ExitKind;

/// A load. `false` when no device is there.
pub(crate) fn device_read(bus: &Bus, address: u64, data: &mut [u8]) -> bool {
    let offset = address.checked_sub(ECAM.start).filter(|_| ECAM.contains(&address));
    let Some(offset) = offset else { return false };
    bus.pci.ecam().read(offset, data);
    bus.exits.count(ExitKind::PciConfig);
    true
}

/// A store; `None` when no device is there.
pub(crate) fn device_write(bus: &Bus, address: u64, data: &[u8]) -> Option<Action> {
    let offset = address.checked_sub(ECAM.start).filter(|_| ECAM.contains(&address))?;
    bus.exits.count(ExitKind::PciConfig);
    bus.pci.ecam().write(offset, data);
    Some(Action::Continue)
}
