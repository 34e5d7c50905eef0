//! Functions on segment 0, bus 0, and their configuration space.

use pvmsi_protocol::FunctionId;

use crate::arch::config;

const VENDOR: u16 = 0x00;
const COMMAND: u16 = 0x04;
const STATUS: u16 = 0x06;
const CLASS: u16 = 0x08;
const HEADER_TYPE: u16 = 0x0e;
const BAR0: u16 = 0x10;
const CAPABILITIES: u16 = 0x34;

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const MULTI_FUNCTION: u8 = 1 << 7;

/// The capability id of MSI-X.
pub const CAPABILITY_MSIX: u8 = 0x11;

/// A function on bus 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    device: u8,
    function: u8,
}

/// All functions on bus 0.
pub fn functions() -> impl Iterator<Item = Function> {
    (0..32).flat_map(|device| {
        let first = Function { device, function: 0 };
        let functions = match first.exists() {
            false => 0,
            true if first.read_u8(HEADER_TYPE) & MULTI_FUNCTION != 0 => 8,
            true => 1,
        };
        (0..functions)
            .map(move |function| Function { device, function })
            .filter(|function| function.exists())
    })
}

impl Function {
    fn exists(self) -> bool {
        self.read_u16(VENDOR) != 0xffff
    }

    /// Device (5 bits) and function (3 bits): with bus 0, also the requester id of what it writes.
    pub(crate) fn requester_id(self) -> u8 {
        self.device << 3 | self.function & 7
    }

    /// How PV-MSI names it.
    pub fn id(self) -> FunctionId {
        FunctionId::new(0, 0, self.device, self.function).unwrap_or(FunctionId::NONE)
    }

    /// Vendor and device id.
    pub fn vendor_device(self) -> (u16, u16) {
        (self.read_u16(VENDOR), self.read_u16(VENDOR | 2))
    }

    /// Class, subclass and programming interface, as 0xCCSSPP.
    pub fn class(self) -> u32 {
        self.read_u32(CLASS) >> 8
    }

    /// Switches memory decoding and bus mastering on.
    pub fn enable(self) {
        let command = self.read_u16(COMMAND);
        self.write_u16(COMMAND, command | COMMAND_MEMORY | COMMAND_BUS_MASTER);
    }

    /// The guest physical address of a memory BAR; `None` when it is not one, or lies above 4 GiB, out of reach.
    pub fn bar(self, index: u8) -> Option<usize> {
        let register = BAR0.checked_add(u16::from(index.min(6)).checked_mul(4)?)?;
        let low = if index < 6 { self.read_u32(register) } else { return None };
        let high = match low & 0b111 {
            0b000 => 0,
            0b100 if index < 5 => self.read_u32(register.checked_add(4)?),
            _ => return None,
        };
        let address = usize::try_from(low & !0xf).ok()?;
        (high == 0 && address != 0).then_some(address)
    }

    /// The offset of the first capability with this id.
    pub fn capability(self, id: u8) -> Option<u16> {
        if self.read_u16(STATUS) & STATUS_CAPABILITIES == 0 {
            return None;
        }
        let mut next = self.read_u8(CAPABILITIES);
        for _ in 0..48 {
            let offset = u16::from(next & !3);
            if offset < 0x40 {
                return None;
            }
            let [found, following] = self.read_u16(offset).to_le_bytes();
            if found == id {
                return Some(offset);
            }
            next = following;
        }
        None
    }

    /// Reads 8 bits of config space.
    pub fn read_u8(self, offset: u16) -> u8 {
        config::read(self, offset)
    }

    /// Reads 16 bits of config space; `offset` is even.
    pub fn read_u16(self, offset: u16) -> u16 {
        config::read(self, offset)
    }

    /// Reads 32 bits of config space; `offset` is a multiple of 4.
    pub fn read_u32(self, offset: u16) -> u32 {
        config::read(self, offset)
    }

    /// Writes 8 bits of config space.
    pub fn write_u8(self, offset: u16, value: u8) {
        config::write(self, offset, value);
    }

    /// Writes 16 bits of config space; `offset` is even.
    pub fn write_u16(self, offset: u16, value: u16) {
        config::write(self, offset, value);
    }

    /// Writes 32 bits of config space; `offset` is a multiple of 4.
    pub fn write_u32(self, offset: u16, value: u32) {
        config::write(self, offset, value);
    }
}
