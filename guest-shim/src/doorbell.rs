//! The one store that hands a call buffer over to the host.

use core::ptr::NonNull;

use pvmsi_protocol::{BufferPage, ServiceBlock};

use crate::arch;

/// Hands a call buffer over. When it returns, the host has answered, or there is none.
///
/// [`Client`](crate::Client) puts full memory barriers around it; an implementation needs none.
pub trait Doorbell {
    /// Rings with the page number of a call buffer.
    fn ring(&self, page: BufferPage);
}

impl<D: Doorbell + ?Sized> Doorbell for &D {
    fn ring(&self, page: BufferPage) {
        (**self).ring(page);
    }
}

/// A 32-bit store to a device register.
#[derive(Debug)]
pub struct MmioDoorbell {
    register: NonNull<u32>,
}

// SAFETY: the register has no state that a thread could own; stores from any processor are as good as any other (condition 1 of `new`).
unsafe impl Send for MmioDoorbell {}
// SAFETY: as above; `ring` only stores.
unsafe impl Sync for MmioDoorbell {}

impl MmioDoorbell {
    /// A doorbell at `register`, where the kernel has mapped [`ServiceBlock::doorbell_address`].
    ///
    /// # Safety
    /// 1. `register` is aligned to 4 bytes and mapped as device memory (uncached) on every processor for as long as the doorbell exists.
    /// 2. The host has a PV-MSI doorbell there, or nothing that a store would disturb.
    pub const unsafe fn new(register: NonNull<u32>) -> Self {
        Self { register }
    }
}

impl Doorbell for MmioDoorbell {
    fn ring(&self, page: BufferPage) {
        // SAFETY: the conditions of `new`.
        unsafe { arch::write_device_u32(self.register, page.0) }
    }
}

/// That the host offers the service, and how it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// What the host says of its service.
    pub block: ServiceBlock,
    pub(crate) transport: arch::Transport,
}

/// Whichever doorbell the host offers.
#[derive(Debug)]
pub enum AnyDoorbell {
    /// The processor's own way into the host: an I/O port (x86), an SMCCC call (arm64).
    Native(arch::NativeDoorbell),
    /// A device register.
    Mmio(MmioDoorbell),
}

impl AnyDoorbell {
    /// Picks the doorbell: the processor's own way into the host (x86: the port that the block
    /// names, where it names one; arm64: the conduit that found the offer), else the register.
    ///
    /// `map` maps four bytes of device memory at a guest physical address; it is called only when
    /// the register is used. `None` when the offer has no usable doorbell, or `map` fails.
    ///
    /// # Safety
    /// 1. What `map` returns meets condition 1 of [`MmioDoorbell::new`].
    /// 2. The code runs where the processor allows port I/O (x86), or at EL1 (arm64).
    pub unsafe fn from_offer(
        offer: &Offer,
        map: impl FnOnce(u64) -> Option<NonNull<u32>>,
    ) -> Option<Self> {
        // SAFETY: condition 2; the host says that its doorbell is there.
        if let Some(doorbell) = unsafe { arch::native_doorbell(offer) } {
            return Some(Self::Native(doorbell));
        }
        let register = map(offer.block.doorbell_address?)?;
        // SAFETY: condition 1; the host says that its doorbell is there.
        Some(Self::Mmio(unsafe { MmioDoorbell::new(register) }))
    }
}

impl Doorbell for AnyDoorbell {
    fn ring(&self, page: BufferPage) {
        match self {
            Self::Native(doorbell) => doorbell.ring(page),
            Self::Mmio(doorbell) => doorbell.ring(page),
        }
    }
}
