//! The registers of configuration space that the service watches, found once at attach.
//!
//! Source: PCI Express Base Specification, "PCI-Compatible Configuration Registers" and the capability structures.

use std::ops::Range;

use thiserror::Error;

use crate::capability_list::{Capability, MSI, MSIX, walk};
use crate::function::PciFunction;

/// Bytes of configuration space, the extended part included.
pub(crate) const CONFIG_BYTES: u64 = 4096;
/// Command register.
pub(crate) const COMMAND: Range<u64> = 0x04..0x06;
/// Memory Space Enable.
pub(crate) const COMMAND_MEMORY: u16 = 1 << 1;
/// The six base address registers.
pub(crate) const BARS: Range<u64> = 0x10..0x28;

const POWER_MANAGEMENT: u8 = 0x01;
const PCI_EXPRESS: u8 = 0x10;
const ADVANCED_FEATURES: u8 = 0x13;

/// Function Level Reset Capability, in PCI Express Device Capabilities.
const EXPRESS_FLR: u32 = 1 << 28;
/// FLR Capability, in Advanced Features Capabilities.
const ADVANCED_FLR: u8 = 1 << 1;

/// MSI-X Enable, in the upper byte of Message Control.
pub(crate) const MSIX_ENABLE: u8 = 1 << 7;
/// Function Mask, in the upper byte of Message Control.
pub(crate) const MSIX_FUNCTION_MASK: u8 = 1 << 6;

/// The function cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the function has no MSI-X capability; PV-MSI has nothing to do for it")]
pub struct NoMsix;

/// Where the watched registers are.
#[derive(Clone, Debug)]
pub(crate) struct Registers {
    /// Upper byte of MSI-X Message Control: the only one with writable bits.
    pub(crate) msix_control: u64,
    /// Power Management Control/Status.
    pub(crate) power: Option<Range<u64>>,
    /// Upper byte of PCI Express Device Control: Initiate Function Level Reset is bit 7. None where the function says that it has no such reset: the bit then does nothing.
    pub(crate) device_control: Option<u64>,
    /// Advanced Features Control: Initiate FLR is bit 0. None as above.
    pub(crate) advanced_control: Option<u64>,
    /// The byte that links to the MSI capability, and what it shall read as instead. The service has no way for
    /// interrupts by MSI, so no guest finds it, with policy off neither (H-507).
    pub(crate) msi_unlinked: Option<(u64, u8)>,
}

impl Registers {
    pub(crate) fn find(function: &mut dyn PciFunction) -> Result<Self, NoMsix> {
        let mut found = Self {
            msix_control: 0,
            power: None,
            device_control: None,
            advanced_control: None,
            msi_unlinked: None,
        };
        for Capability { id, at, link } in walk(|at| byte(function, at)) {
            match id {
                POWER_MANAGEMENT => {
                    let start = at.saturating_add(4);
                    found.power = Some(start..start.saturating_add(2));
                }
                PCI_EXPRESS => {
                    let capabilities = double_word(function, at.saturating_add(4));
                    let resets = capabilities & EXPRESS_FLR != 0;
                    found.device_control = resets.then_some(at.saturating_add(9));
                }
                ADVANCED_FEATURES => {
                    let resets = byte(function, at.saturating_add(3)) & ADVANCED_FLR != 0;
                    found.advanced_control = resets.then_some(at.saturating_add(4));
                }
                MSIX => found.msix_control = at.saturating_add(3),
                MSI => {
                    let next = byte(function, at.saturating_add(1));
                    found.msi_unlinked = Some((link, next));
                }
                _ => {}
            }
        }
        if found.msix_control == 0 { Err(NoMsix) } else { Ok(found) }
    }
}

pub(crate) fn byte(function: &mut dyn PciFunction, offset: u64) -> u8 {
    let mut data = [0xff];
    function.config_read(offset, &mut data);
    let [byte] = data;
    byte
}

pub(crate) fn word(function: &mut dyn PciFunction, offset: u64) -> u16 {
    let mut data = [0xff; 2];
    function.config_read(offset, &mut data);
    u16::from_le_bytes(data)
}

pub(crate) fn double_word(function: &mut dyn PciFunction, offset: u64) -> u32 {
    let mut data = [0xff; 4];
    function.config_read(offset, &mut data);
    u32::from_le_bytes(data)
}
