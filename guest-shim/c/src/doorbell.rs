//! Doorbells as C describes them, and as the client rings them.

use core::ffi::c_void;
use core::ptr::NonNull;

use pvmsi_guest::{AnyDoorbell, BufferPage, Doorbell, MmioDoorbell};

use crate::arch;
use crate::status::pvmsi_status;

/// No doorbell.
pub const PVMSI_DOORBELL_NONE: u32 = 0;
/// A 32-bit write to an I/O port (x86_64). `number` is the port.
pub const PVMSI_DOORBELL_PORT: u32 = 1;
/// An SMCCC call (arm64). `number` is the conduit, PVMSI_CONDUIT_HVC or PVMSI_CONDUIT_SMC; the
/// code runs at EL1.
pub const PVMSI_DOORBELL_SMCCC: u32 = 2;
/// A 32-bit store to a device register, which the kernel has mapped uncached, on every processor,
/// for good. `pointer` is where; aligned to 4 bytes.
pub const PVMSI_DOORBELL_MMIO: u32 = 3;
/// A function of the kernel: `ring`, which gets `pointer`. For kernels that have their own way
/// into the host, and for tests.
pub const PVMSI_DOORBELL_CALLBACK: u32 = 4;

/// The instruction `HVC #0`.
pub const PVMSI_CONDUIT_HVC: u32 = 1;
/// The instruction `SMC #0`.
pub const PVMSI_CONDUIT_SMC: u32 = 2;

/// How a call buffer is handed over to the host.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct pvmsi_doorbell {
    /// PVMSI_DOORBELL_...
    pub kind: u32,
    /// The port or the conduit; not used by the other kinds.
    pub number: u32,
    /// The mapped register, or what `ring` shall be given; not used by the other kinds.
    pub pointer: *mut c_void,
    /// Hands the buffer with this page number over: when it returns, the host has answered, or
    /// there is none. Only for PVMSI_DOORBELL_CALLBACK. The client puts memory barriers around
    /// it.
    pub ring: Option<unsafe extern "C" fn(pointer: *mut c_void, page: u32)>,
}

/// What a client rings.
pub(crate) enum Bell {
    /// One of `pvmsi-guest`.
    Any(AnyDoorbell),
    /// The kernel's function.
    Callback { ring: unsafe extern "C" fn(*mut c_void, u32), pointer: *mut c_void },
}

impl Bell {
    /// # Safety
    /// The doorbell is what its kind says.
    pub(crate) unsafe fn new(doorbell: &pvmsi_doorbell) -> Result<Self, pvmsi_status> {
        match doorbell.kind {
            PVMSI_DOORBELL_MMIO => {
                let register = NonNull::new(doorbell.pointer.cast::<u32>())
                    .filter(|register| register.is_aligned())
                    .ok_or(pvmsi_status::Pointer)?;
                // SAFETY: the caller's condition.
                Ok(Self::Any(AnyDoorbell::Mmio(unsafe { MmioDoorbell::new(register) })))
            }
            PVMSI_DOORBELL_CALLBACK => Ok(Self::Callback {
                ring: doorbell.ring.ok_or(pvmsi_status::Pointer)?,
                pointer: doorbell.pointer,
            }),
            _ => {
                // SAFETY: the caller's condition.
                let native = unsafe { arch::native_doorbell(doorbell) };
                Ok(Self::Any(AnyDoorbell::Native(native.ok_or(pvmsi_status::Doorbell)?)))
            }
        }
    }
}

impl Doorbell for Bell {
    fn ring(&self, page: BufferPage) {
        match self {
            Self::Any(doorbell) => doorbell.ring(page),
            // SAFETY: condition 3 of the crate; the kernel gets the pointer that it gave.
            Self::Callback { ring, pointer } => unsafe { ring(*pointer, page.0) },
        }
    }
}
