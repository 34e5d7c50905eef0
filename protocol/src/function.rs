//! How functions, vectors and their state are named.

use core::fmt;
use core::str::FromStr;

use crate::codec::{flags, structure};

/// A PCI function as the guest sees it: segment, bus, device and function.
///
/// On the wire: bits 31..16 segment, 15..8 bus, 7..3 device, 2..0 function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FunctionId(pub u32);

impl FunctionId {
    /// Stands in the header of calls that concern no function (`negotiate`).
    pub const NONE: Self = Self(0);

    /// Builds the number; `None` when `device` is over 31 or `function` over 7.
    pub const fn new(segment: u16, bus: u8, device: u8, function: u8) -> Option<Self> {
        if device > 31 || function > 7 {
            return None;
        }
        let [high, low] = segment.to_be_bytes();
        Some(Self(u32::from_be_bytes([high, low, bus, device << 3 | function])))
    }

    /// PCI segment (also called domain).
    pub const fn segment(self) -> u16 {
        let [high, low, ..] = self.0.to_be_bytes();
        u16::from_be_bytes([high, low])
    }

    /// Bus number.
    pub const fn bus(self) -> u8 {
        let [_, _, bus, _] = self.0.to_be_bytes();
        bus
    }

    /// Device number, 0 to 31.
    pub const fn device(self) -> u8 {
        let [_, _, _, devfn] = self.0.to_be_bytes();
        devfn >> 3
    }

    /// Function number, 0 to 7.
    pub const fn function(self) -> u8 {
        let [_, _, _, devfn] = self.0.to_be_bytes();
        devfn & 7
    }

    /// Bus, device and function as one number: the requester id.
    pub const fn requester_id(self) -> u16 {
        let [_, _, bus, devfn] = self.0.to_be_bytes();
        u16::from_be_bytes([bus, devfn])
    }
}

impl fmt::Display for FunctionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:04x}:{:02x}:{:02x}.{:x}",
            self.segment(),
            self.bus(),
            self.device(),
            self.function()
        )
    }
}

/// The text is not of the form `ssss:bb:dd.f` or `bb:dd.f`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseFunctionIdError;

impl fmt::Display for ParseFunctionIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a PCI address; write it as 0000:01:00.0 or 01:00.0, in hexadecimal")
    }
}

impl core::error::Error for ParseFunctionIdError {}

impl FromStr for FunctionId {
    type Err = ParseFunctionIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (address, function) = text.rsplit_once('.')?;
            let (address, device) = address.rsplit_once(':')?;
            let (segment, bus) = address.rsplit_once(':').unwrap_or(("0", address));
            Self::new(
                u16::from_str_radix(segment, 16).ok()?,
                u8::from_str_radix(bus, 16).ok()?,
                u8::from_str_radix(device, 16).ok()?,
                u8::from_str_radix(function, 16).ok()?,
            )
        };
        parse().ok_or(ParseFunctionIdError)
    }
}

/// The index of an entry of a vector table, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct VectorIndex(pub u16);

impl VectorIndex {
    /// The index for slices.
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for VectorIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Counts what changes a function's assignment, its mode or its table messages, modulo 2^32.
///
/// A guest that finds another number than the last one it saw asks again what it had cached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Generation(pub u32);

impl Generation {
    /// The number after this one.
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

bitflags::bitflags! {
    /// Why a function's table is not direct. Empty exactly when it is.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
    pub struct Reasons: u32 {
        /// No vectors are assigned: the guest has not called `configure`.
        const NOT_ASSIGNED = 1 << 0;
        /// The operator allows the call but not the mapping.
        const POLICY = 1 << 1;
        /// The host cannot confine the function to its own interrupts.
        const NO_ISOLATION = 1 << 2;
        /// The table's pages cannot be mapped (layout, page size, or the VMM's memory map).
        const NOT_MAPPABLE = 1 << 3;
        /// MSI-X Enable is clear.
        const MSIX_DISABLED = 1 << 4;
        /// Memory Space Enable is clear.
        const DECODING_OFF = 1 << 5;
        /// The function is not in power state D0.
        const POWER_STATE = 1 << 6;
        /// The host has taken the table back, for a while or for good.
        const HOST_REVOKED = 1 << 7;
        /// An event is held for a vector that is masked; direct again once it is delivered.
        const HELD_EVENT = 1 << 8;
        /// The guest moved to another host: `configure` or `restore` first.
        const MIGRATED = 1 << 9;
        /// The mechanism has no table (MSI).
        const NO_TABLE = 1 << 10;
        /// The host does not find its own messages in the table.
        const UNREADABLE = 1 << 11;
    }
}

impl Reasons {
    /// The reasons that are set, each as the specification spells it.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        const NAMES: [(Reasons, &str); 12] = [
            (Reasons::NOT_ASSIGNED, "not-assigned"),
            (Reasons::POLICY, "policy"),
            (Reasons::NO_ISOLATION, "no-isolation"),
            (Reasons::NOT_MAPPABLE, "not-mappable"),
            (Reasons::MSIX_DISABLED, "msix-disabled"),
            (Reasons::DECODING_OFF, "decoding-off"),
            (Reasons::POWER_STATE, "power-state"),
            (Reasons::HOST_REVOKED, "host-revoked"),
            (Reasons::HELD_EVENT, "held-event"),
            (Reasons::MIGRATED, "migrated"),
            (Reasons::NO_TABLE, "no-table"),
            (Reasons::UNREADABLE, "unreadable"),
        ];
        NAMES.into_iter().filter(move |(reason, _)| self.contains(*reason)).map(|(_, name)| name)
    }
}

structure! {
    VectorIndex { 0 }
    Generation { 0 }
}

flags!(Reasons);
