//! The doorbell, as discovery has named it.

use pvmsi_guest_runtime::mmio::Register;
use pvmsi_protocol::ServiceBlock;

use crate::arch::{self, Platform};

/// How the host is called.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Doorbell {
    /// As the architecture has it: a port, or an SMCCC call.
    Native(arch::Native),
    /// A register.
    Mmio(usize),
}

impl Doorbell {
    /// What a block, or the platform's description of the machine, names. Without one it is what the reference machine would have.
    pub(crate) fn find(platform: Platform, block: Option<&ServiceBlock>) -> Self {
        let register = block
            .and_then(|block| block.doorbell_address)
            .or(arch::described_register(platform))
            .and_then(|address| usize::try_from(address).ok());
        match (arch::Native::find(platform, block), register) {
            (Some(native), _) => Self::Native(native),
            (None, Some(register)) => Self::Mmio(register),
            (None, None) => Self::Native(arch::Native::of_the_reference_machine(platform)),
        }
    }

    /// A write of one, two, four or eight bytes; nothing where the machine has no instruction for that.
    pub(crate) fn write(self, data: &[u8]) {
        match self {
            Self::Native(native) => native.write(data),
            Self::Mmio(address) => match *data {
                // SAFETY: the machine has a register there, and says so.
                [a] => unsafe { Register::<u8>::at(address) }.write(a),
                [a, b] => {
                    // SAFETY: as above; aligned for 8 bytes.
                    unsafe { Register::<u16>::at(address) }.write(u16::from_le_bytes([a, b]));
                }
                [a, b, c, d] => {
                    let value = u32::from_le_bytes([a, b, c, d]);
                    // SAFETY: as above.
                    unsafe { Register::<u32>::at(address) }.write(value);
                }
                [a, b, c, d, e, f, g, h] => {
                    let value = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
                    // SAFETY: as above.
                    unsafe { Register::<u64>::at(address) }.write(value);
                }
                _ => {}
            },
        }
    }

    /// A read; nothing is done with what comes.
    pub(crate) fn read(self, width: usize) {
        match self {
            Self::Native(native) => native.read(width),
            Self::Mmio(address) => match width {
                // SAFETY: the machine has a register there, and says so.
                1 => drop(unsafe { Register::<u8>::at(address) }.read()),
                // SAFETY: as above; aligned for 8 bytes.
                2 => drop(unsafe { Register::<u16>::at(address) }.read()),
                // SAFETY: as above.
                4 => drop(unsafe { Register::<u32>::at(address) }.read()),
                // SAFETY: as above.
                8 => drop(unsafe { Register::<u64>::at(address) }.read()),
                _ => {}
            },
        }
    }
}
