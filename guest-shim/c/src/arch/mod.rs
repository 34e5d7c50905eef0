//! What differs between processors: how the service is discovered, and the doorbell that is no
//! register.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub use aarch64::pvmsi_discover;
#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::{native_doorbell, pick_doorbell};
#[cfg(target_arch = "x86_64")]
pub use x86_64::pvmsi_discover;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{native_doorbell, pick_doorbell};
