//! The two kinds of message, kept apart by type.

use core::fmt;

use crate::codec::messages;

/// The address/data pair that is valid in the guest: where the guest wants the interrupt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct GuestMessage {
    /// Guest physical address of the doorbell of the interrupt controller.
    pub address: u64,
    /// What a function would write there.
    pub data: u32,
}

/// The address/data pair that belongs in the hardware table: chosen by the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TableMessage {
    /// Message Address of the table entry, upper half in the upper 32 bits.
    pub address: u64,
    /// Message Data of the table entry.
    pub data: u32,
}

impl fmt::Display for GuestMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest message {:#x}/{:#x}", self.address, self.data)
    }
}

impl fmt::Display for TableMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table message {:#x}/{:#x}", self.address, self.data)
    }
}

messages!(GuestMessage, TableMessage);
