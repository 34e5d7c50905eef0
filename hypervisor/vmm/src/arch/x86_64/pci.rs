//! The ways to configuration space: memory (ECAM), and PCI configuration mechanism 1: an address register at 0xCF8, a data window at 0xCFC (PCI Local Bus Specification 3.0, 3.2.2.3.2).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use pvmsi_hypervisor::Service;
use pvmsi_protocol::FunctionId;

use crate::ecam::Ecam;
use crate::pci::ConfigSpace;

/// The address register.
pub(super) const ADDRESS_PORT: u16 = 0xcf8;
/// Ports of the mechanism, from the address register on.
pub(super) const CONFIG_PORTS: u8 = 8;
/// The data window.
pub(super) const DATA_PORTS: std::ops::Range<u16> = 0xcfc..0xd00;

const ENABLE: u32 = 1 << 31;

/// Both ways.
pub(crate) struct PciConfig {
    ecam: Ecam,
    space: ConfigSpace,
    address: AtomicU32,
}

impl PciConfig {
    pub(crate) fn new(service: Arc<Service>) -> Self {
        Self {
            ecam: Ecam::new(Arc::clone(&service)),
            space: ConfigSpace::new(service),
            address: AtomicU32::new(0),
        }
    }

    /// The way by memory.
    pub(super) fn ecam(&self) -> &Ecam {
        &self.ecam
    }

    /// As at power-on.
    pub(crate) fn reset(&self) {
        self.address.store(0, Ordering::Relaxed);
    }

    /// What the address register holds.
    pub(crate) fn address(&self) -> u32 {
        self.address.load(Ordering::Relaxed)
    }

    /// Puts it back.
    pub(crate) fn set_address(&self, address: u32) {
        self.address.store(address, Ordering::Relaxed);
    }

    /// Reads the address register; only 32 bits at a time.
    pub(super) fn read_address(&self, data: &mut [u8]) {
        let value = self.address.load(Ordering::Relaxed).to_le_bytes();
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(data) => *data = value,
            Err(_) => data.fill(0xff),
        }
    }

    /// Writes the address register; only 32 bits at a time.
    pub(super) fn write_address(&self, data: &[u8]) {
        if let Ok(value) = <[u8; 4]>::try_from(data) {
            self.address.store(u32::from_le_bytes(value), Ordering::Relaxed);
        }
    }

    /// Reads through the data window.
    pub(super) fn read_data(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((function, offset)) = self.target(port, data.len()) {
            self.space.read(function, offset, data);
        }
    }

    /// Writes through the data window.
    pub(super) fn write_data(&self, port: u16, data: &[u8]) {
        if let Some((function, offset)) = self.target(port, data.len()) {
            self.space.write(function, offset, data);
        }
    }

    /// What an access of this width at this port means; `None` for nothing.
    fn target(&self, port: u16, width: usize) -> Option<(FunctionId, u64)> {
        let lane = port.checked_sub(DATA_PORTS.start)?;
        let end = usize::from(lane).checked_add(width)?;
        if !matches!(width, 1 | 2 | 4) || end > 4 {
            return None;
        }
        let address = self.address.load(Ordering::Relaxed);
        let [register, devfn, bus, enable] = address.to_le_bytes();
        if u32::from(enable) << 24 & ENABLE == 0 {
            return None;
        }
        let function = FunctionId::new(0, bus, devfn >> 3, devfn & 7)?;
        Some((function, u64::from(register & 0xfc).checked_add(u64::from(lane))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_machine;

    fn mechanism(functions: usize) -> PciConfig {
        PciConfig::new(test_machine::service(functions))
    }

    fn select(mechanism: &PciConfig, device: u8, function: u8, register: u8) {
        let address = 1 << 31
            | u32::from(device) << 11
            | u32::from(function) << 8
            | u32::from(register & 0xfc);
        mechanism.write_address(&address.to_le_bytes());
    }

    fn read<const N: usize>(
        mechanism: &PciConfig,
        device: u8,
        function: u8,
        register: u8,
    ) -> [u8; N] {
        select(mechanism, device, function, register);
        let mut data = [0; N];
        mechanism.read_data(0xcfc + u16::from(register & 3), &mut data);
        data
    }

    #[test]
    fn accesses_of_any_width_inside_the_double_word() {
        let mechanism = mechanism(1);
        assert_eq!(read::<2>(&mechanism, 1, 0, 2), [0x50, 0x56]);
        assert_eq!(read::<1>(&mechanism, 1, 0, 3), [0x56]);
        assert_eq!(read::<2>(&mechanism, 1, 0, 1), [0xff, 0x50]);
        assert_eq!(read::<2>(&mechanism, 1, 0, 3), [0xff; 2], "crosses the end");
        select(&mechanism, 1, 0, 0);
        let mut long = [0; 8];
        mechanism.read_data(0xcfc, &mut long);
        assert_eq!(long, [0xff; 8]);
        select(&mechanism, 1, 0, 4);
        mechanism.write_data(0xcfc, &[6]);
        assert_eq!(read::<2>(&mechanism, 1, 0, 4), [6, 0]);
        select(&mechanism, 1, 0, 4);
        mechanism.write_data(0xcff, &[0, 0]);
        mechanism.write_data(0xcfc, &[0; 3]);
        assert_eq!(read::<2>(&mechanism, 1, 0, 4), [6, 0], "dropped");
    }

    #[test]
    fn nothing_answers_while_the_address_is_disabled_or_names_another_bus() {
        let mechanism = mechanism(1);
        for address in [0x0000_0800_u32, 0x8001_0800] {
            mechanism.write_address(&address.to_le_bytes());
            let mut data = [0; 4];
            mechanism.read_data(0xcfc, &mut data);
            assert_eq!(data, [0xff; 4], "{address:#x}");
        }
        mechanism.write_address(&[1]);
        let mut address = [0; 4];
        mechanism.read_address(&mut address);
        assert_eq!(u32::from_le_bytes(address), 0x8001_0800, "bytes do not change it");
    }
}
