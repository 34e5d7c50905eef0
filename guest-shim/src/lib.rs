//! Guest half of PV-MSI for kernels: discovery, the calls, and an MSI-X type that works with and without the service.
//!
//! No allocator, no `std`, no locks, no vector registers. Everything may be
//! used with interrupts off; only the repetition of a busy `configure` waits,
//! and that wait is bounded.
//!
//! | layer | for |
//! |---|---|
//! | [`discover`] | is the service there, and where is its doorbell |
//! | [`Doorbell`] | the one instruction that hands a call over |
//! | [`CallBuffer`] | the memory that carries calls |
//! | [`Client`] | one method per call of the protocol |
//! | [`MsiX`] | what a driver uses: enable, set, mask, unmask, disable, after reset |
//!
//! [`MsiX`] programs the vector table in the standard way where the host lacks
//! the service or refuses it, so a driver is written once.
//!
//! # Example
//!
//! A kernel implements [`PciFunction`] over its own PCI layer. The rest is the
//! same with and without the service:
//!
//! ```no_run
//! use core::ptr::NonNull;
//! use pvmsi_guest::{
//!     AnyDoorbell, CallBuffer, Client, FunctionId, GuestMessage, MsiX, MsiXCapability,
//!     MsiXError, PciFunction, VectorIndex, discover,
//! };
//!
//! struct Nvme;
//!
//! impl PciFunction for Nvme {
//!     fn id(&self) -> FunctionId { FunctionId::NONE }
//!     fn read_config_u16(&self, offset: u16) -> u16 { 0 /* … */ }
//!     fn read_config_u32(&self, offset: u16) -> u32 { 0 /* … */ }
//!     fn write_config_u16(&self, offset: u16, value: u16) { /* … */ }
//!     fn deliver(&self, vector: VectorIndex) { /* send this vector's interrupt to itself */ }
//! }
//!
//! fn start(
//!     page: NonNull<u8>,    // 64 KiB, contiguous, aligned to 4 KiB
//!     physical: u64,        // its guest physical address
//!     map_mmio: fn(u64) -> Option<NonNull<u32>>,
//!     map_bar: fn(u8, u32) -> Option<NonNull<u32>>,
//!     udelay: fn(u32),
//! ) -> Result<(), MsiXError> {
//!     // Once, at boot. `None` on hosts without the service. On arm64 discovery takes the
//!     // conduit that the platform names.
//!     # #[cfg(target_arch = "aarch64")]
//!     # let discover = || discover(pvmsi_guest::Conduit::Hvc);
//!     let mut client = discover().and_then(|offer| {
//!         // SAFETY: `map_mmio` maps device memory for good, and a kernel may use its
//!         // processor's way into the host.
//!         let doorbell = unsafe { AnyDoorbell::from_offer(&offer, map_mmio) }?;
//!         // SAFETY: the memory is ours alone from here on.
//!         let buffer = unsafe { CallBuffer::new(page, 65536, physical) }?;
//!         let mut client = Client::new(buffer, doorbell, udelay);
//!         client.negotiate().is_ok().then_some(client)
//!     });
//!
//!     // For each function. The kernel has switched memory decoding on.
//!     let Some(capability) = MsiXCapability::find(&Nvme) else { return Ok(()) };
//!     let Some(table) = map_bar(capability.table.bar, capability.table.offset) else {
//!         return Ok(());
//!     };
//!     // SAFETY: `table` is the whole vector table, mapped uncached, for good.
//!     let msix = unsafe { MsiX::new(Nvme, capability, table, None) };
//!     let granted = msix.enable(client.as_mut(), 2)?;
//!     for vector in (0..granted).map(VectorIndex) {
//!         let message = GuestMessage { address: 0xfee0_0000, data: 0x40 + u32::from(vector.0) };
//!         msix.set(client.as_mut(), vector, message)?;
//!         msix.unmask(vector)?;
//!     }
//!     // … and in the end:
//!     msix.disable();
//!     Ok(())
//! }
//! ```
#![cfg_attr(not(test), no_std)]

mod arch;
mod buffer;
mod capability;
mod client;
mod doorbell;
mod error;
mod msix;
mod table;
#[cfg(test)]
mod tests;
mod vector_bits;

#[cfg(target_arch = "x86_64")]
pub use arch::PortDoorbell;
#[cfg(target_arch = "aarch64")]
pub use arch::{Conduit, SmcccDoorbell};
pub use arch::{NativeDoorbell, discover};
pub use buffer::CallBuffer;
pub use capability::{MsiXCapability, PciFunction, TableLocation};
pub use client::{Client, Delay, Grant};
pub use doorbell::{AnyDoorbell, Doorbell, MmioDoorbell, Offer};
pub use error::MsiXError;
pub use msix::{MsiX, World};

pub use pvmsi_protocol::{
    BufferPage, Busy, CallError, Delivery, Features, FunctionId, Generation, GuestMessage, Kind,
    Limits, NegotiateAnswer, Parameter, ParameterError, QueryFunctionAnswer, Reasons,
    ReleaseAnswer, RestoreAnswer, ServiceBlock, TableMessage, TableMode, UpdateAnswer,
    VectorAnswer, VectorIndex, VectorSetup, VectorState, VectorUpdate, Version,
};
