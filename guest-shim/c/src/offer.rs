//! What a host offers before the first call.

use core::mem::MaybeUninit;

use pvmsi_guest::{Offer, ServiceBlock};

use crate::arch;
use crate::doorbell::{PVMSI_DOORBELL_MMIO, PVMSI_DOORBELL_NONE, pvmsi_doorbell};
use crate::status::pvmsi_status;

/// The host may make tables direct.
pub const PVMSI_FEATURE_DIRECT: u32 = 1 << 0;
/// The host takes MSI as well as MSI-X.
pub const PVMSI_FEATURE_MSI: u32 = 1 << 1;
/// Messages may carry extended destination ids (x86: 15 bits).
pub const PVMSI_FEATURE_EXTENDED_DESTINATION_ID: u32 = 1 << 2;

/// That the host offers the service, and where its doorbell is.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct pvmsi_offer {
    /// The highest version that the host speaks, major.
    pub version_major: u16,
    /// The same, minor.
    pub version_minor: u16,
    /// What the host offers: PVMSI_FEATURE_...
    pub features: u32,
    /// The largest call buffer in bytes.
    pub buffer_bytes: u32,
    /// The most vectors of one function.
    pub vectors: u16,
    /// The I/O port of the doorbell; 0 when there is none.
    pub doorbell_port: u16,
    /// The guest physical address of the doorbell register; 0 when there is none.
    pub doorbell_address: u64,
    /// The doorbell to give to pvmsi_client_init: the processor's own way into the host where
    /// there is one. Else its kind is PVMSI_DOORBELL_MMIO and its `pointer` NULL: the kernel maps
    /// 4 bytes at `doorbell_address` as device memory, and stores the pointer there.
    pub doorbell: pvmsi_doorbell,
}

/// Writes an offer, if there is one.
pub(crate) fn answer(
    output: &mut MaybeUninit<pvmsi_offer>,
    offer: Option<Offer>,
) -> Result<(), pvmsi_status> {
    let offer = offer.ok_or(pvmsi_status::NotSupported)?;
    let ServiceBlock { version, features, doorbell_port, doorbell_address, limits } = offer.block;
    let (kind, number) = match (arch::pick_doorbell(&offer), doorbell_address) {
        (Some(native), _) => native,
        (None, Some(_)) => (PVMSI_DOORBELL_MMIO, 0),
        (None, None) => (PVMSI_DOORBELL_NONE, 0),
    };
    output.write(pvmsi_offer {
        version_major: version.major,
        version_minor: version.minor,
        features: features.bits(),
        buffer_bytes: limits.buffer_bytes,
        vectors: limits.vectors,
        doorbell_port: doorbell_port.unwrap_or(0),
        doorbell_address: doorbell_address.unwrap_or(0),
        doorbell: pvmsi_doorbell { kind, number, pointer: core::ptr::null_mut(), ring: None },
    });
    Ok(())
}
