//! The one store that hands a call buffer over to the host.

use core::ptr::NonNull;

use pvmsi_protocol::{BufferPage, CpuidBlock};

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

/// A 32-bit write to an I/O port (x86).
#[cfg(target_arch = "x86_64")]
#[derive(Debug)]
pub struct PortDoorbell {
    port: u16,
}

#[cfg(target_arch = "x86_64")]
impl PortDoorbell {
    /// A doorbell at `port`, as [`CpuidBlock::doorbell_port`] gives it.
    ///
    /// # Safety
    /// 1. The host has a PV-MSI doorbell at `port`, or nothing that a write would disturb.
    /// 2. The code runs where the processor allows port I/O (privilege level 0).
    pub const unsafe fn new(port: u16) -> Self {
        Self { port }
    }
}

#[cfg(target_arch = "x86_64")]
impl Doorbell for PortDoorbell {
    fn ring(&self, page: BufferPage) {
        // SAFETY: the conditions of `new`.
        unsafe { arch::write_port_u32(self.port, page.0) }
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
    /// A doorbell at `register`, where the kernel has mapped [`CpuidBlock::doorbell_address`].
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

/// Whichever doorbell the host offers.
#[derive(Debug)]
pub enum AnyDoorbell {
    /// An I/O port.
    #[cfg(target_arch = "x86_64")]
    Port(PortDoorbell),
    /// A device register.
    Mmio(MmioDoorbell),
}

impl AnyDoorbell {
    /// Picks the doorbell that `block` names: the port where there is one and the processor has
    /// ports, else the register.
    ///
    /// `map` maps four bytes of device memory at a guest physical address; it is called only when
    /// the register is used. `None` when the block names no usable doorbell, or `map` fails.
    ///
    /// # Safety
    /// 1. `block` comes from [`discover`](crate::discover), or from the platform's own description of the host.
    /// 2. What `map` returns meets condition 1 of [`MmioDoorbell::new`].
    /// 3. The code runs where the processor allows port I/O (x86).
    pub unsafe fn from_block(
        block: &CpuidBlock,
        map: impl FnOnce(u64) -> Option<NonNull<u32>>,
    ) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if let Some(port) = block.doorbell_port {
            // SAFETY: conditions 1 and 3: the host says that its doorbell is there.
            return Some(Self::Port(unsafe { PortDoorbell::new(port) }));
        }
        let register = map(block.doorbell_address?)?;
        // SAFETY: conditions 1 and 2.
        Some(Self::Mmio(unsafe { MmioDoorbell::new(register) }))
    }
}

impl Doorbell for AnyDoorbell {
    fn ring(&self, page: BufferPage) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Port(doorbell) => doorbell.ring(page),
            Self::Mmio(doorbell) => doorbell.ring(page),
        }
    }
}
