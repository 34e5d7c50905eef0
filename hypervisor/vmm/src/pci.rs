//! PCI configuration mechanism 1: an address register at 0xCF8, a data window at 0xCFC (PCI Local Bus Specification 3.0, 3.2.2.3.2).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use pvmsi_hypervisor::Service;
use pvmsi_protocol::FunctionId;

/// The address register.
pub(crate) const ADDRESS_PORT: u16 = 0xcf8;
/// The data window.
pub(crate) const DATA_PORTS: std::ops::Range<u16> = 0xcfc..0xd00;
/// The most functions of a machine: 32 devices of 8 functions, without the host bridge.
pub(crate) const FUNCTIONS_MAX: usize = 255;

const ENABLE: u32 = 1 << 31;
const HEADER_TYPE: u64 = 0x0e;
const MULTI_FUNCTION: u8 = 1 << 7;

/// The address of the n-th function, counted from 0: 00:01.0, 00:02.0 … 00:1f.0, 00:00.1 …; `None` when the bus is full.
pub(crate) fn address(n: usize) -> Option<FunctionId> {
    let slot = n.checked_add(1)?;
    let device = u8::try_from(slot % 32).ok()?;
    let function = u8::try_from(slot / 32).ok()?;
    FunctionId::new(0, 0, device, function)
}

/// The mechanism, and the host bridge at 00:00.0. Functions are the service's.
pub(crate) struct ConfigMechanism {
    service: Arc<Service>,
    address: AtomicU32,
}

impl ConfigMechanism {
    pub(crate) fn new(service: Arc<Service>) -> Self {
        Self { service, address: AtomicU32::new(0) }
    }

    /// As at power-on.
    pub(crate) fn reset(&self) {
        self.address.store(0, Ordering::Relaxed);
    }

    /// Reads the address register; only 32 bits at a time.
    pub(crate) fn read_address(&self, data: &mut [u8]) {
        let value = self.address.load(Ordering::Relaxed).to_le_bytes();
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(data) => *data = value,
            Err(_) => data.fill(0xff),
        }
    }

    /// Writes the address register; only 32 bits at a time.
    pub(crate) fn write_address(&self, data: &[u8]) {
        if let Ok(value) = <[u8; 4]>::try_from(data) {
            self.address.store(u32::from_le_bytes(value), Ordering::Relaxed);
        }
    }

    /// Reads through the data window.
    pub(crate) fn read_data(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        let Some((function, offset)) = self.target(port, data.len()) else { return };
        if function == HOST_BRIDGE {
            for (at, byte) in (offset..).zip(data.iter_mut()) {
                *byte = host_bridge(at);
            }
        } else if !self.service.config_read(function, offset, data) {
            return;
        }
        for (at, byte) in (offset..).zip(data.iter_mut()) {
            if at == HEADER_TYPE {
                *byte = *byte & !MULTI_FUNCTION | self.multi_function(function);
            }
        }
    }

    /// Writes through the data window.
    pub(crate) fn write_data(&self, port: u16, data: &[u8]) {
        if let Some((function, offset)) = self.target(port, data.len()) {
            // Nothing of the host bridge can be written, and writes to nobody are dropped.
            self.service.config_write(function, offset, data);
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

    /// The bit that tells enumeration to look at functions 1 to 7.
    fn multi_function(&self, function: FunctionId) -> u8 {
        let others = self.service.functions().into_iter().any(|other| {
            other.bus() == function.bus()
                && other.device() == function.device()
                && other.function() != 0
        });
        if function.function() == 0 && others { MULTI_FUNCTION } else { 0 }
    }
}

/// 00:00.0. The number also stands for "no function" in calls, which never reach it.
const HOST_BRIDGE: FunctionId = FunctionId(0);

/// Its configuration space: identity and class, nothing else.
fn host_bridge(offset: u64) -> u8 {
    match offset {
        // Vendor id from the range that is not assigned, as the software function.
        0x00 => 0xfe,
        0x01 => 0xff,
        0x02 => 0x51,
        0x03 => 0x56,
        // Class: bridge, host bridge.
        0x0b => 0x06,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_machine::{NoRoutes, NoWindow};
    use pvmsi_hypervisor::{
        FunctionPolicy, Platform, ServiceConfig, SoftwareFunction, SoftwareOptions,
    };

    fn mechanism(functions: usize) -> ConfigMechanism {
        let service = Service::new(ServiceConfig::new(Platform::X86_64), Arc::new(NoRoutes));
        for n in 0..functions {
            let function = SoftwareFunction::new(SoftwareOptions::default(), 4096).unwrap();
            service
                .add_function(
                    address(n).unwrap(),
                    Box::new(function),
                    Box::new(NoWindow),
                    FunctionPolicy::default(),
                )
                .unwrap();
        }
        ConfigMechanism::new(Arc::new(service))
    }

    fn select(mechanism: &ConfigMechanism, device: u8, function: u8, register: u8) {
        let address = 1 << 31
            | u32::from(device) << 11
            | u32::from(function) << 8
            | u32::from(register & 0xfc);
        mechanism.write_address(&address.to_le_bytes());
    }

    fn read<const N: usize>(
        mechanism: &ConfigMechanism,
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
    fn functions_are_numbered_by_device_first() {
        let text = |n| address(n).map(|id| id.to_string());
        assert_eq!(text(0).unwrap(), "0000:00:01.0");
        assert_eq!(text(30).unwrap(), "0000:00:1f.0");
        assert_eq!(text(31).unwrap(), "0000:00:00.1");
        assert_eq!(text(FUNCTIONS_MAX - 1).unwrap(), "0000:00:1f.7");
        assert_eq!(text(FUNCTIONS_MAX), None);
    }

    #[test]
    fn enumeration_finds_bridge_and_functions_and_nothing_else() {
        let mechanism = mechanism(2);
        assert_eq!(read(&mechanism, 0, 0, 0), [0xfe, 0xff, 0x51, 0x56]);
        assert_eq!(read(&mechanism, 0, 0, 8), [0, 0, 0, 6]);
        assert_eq!(read(&mechanism, 1, 0, 0), [0xfe, 0xff, 0x50, 0x56]);
        assert_eq!(read(&mechanism, 2, 0, 0), [0xfe, 0xff, 0x50, 0x56]);
        assert_eq!(read(&mechanism, 3, 0, 0), [0xff; 4]);
        assert_eq!(read::<1>(&mechanism, 1, 0, 0x0e), [0], "one function only");
    }

    #[test]
    fn the_multi_function_bit_shows_where_there_are_more() {
        let mechanism = mechanism(33);
        assert_eq!(read::<1>(&mechanism, 0, 0, 0x0e), [0x80], "host bridge");
        assert_eq!(read::<1>(&mechanism, 1, 0, 0x0e), [0x80]);
        assert_eq!(read::<1>(&mechanism, 1, 1, 0x0e), [0]);
        assert_eq!(read::<1>(&mechanism, 2, 0, 0x0e), [0]);
        assert_eq!(read(&mechanism, 1, 1, 0), [0xfe, 0xff, 0x50, 0x56]);
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
