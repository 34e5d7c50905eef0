//! arm64: the SMC Calling Convention, by HVC or SMC.

use core::arch::asm;
use core::ptr::NonNull;

use pvmsi_protocol::{BufferPage, SMCCC_CALL, SMCCC_DISCOVER, ServiceBlock};

use crate::{Doorbell, Offer};

/// What an offer is found by, beyond its block.
pub(crate) type Transport = Conduit;

/// The doorbell that is the processor's own way into the host.
pub type NativeDoorbell = SmcccDoorbell;

/// The instruction that calls the host. The platform names it: the `method` of the device tree's
/// `psci` node, or the PSCI flags of ACPI's FADT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// `HVC #0`.
    Hvc,
    /// `SMC #0`.
    Smc,
}

impl Conduit {
    /// Makes a call with X1 = `argument`; returns X0 to X3.
    fn call(self, function: u32, argument: u64) -> [u64; 4] {
        let mut arguments = [0; 17];
        let [first, ..] = &mut arguments;
        *first = argument;
        let [x0, x1, x2, x3, ..] = match self {
            Self::Hvc => smccc::hvc64(function, arguments),
            Self::Smc => smccc::smc64(function, arguments),
        };
        [x0, x1, x2, x3]
    }
}

/// Asks the host whether it offers the service, by an SMCCC call.
///
/// `conduit` must be the one that the platform names: under a firmware or
/// hypervisor that follows the convention a call that it does not know answers
/// *not supported* and has no effect; without one, the instruction is
/// undefined.
pub fn discover(conduit: Conduit) -> Option<Offer> {
    let block = ServiceBlock::find_by_smccc(|leaf| conduit.call(SMCCC_DISCOVER, leaf))?;
    Some(Offer { block, transport: conduit })
}

impl Offer {
    /// The conduit by which the offer was found.
    pub const fn conduit(&self) -> Conduit {
        self.transport
    }
}

/// The conduit by which the offer was found: it rings, too.
///
/// # Safety
/// As [`SmcccDoorbell::new`].
pub(crate) unsafe fn native_doorbell(offer: &Offer) -> Option<NativeDoorbell> {
    // SAFETY: the caller's condition.
    Some(unsafe { SmcccDoorbell::new(offer.transport) })
}

/// An SMCCC call (arm64).
#[derive(Debug)]
pub struct SmcccDoorbell {
    conduit: Conduit,
}

impl SmcccDoorbell {
    /// A doorbell by a conduit.
    ///
    /// # Safety
    /// 1. The platform names this conduit, and whoever answers it follows the SMC Calling Convention.
    /// 2. The code runs at EL1, where the instruction is defined.
    pub const unsafe fn new(conduit: Conduit) -> Self {
        Self { conduit }
    }
}

impl Doorbell for SmcccDoorbell {
    fn ring(&self, page: BufferPage) {
        // The answer stands in the buffer; a host that does not know the call leaves the sentinel.
        self.conduit.call(SMCCC_CALL, u64::from(page.0));
    }
}

// A trapped access is emulated by what the processor says of the instruction, and it says nothing
// of those that also move the address or load two registers. A volatile access may become one.

/// Stores to device memory, after every earlier access to memory.
///
/// # Safety
/// `register` is mapped, aligned to 4 bytes, and may be written.
pub(crate) unsafe fn store_u32(register: NonNull<u32>, value: u32) {
    // SAFETY: the caller's condition. Not `nomem`: the compiler must keep the order, too.
    unsafe {
        asm!(
            "dmb osh",
            "str {value:w}, [{register}]",
            value = in(reg) value,
            register = in(reg) register.as_ptr(),
            options(nostack, preserves_flags)
        );
    }
}

/// Loads from device memory, before every later access to memory.
///
/// # Safety
/// `register` is mapped, aligned to 4 bytes, and may be read.
pub(crate) unsafe fn load_u32(register: NonNull<u32>) -> u32 {
    let value;
    // SAFETY: as above.
    unsafe {
        asm!(
            "ldr {value:w}, [{register}]",
            "dmb oshld",
            value = out(reg) value,
            register = in(reg) register.as_ptr(),
            options(nostack, preserves_flags)
        );
    }
    value
}
