//! The PCI bus: which functions there are, the host bridge, and configuration space as every way of access reaches it.

mod hidden;

use std::sync::Arc;

use pvmsi_hypervisor::{Router, Service};
use pvmsi_protocol::FunctionId;

/// The most functions of a machine: 32 devices of 8 functions, without the host bridge.
pub(crate) const FUNCTIONS_MAX: usize = 255;

const HEADER_TYPE: u64 = 0x0e;
const MULTI_FUNCTION: u8 = 1 << 7;
/// Which interrupt line, and which pin: none, since nobody serves the pins of functions.
const INTERRUPT_LINE: u64 = 0x3c;
const INTERRUPT_PIN: u64 = 0x3d;

/// The address of the n-th function, counted from 0: 00:01.0, 00:02.0 … 00:1f.0, 00:00.1 …; `None` when the bus is full.
pub(crate) fn address(n: usize) -> Option<FunctionId> {
    let slot = n.checked_add(1)?;
    let device = u8::try_from(slot % 32).ok()?;
    let function = u8::try_from(slot / 32).ok()?;
    FunctionId::new(0, 0, device, function)
}

/// Configuration space of segment 0, with the host bridge at 00:00.0. Functions are the service's.
pub(crate) struct ConfigSpace {
    service: Arc<Service>,
    router: Router,
}

impl ConfigSpace {
    pub(crate) fn new(service: Arc<Service>) -> Self {
        Self { router: service.router(), service }
    }

    /// Reads registers of a function; ones where there is none.
    pub(crate) fn read(&self, function: FunctionId, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if function == HOST_BRIDGE {
            for (at, byte) in (offset..).zip(data.iter_mut()) {
                *byte = host_bridge(at);
            }
        } else if !self.router.config_read(function, offset, data) {
            return;
        } else {
            let read = |at| {
                let mut header = [0xff; 4];
                self.router.config_read(function, at, &mut header);
                u32::from_le_bytes(header)
            };
            hidden::hide(offset, data, read);
            hidden::integrate(offset, data, read);
        }
        for (at, byte) in (offset..).zip(data.iter_mut()) {
            match at {
                HEADER_TYPE => *byte = *byte & !MULTI_FUNCTION | self.multi_function(function),
                INTERRUPT_LINE | INTERRUPT_PIN => *byte = 0,
                _ => {}
            }
        }
    }

    /// Writes registers of a function. Nothing of the host bridge can be written, and writes to nobody are dropped.
    pub(crate) fn write(&self, function: FunctionId, offset: u64, data: &[u8]) {
        self.router.config_write(function, offset, data);
    }

    /// The bit that tells enumeration to look at functions 1 to 7.
    fn multi_function(&self, function: FunctionId) -> u8 {
        let others = self.service.functions().into_iter().any(|other| {
            let other = other.id();
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
    use crate::test_machine;

    fn read<const N: usize>(
        space: &ConfigSpace,
        device: u8,
        function: u8,
        register: u64,
    ) -> [u8; N] {
        let mut data = [0; N];
        space.read(FunctionId::new(0, 0, device, function).unwrap(), register, &mut data);
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
        let space = ConfigSpace::new(test_machine::service(2));
        assert_eq!(read(&space, 0, 0, 0), [0xfe, 0xff, 0x51, 0x56]);
        assert_eq!(read(&space, 0, 0, 8), [0, 0, 0, 6]);
        assert_eq!(read(&space, 1, 0, 0), [0xfe, 0xff, 0x50, 0x56]);
        assert_eq!(read(&space, 2, 0, 0), [0xfe, 0xff, 0x50, 0x56]);
        assert_eq!(read(&space, 3, 0, 0), [0xff; 4]);
        assert_eq!(read::<1>(&space, 1, 0, 0x0e), [0], "one function only");
    }

    #[test]
    fn the_multi_function_bit_shows_where_there_are_more() {
        let space = ConfigSpace::new(test_machine::service(33));
        assert_eq!(read::<1>(&space, 0, 0, 0x0e), [0x80], "host bridge");
        assert_eq!(read::<1>(&space, 1, 0, 0x0e), [0x80]);
        assert_eq!(read::<1>(&space, 1, 1, 0x0e), [0]);
        assert_eq!(read::<1>(&space, 2, 0, 0x0e), [0]);
        assert_eq!(read(&space, 1, 1, 0), [0xfe, 0xff, 0x50, 0x56]);
    }
}
