//! A PCI function with MSI-X as the PCI specification has it, written anew: nothing here is taken from the software function of the product.
//!
//! A vector whose event comes while it is masked sets its pending bit; clearing
//! the mask bit emits the message. Events merge in the pending bit. A message
//! can be under way for a while (*in flight*); a new interrupt set-up, or
//! whoever waits for it, sees it arrive first.

use crate::VECTORS;

/// What an entry of the table holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Content {
    /// Zeros, as after a reset.
    #[default]
    Nothing,
    /// The host's message of a vector.
    Host(u8),
    /// Something else: a guest's doing. The interrupt remapping unit blocks it.
    Foreign,
}

/// An entry of the vector table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Address and data.
    pub content: Content,
    /// The mask bit.
    pub masked: bool,
}

impl Entry {
    const RESET: Self = Self { content: Content::Nothing, masked: true };
}

/// The state of the function.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hardware {
    /// The vector table.
    pub entries: [Entry; VECTORS],
    /// The pending bit array.
    pub pending: [bool; VECTORS],
    /// Messages that have left and have not arrived, and whether its vector was unmasked at some time since it left.
    pub in_flight: [Option<bool>; VECTORS],
    /// How many vectors the host has set up.
    pub set_up: u8,
    /// The function's own MSI-X Enable.
    pub enabled: bool,
    /// Memory Space Enable.
    pub decoding: bool,
    /// D0, not D3hot.
    pub full_power: bool,
    /// The base address register; 0 is what it holds after a reset.
    pub bar: u32,
}

/// What a write to configuration space does beyond changing bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Table and pending bits are as after power-on.
    TableLost,
}

const COMMAND: u64 = 0x04;
const BAR: u64 = 0x10;
const POINTER: u64 = 0x34;
const POWER_MANAGEMENT: u64 = 0x40;
const PCI_EXPRESS: u64 = 0x50;
const MSIX: u64 = 0x90;
/// Bytes of the BAR: a page of registers, a page with the table, a page with the pending bits.
pub const BAR_BYTES: u64 = 0x4000;
/// Where the table starts in the BAR.
pub const TABLE: u64 = 0x1000;
/// Where the pending bit array starts in the BAR.
pub const PENDING: u64 = 0x2000;

/// Configuration space offset of the power state.
pub const POWER: u64 = POWER_MANAGEMENT + 4;
/// Upper byte of PCI Express Device Control; bit 7 starts a function level reset.
pub const DEVICE_CONTROL: u64 = PCI_EXPRESS + 9;
/// Upper byte of MSI-X Message Control.
pub const MSIX_CONTROL: u64 = MSIX + 3;

impl Hardware {
    /// After power-on.
    pub const POWER_ON: Self = Self {
        entries: [Entry::RESET; VECTORS],
        pending: [false; VECTORS],
        in_flight: [None; VECTORS],
        set_up: 0,
        enabled: false,
        decoding: false,
        full_power: true,
        bar: 0,
    };

    /// Whether an access to the BAR is answered.
    pub fn answers(&self) -> bool {
        self.decoding && self.full_power
    }

    /// Whether a guest's access can reach the BAR.
    pub fn reachable(&self) -> bool {
        self.answers() && self.bar != 0
    }

    /// Whether an event of the vector would leave as a message now.
    pub fn would_emit(&self, vector: usize) -> bool {
        self.enabled && self.full_power && !self.entries[vector].masked
    }

    /// Function level reset, power-on, or a register of the function: all but the interrupt set-up.
    pub fn reset(&mut self) {
        self.entries = [Entry::RESET; VECTORS];
        self.pending = [false; VECTORS];
    }

    /// A byte of configuration space.
    pub fn config_byte(&self, at: u64) -> u8 {
        let [bar0, bar1, bar2, bar3] = self.bar.to_le_bytes();
        let vectors = u8::try_from(VECTORS - 1).unwrap_or(0);
        match at {
            0x06 => 0x10,
            COMMAND => u8::from(self.decoding) << 1,
            BAR => bar0,
            0x11 => bar1,
            0x12 => bar2,
            0x13 => bar3,
            POINTER => 0x40,
            POWER_MANAGEMENT => 0x01,
            0x41 => 0x50,
            0x42 => 0x03,
            POWER => {
                if self.full_power {
                    0
                } else {
                    3
                }
            }
            PCI_EXPRESS => 0x10,
            0x51 => 0x90,
            0x52 => 0x02,
            0x57 => 0x10,
            MSIX => 0x11,
            0x92 => vectors,
            MSIX_CONTROL => u8::from(self.enabled) << 7,
            0x95 => 0x10,
            0x99 => 0x20,
            _ => 0,
        }
    }

    /// Writes a byte of configuration space.
    pub fn config_write_byte(&mut self, at: u64, byte: u8) -> Effect {
        match at {
            COMMAND => self.decoding = byte & 2 != 0,
            // Only the bits above the BAR's size can be written.
            0x11 => self.bar = (self.bar & !0xff00) | u32::from(byte & 0xc0) << 8,
            0x12 => self.bar = (self.bar & !0x00ff_0000) | u32::from(byte) << 16,
            0x13 => self.bar = (self.bar & !0xff00_0000) | u32::from(byte) << 24,
            POWER => {
                let woke = !self.full_power && byte & 3 == 0;
                self.full_power = byte & 3 == 0;
                if woke {
                    return Effect::TableLost;
                }
            }
            DEVICE_CONTROL if byte & 0x80 != 0 => return Effect::TableLost,
            _ => {}
        }
        Effect::None
    }
}
