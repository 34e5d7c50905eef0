//! The seams on KVM: routes, memory slots, and on arm64 the filter of SMCCC calls.

mod routes;
#[cfg(target_arch = "aarch64")]
mod smccc;
mod window;

pub use routes::{KvmRoutes, KvmRoutesError};
#[cfg(target_arch = "aarch64")]
pub use smccc::SmcccFilter;
pub use window::{KvmWindow, MemorySlot, MemorySlots};
