//! Configuration space in memory: the enhanced configuration access mechanism (PCI Express Base Specification, ECAM), bus 0.

use std::sync::Arc;

use pvmsi_hypervisor::Service;
use pvmsi_protocol::FunctionId;

use crate::pci::ConfigSpace;

/// The mechanism. It has no state.
pub(crate) struct Ecam {
    space: ConfigSpace,
}

impl Ecam {
    pub(crate) fn new(service: Arc<Service>) -> Self {
        Self { space: ConfigSpace::new(service) }
    }

    /// Reads at an offset from the start of the ECAM.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((function, register)) = target(offset, data.len()) {
            self.space.read(function, register, data);
        }
    }

    /// Writes at an offset from the start of the ECAM.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, register)) = target(offset, data.len()) {
            self.space.write(function, register, data);
        }
    }
}

/// What an access of this width means; `None` for one that no host bridge takes.
fn target(offset: u64, width: usize) -> Option<(FunctionId, u64)> {
    let width = u64::try_from(width).ok().filter(|width| matches!(width, 1 | 2 | 4))?;
    if !offset.is_multiple_of(width) {
        return None;
    }
    let [bus, devfn] = u16::try_from(offset >> 12).ok()?.to_be_bytes();
    let function = FunctionId::new(0, bus, devfn >> 3, devfn & 7)?;
    Some((function, offset & 0xfff))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_machine;

    fn read<const N: usize>(ecam: &Ecam, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        ecam.read(offset, &mut data);
        data
    }

    #[test]
    fn an_address_is_device_function_and_register() {
        let ecam = Ecam::new(test_machine::service(33));
        assert_eq!(read(&ecam, 0), [0xfe, 0xff, 0x51, 0x56], "host bridge");
        assert_eq!(read(&ecam, 1 << 15), [0xfe, 0xff, 0x50, 0x56]);
        assert_eq!(read(&ecam, 1 << 15 | 1 << 12), [0xfe, 0xff, 0x50, 0x56]);
        assert_eq!(read(&ecam, 1 << 15 | 2 << 12), [0xff; 4], "nobody");
        assert_eq!(read(&ecam, 1 << 15 | 2), [0x50, 0x56]);
        assert_eq!(read(&ecam, 1 << 15 | 0xffc), [0; 4], "extended configuration space");
    }

    #[test]
    fn accesses_that_are_not_aligned_or_too_wide_are_nobodys() {
        let ecam = Ecam::new(test_machine::service(1));
        assert_eq!(read(&ecam, 1 << 15 | 1), [0xff; 2]);
        assert_eq!(read(&ecam, 1 << 15), [0xff; 8]);
        assert_eq!(read(&ecam, 1 << 15), [0xff; 3]);
        ecam.write(1 << 15 | 4, &[6]);
        assert_eq!(read(&ecam, 1 << 15 | 4), [6, 0]);
        ecam.write(1 << 15 | 3, &[0, 0]);
        ecam.write(1 << 15 | 4, &[0; 8]);
        assert_eq!(read(&ecam, 1 << 15 | 4), [6, 0], "dropped");
    }
}
