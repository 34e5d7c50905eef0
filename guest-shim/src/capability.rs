//! What the kernel provides for a PCI function, and how its MSI-X capability is found.
//!
//! Source: PCI Local Bus Specification 3.0, section 6.7 (capability list) and
//! 6.8.2 (MSI-X).

use pvmsi_protocol::{FunctionId, VectorIndex};

/// A PCI function, as the kernel gives access to it.
pub trait PciFunction {
    /// Segment, bus, device and function number.
    fn id(&self) -> FunctionId;

    /// Reads 16 bits of config space at a byte offset that is a multiple of 2.
    fn read_config_u16(&self, offset: u16) -> u16;

    /// Reads 32 bits of config space at a byte offset that is a multiple of 4.
    fn read_config_u32(&self, offset: u16) -> u32;

    /// Writes 16 bits of config space at a byte offset that is a multiple of 2.
    fn write_config_u16(&self, offset: u16, value: u16);

    /// Makes the handler of `vector` run once, as if the function had sent the vector's message:
    /// an event was pending when the table was switched.
    ///
    /// Called at most once for such an event, from [`MsiX::unmask`](crate::MsiX::unmask), after
    /// the vector is unmasked, in the context of that call. Sending the vector's interrupt to the own processor is
    /// the usual way.
    fn deliver(&self, vector: VectorIndex);
}

impl<F: PciFunction + ?Sized> PciFunction for &F {
    fn id(&self) -> FunctionId {
        (**self).id()
    }
    fn read_config_u16(&self, offset: u16) -> u16 {
        (**self).read_config_u16(offset)
    }
    fn read_config_u32(&self, offset: u16) -> u32 {
        (**self).read_config_u32(offset)
    }
    fn write_config_u16(&self, offset: u16, value: u16) {
        (**self).write_config_u16(offset, value);
    }
    fn deliver(&self, vector: VectorIndex) {
        (**self).deliver(vector);
    }
}

/// Where a structure of MSI-X lies in the function's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableLocation {
    /// Index of the base address register, 0 to 5 (6 and 7 are reserved).
    pub bar: u8,
    /// Bytes from the start of that BAR; a multiple of 8.
    pub offset: u32,
}

impl TableLocation {
    /// Takes a Table Offset/BIR or PBA Offset/BIR register apart.
    fn from_register(register: u32) -> Self {
        let [low, ..] = register.to_le_bytes();
        Self { bar: low & 7, offset: register & !7 }
    }
}

/// The MSI-X capability of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiXCapability {
    /// Byte offset of the capability in config space.
    pub offset: u16,
    /// Number of entries of the vector table, 1 to 2048.
    pub table_size: u16,
    /// The vector table: 16 bytes an entry.
    pub table: TableLocation,
    /// The pending bit array: 8 bytes for every 64 entries or part of them.
    pub pba: TableLocation,
}

const STATUS: u16 = 0x06;
const STATUS_CAPABILITY_LIST: u16 = 1 << 4;
const CAPABILITIES_POINTER: u16 = 0x34;
const CAPABILITY_ID_MSIX: u8 = 0x11;
const CAPABILITY_BYTES: u16 = 12;
/// The part of config space that holds the capability list.
const CONFIG_SPACE_BYTES: u16 = 256;
/// As many capabilities as fit between the header and the end of the 256-byte config space.
const CAPABILITIES_MAX: usize = 48;

pub(crate) const MESSAGE_CONTROL: u16 = 2;
const MESSAGE_CONTROL_TABLE_SIZE: u16 = 0x7ff;
pub(crate) const MESSAGE_CONTROL_FUNCTION_MASK: u16 = 1 << 14;
pub(crate) const MESSAGE_CONTROL_ENABLE: u16 = 1 << 15;
const TABLE_OFFSET: u16 = 4;
const PBA_OFFSET: u16 = 8;

impl MsiXCapability {
    /// Walks the function's capability list. `None` when it has no MSI-X.
    pub fn find(function: &impl PciFunction) -> Option<Self> {
        if function.read_config_u16(STATUS) & STATUS_CAPABILITY_LIST == 0 {
            return None;
        }
        let [mut next, _] = function.read_config_u16(CAPABILITIES_POINTER).to_le_bytes();
        for _ in 0..CAPABILITIES_MAX {
            let offset = u16::from(next & !3);
            if offset < 0x40 {
                return None;
            }
            if let Some(capability) = Self::read(function, offset) {
                return Some(capability);
            }
            let [_, following] = function.read_config_u16(offset).to_le_bytes();
            next = following;
        }
        None
    }

    /// Reads the capability at a byte offset of config space that is known. `None` when there is no MSI-X capability.
    pub fn read(function: &impl PciFunction, offset: u16) -> Option<Self> {
        if offset > CONFIG_SPACE_BYTES.saturating_sub(CAPABILITY_BYTES) {
            return None;
        }
        let [id, _] = function.read_config_u16(offset).to_le_bytes();
        if id != CAPABILITY_ID_MSIX {
            return None;
        }
        let register = |distance: u16| offset.checked_add(distance);
        let control = function.read_config_u16(register(MESSAGE_CONTROL)?);
        let table = function.read_config_u32(register(TABLE_OFFSET)?);
        let pba = function.read_config_u32(register(PBA_OFFSET)?);
        Some(Self {
            offset,
            table_size: (control & MESSAGE_CONTROL_TABLE_SIZE).saturating_add(1),
            table: TableLocation::from_register(table),
            pba: TableLocation::from_register(pba),
        })
    }
}
