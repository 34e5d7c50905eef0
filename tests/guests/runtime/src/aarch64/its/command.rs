//! The commands of the translation service (Arm IHI 0069, 5.3).
//!
//! Collections and vCPUs are numbered alike.

const VALID: u64 = 1 << 63;

/// A command, as it stands in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Command([u64; 4]);

impl Command {
    /// Bytes of one.
    pub(crate) const BYTES: usize = 32;

    /// MAPD: a device with 2 to the `event_bits` events, and the table for their translations.
    pub(crate) fn map_device(device: u8, event_bits: u32, table: u64) -> Self {
        Self([head(0x08, device), u64::from(event_bits.saturating_sub(1)), VALID | table, 0])
    }

    /// MAPC: a collection, and the vCPU that it stands for.
    pub(crate) fn map_collection(collection: u16, vcpu: u16) -> Self {
        Self([head(0x09, 0), 0, VALID | target(vcpu) | u64::from(collection), 0])
    }

    /// MAPTI: an event, its LPI, and the collection that takes it.
    pub(crate) fn map_event(device: u8, event: u16, lpi: u32, collection: u16) -> Self {
        let what = u64::from(lpi) << 32 | u64::from(event);
        Self([head(0x0a, device), what, collection.into(), 0])
    }

    /// INT: raises an event.
    pub(crate) fn raise(device: u8, event: u16) -> Self {
        Self([head(0x03, device), event.into(), 0, 0])
    }

    /// SYNC: earlier commands have taken effect for a vCPU when this is done.
    pub(crate) fn synchronise(vcpu: u16) -> Self {
        Self([head(0x05, 0), 0, target(vcpu), 0])
    }

    /// The double words, little endian in the queue.
    pub(crate) fn words(self) -> [u64; 4] {
        self.0.map(u64::to_le)
    }
}

fn head(command: u8, device: u8) -> u64 {
    u64::from(device) << 32 | u64::from(command)
}

fn target(vcpu: u16) -> u64 {
    u64::from(vcpu) << 16
}
