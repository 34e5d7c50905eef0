//! Configuration space of the software function.
//!
//! Bytes, and for each byte the bits that a driver can write. Layout: PCI
//! Express Base Specification, "PCI-Compatible Configuration Registers".

use crate::config::{
    DEVICE_CONTROL, DEVICE_ID, MSIX, MSIX_CONTROL, PCI_EXPRESS, POWER_CONTROL, POWER_MANAGEMENT,
    SELF_TEST, VENDOR_ID,
};
use crate::registers::{BAR_BYTES, PENDING, TABLE};

const CONFIG_BYTES: usize = 4096;

/// What a write has done beyond changing bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConfigEffect {
    None,
    FunctionLevelReset,
    SelfTest,
}

#[derive(Debug)]
pub(crate) struct ConfigSpace {
    bytes: Box<[u8]>,
    writable: Box<[u8]>,
}

impl ConfigSpace {
    pub(crate) fn new(vectors: u16) -> Self {
        let mut space = Self {
            bytes: vec![0; CONFIG_BYTES].into_boxed_slice(),
            writable: vec![0; CONFIG_BYTES].into_boxed_slice(),
        };
        space.put(0x00, &VENDOR_ID.to_le_bytes());
        space.put(0x02, &DEVICE_ID.to_le_bytes());
        space.put(0x06, &0x0010_u16.to_le_bytes()); // status: capabilities list
        space.put(0x0b, &[0xff]); // class: does not fit a defined one
        space.put(SELF_TEST, &[0x80]); // capable
        space.put(0x34, &[0x40]); // first capability: power management
        space.allow(0x04, &0x0006_u16.to_le_bytes()); // command: memory, bus master
        let bar = !u32::try_from(BAR_BYTES.saturating_sub(1)).unwrap_or(u32::MAX);
        space.allow(0x10, &bar.to_le_bytes());

        // Power management, version 3; PMCSR: No_Soft_Reset, power state writable.
        space.put(POWER_MANAGEMENT, &[0x01, 0x50, 0x03, 0x00, 0x08, 0x00]);
        space.allow(POWER_CONTROL, &[0x03]);
        // PCI Express endpoint, version 2; device capabilities: function level reset.
        space.put(PCI_EXPRESS, &[0x10, 0x90, 0x02, 0x00]);
        space.put(PCI_EXPRESS + 4, &(1_u32 << 28).to_le_bytes());
        space.allow(DEVICE_CONTROL, &[0xff, 0x7f]);
        // MSI-X. Its control word is the service's.
        let size = vectors.saturating_sub(1);
        space.put(MSIX, &[0x11, 0x00]);
        space.put(MSIX_CONTROL, &size.to_le_bytes());
        space.put(MSIX + 4, &u32::try_from(TABLE).unwrap_or(0).to_le_bytes());
        space.put(MSIX + 8, &u32::try_from(PENDING).unwrap_or(0).to_le_bytes());
        space
    }

    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            *byte = self.bytes.get(at).copied().unwrap_or(0xff);
        }
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> ConfigEffect {
        let mut effect = ConfigEffect::None;
        for (at, new) in (offset..).zip(data) {
            let index = usize::try_from(at).unwrap_or(usize::MAX);
            let (Some(byte), Some(writable)) =
                (self.bytes.get_mut(index), self.writable.get(index))
            else {
                break;
            };
            *byte = (*byte & !writable) | (new & writable);
            // Initiate Function Level Reset: bit 15 of device control, reads as 0.
            if at == DEVICE_CONTROL + 1 && new & 0x80 != 0 {
                effect = ConfigEffect::FunctionLevelReset;
            }
            // Start BIST: reads as 0 when it is done, which it is at once.
            if at == SELF_TEST && new & 0x40 != 0 {
                effect = ConfigEffect::SelfTest;
            }
        }
        effect
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        if let Some(target) = self.bytes.get_mut(at..at.saturating_add(bytes.len())) {
            target.copy_from_slice(bytes);
        }
    }

    fn allow(&mut self, at: u64, bits: &[u8]) {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        if let Some(target) = self.writable.get_mut(at..at.saturating_add(bits.len())) {
            target.copy_from_slice(bits);
        }
    }
}
