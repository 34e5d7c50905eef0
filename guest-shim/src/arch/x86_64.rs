//! x86_64: CPUID, and an I/O port.

use core::ptr::NonNull;
use core::sync::atomic::{Ordering, fence};

use pvmsi_protocol::{BufferPage, Leaf, ServiceBlock};

use crate::{Doorbell, Offer};

/// What an offer is found by, beyond its block: nothing.
pub(crate) type Transport = ();

/// The doorbell that is the processor's own way into the host.
pub type NativeDoorbell = PortDoorbell;

/// Asks the processor whether the host offers the service.
///
/// Scans the CPUID hypervisor leaves (0x4000_0000 to 0x4000_ff00) for PV-MSI's
/// block; without a hypervisor, or under another one, that finds nothing and
/// has no effect.
pub fn discover() -> Option<Offer> {
    let block = ServiceBlock::find_by_cpuid(|leaf| {
        #[allow(unused_unsafe, reason = "newer compilers know it as safe")]
        // SAFETY: every x86_64 processor has CPUID, and any leaf may be asked for.
        let result = unsafe { core::arch::x86_64::__cpuid_count(leaf, 0) };
        Leaf { eax: result.eax, ebx: result.ebx, ecx: result.ecx, edx: result.edx }
    })?;
    Some(Offer { block, transport: () })
}

/// The port that the offer names.
///
/// # Safety
/// As [`PortDoorbell::new`].
pub(crate) unsafe fn native_doorbell(offer: &Offer) -> Option<NativeDoorbell> {
    // SAFETY: the caller's condition.
    offer.block.doorbell_port.map(|port| unsafe { PortDoorbell::new(port) })
}

/// A 32-bit write to an I/O port (x86).
#[derive(Debug)]
pub struct PortDoorbell {
    port: u16,
}

impl PortDoorbell {
    /// A doorbell at `port`, as [`ServiceBlock::doorbell_port`] gives it.
    ///
    /// # Safety
    /// 1. The host has a PV-MSI doorbell at `port`, or nothing that a write would disturb.
    /// 2. The code runs where the processor allows port I/O (privilege level 0).
    pub const unsafe fn new(port: u16) -> Self {
        Self { port }
    }
}

impl Doorbell for PortDoorbell {
    fn ring(&self, page: BufferPage) {
        // SAFETY: the conditions of `new`. Without `nomem` the compiler assumes that any memory
        // may have been read and written, which is what a doorbell does.
        unsafe {
            core::arch::asm!("out dx, eax", in("dx") self.port, in("eax") page.0, options(nostack, preserves_flags));
        }
    }
}

/// Stores to device memory, after every earlier access to memory.
///
/// # Safety
/// `register` is mapped, aligned to 4 bytes, and may be written.
pub(crate) unsafe fn store_u32(register: NonNull<u32>, value: u32) {
    fence(Ordering::Release);
    // SAFETY: the caller's condition.
    unsafe { register.write_volatile(value) }
}

/// Loads from device memory, before every later access to memory.
///
/// # Safety
/// `register` is mapped, aligned to 4 bytes, and may be read.
pub(crate) unsafe fn load_u32(register: NonNull<u32>) -> u32 {
    // SAFETY: the caller's condition.
    let value = unsafe { register.read_volatile() };
    fence(Ordering::Acquire);
    value
}
