//! The host service of PV-MSI, to embed in a VMM.
//!
//! A guest asks with one call for the interrupts of a passed-through PCI
//! function; the service programs the hypervisor's routes and the function's
//! interrupts in one go, and then takes the trap off the function's vector
//! table. From then on masking a vector, and touching the registers beside the
//! table, cost no exit.
//!
//! ```text
//!              trapped                              direct
//!   guest ──exit──▶ Service ─┐            guest ──────────────┐ no exit
//!                            ▼                                ▼
//!   function's table ◀── host kernel      function's table ◀──┘
//! ```
//!
//! A VMM creates a [`Service`] with its [`Routes`], adds functions, each a
//! [`PciFunction`] with a [`Window`] into the guest's memory map, and calls the
//! service from five places: the doorbell, an access to a function's BAR that
//! exited, a configuration space write, a function reset, a machine reset.
//! The service has no threads, no global state, and no opinion on event loops.
//!
//! | seam | what it is for | implementations |
//! |---|---|---|
//! | [`Routes`] | the hypervisor's interrupt routes | [`KvmRoutes`] |
//! | [`PciFunction`] | the function | [`VfioFunction`]; `SoftwareFunction` of `pvmsi-software` |
//! | [`Window`] | the guest's memory map | [`KvmWindow`] |
//!
//! The implementations for KVM and for VFIO are the features `kvm` and `vfio`, both on by
//! default. A VMM that brings its own goes without either.
//!
//! A VM that is stopped, saved and continued elsewhere takes the service's state
//! along: [`ServiceState`].

mod bar_pages;
mod capability;
mod capability_list;
mod counters;
mod event;
mod function;
#[cfg(feature = "kvm")]
mod kvm;
mod layout;
#[cfg(feature = "model")]
pub mod model;
mod page_size;
mod platform;
mod policy;
mod rate_limit;
mod routes;
mod save;
mod service;
mod switch;
mod sync;
#[cfg(feature = "vfio")]
mod vfio;
mod window;

pub use bar_pages::BarPages;
pub use capability::NoMsix;
pub use counters::Counters;
pub use function::{BarMapping, Isolation, PciFunction, TooFewInterrupts};
#[cfg(all(feature = "kvm", target_arch = "aarch64"))]
pub use kvm::SmcccFilter;
#[cfg(feature = "kvm")]
pub use kvm::{KvmRoutes, KvmWindow, MemorySlot, MemorySlots};
pub use layout::{Bar, BarIndex, ENTRY_BYTES, Layout, LayoutError, Target};
pub use page_size::host_page_size;
pub use platform::Platform;
pub use policy::{FunctionPolicy, Policy};
pub use routes::{Gsi, Route, RouteChange, Routes, RoutesError};
pub use save::{RestoreError, Saved, ServiceState, StateVersion, Versioned};
pub use service::{AddFunctionError, DoorbellError, FunctionStatus, Service, ServiceConfig};
#[cfg(feature = "vfio")]
pub use vfio::{UnsafeInterrupts, VfioBackend, VfioError, VfioFunction, VfioHost, host_isolation};
pub use window::{View, Window};
