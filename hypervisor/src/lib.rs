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
//! A VMM creates a [`Service`] with its [`Routes`] and adds functions, each a
//! [`PciFunction`] with a [`Window`] into the guest's memory map. It calls from five
//! places: the [`Service`] for the doorbell and a machine reset, the function's
//! [`FunctionHandle`] for an access to its BARs that exited, an access to its
//! configuration space, and a function reset. The handle is a device for the VMM's
//! own buses; where it has none, a [`Router`] finds the function by the address.
//! The service has no threads, no global state, and no opinion on event loops.
//!
//! | seam | what it is for | implementations |
//! |---|---|---|
//! | [`Routes`] | the hypervisor's interrupt routes | [`KvmRoutes`] |
//! | [`PciFunction`] | the function | [`VfioFunction`]; `SoftwareFunction` of `pvmsi-software` |
//! | [`VectorTable`] | its vector table and pending bits, by words | [`MappedTable`] |
//! | [`Window`] | the guest's memory map | [`KvmWindow`] |
//!
//! A VMM that places BARs takes their sizes from [`PciFunction::layout`], not from VFIO: one that is smaller than a
//! page of the host is as large as the page there, where the page is the BAR's own. Reads of configuration
//! space that go through the handle agree with that.
//!
//! The implementations for KVM and for VFIO are the features `kvm` and `vfio`, both on by
//! default. A VMM that brings its own goes without either.
//!
//! A VM that is stopped, saved and continued elsewhere takes the service's state
//! along: [`ServiceState`]. A VMM that wants to know when a table changes hands
//! gives the service an observer: [`Service::on_change`].
//!
//! A function can lose its table without a word to the service: by an error, or while the host sleeps.
//! The VMM is told of the first by [`VfioFunction::watch_errors`], and finds the second out with
//! [`SleepWatch`]; it answers with [`FunctionHandle::freeze`] and [`FunctionHandle::repair`].
//!
//! # Locks, re-entry, blocking
//!
//! Each function has a lock, held while a call, an access or a [`FunctionHandle`]'s
//! method works on it; no lock is held over two functions, and none when the service
//! returns or calls an observer. [`Routes`], [`Window`], [`VectorTable`] and
//! [`PciFunction`] are called with it held, so a VMM's own locks come after it: who
//! holds one that a seam takes must not call the service. A seam that asks for the
//! function that it is called for gets [`FunctionError::Reentered`]; if it asks for
//! another's, it must do so in one direction only.
//!
//! Every call waits for what another thread does with the same function; one that
//! changes routes or slots also for another function's that does, since [`KvmRoutes`]
//! and [`MemorySlots`] have a lock for the whole VM. Beyond that it waits for the
//! host's kernel alone:
//!
//! | waits for | how long | in |
//! |---|---|---|
//! | the routing table (`KVM_SET_GSI_ROUTING`) | a grace period of the kernel, up to 100 ms | `configure`, `update`; a write that sets MSI-X Enable or clears Function Mask; an unmask of a trapped vector whose message is new, and a new message for one that is unmasked; [`Service::restore`], [`Service::resume`] |
//! | what an irqfd has under way (`KVM_IRQFD`) | short | whatever masks a vector of a trapped table, or takes vectors down |
//! | the interrupt set-up (`VFIO_DEVICE_SET_IRQS`) | grows with the vectors | `configure`, `release`; a write that changes MSI-X Enable; the first unmask of a vector of an emulated table; the call `restore`, and a write that clears Function Mask, after a reset that nobody has seen; resets, waking up, [`Service::restore`] and [`Service::resume`]; removal |
//! | handlers that are under way (`membarrier`) | a grace period, up to four on x86 where mask bits are set; 20 ms more each where they are threads | `configure` and some `update`s; whatever hands a table over or takes it back; [`Service::save`] |
//! | memory slots (`KVM_SET_USER_MEMORY_REGION`) | a grace period for each that goes | whatever changes the table's mode, a BAR, decoding or the power state; [`FunctionHandle::freeze`], [`FunctionHandle::repair`]; [`Service::add_function`] |
//! | a reset of the function | its own time, 100 ms and more | a function level reset, [`FunctionHandle::reset`], [`Service::reset`] |
//!
//! What the kernel has refused the next operation on the function tries again, whichever
//! it is, and waits for it then. [`ServiceConfig::vectors_per_call`] bounds how many events
//! one `configure` prepares. Reads wait for the lock alone.

#![warn(missing_debug_implementations)]

mod bar_pages;
mod capability;
mod capability_list;
mod counters;
mod entry;
mod event;
mod function;
mod handle;
#[cfg(feature = "kvm")]
mod kvm;
mod layout;
#[cfg(feature = "model")]
pub mod model;
mod page_size;
mod platform;
mod policy;
mod rate_limit;
mod router;
mod routes;
mod save;
mod service;
mod sleep;
mod switch;
mod sync;
mod vector_table;
#[cfg(feature = "vfio")]
mod vfio;
mod window;

// Whose types appear in signatures, in the versions that these are of.
#[cfg(feature = "vfio")]
pub use vfio_ioctls;
#[cfg(any(feature = "kvm", feature = "vfio"))]
pub use {kvm_bindings, kvm_ioctls};
pub use {pvmsi_protocol, vm_memory, vmm_sys_util};

pub use bar_pages::BarPages;
pub use capability::NoMsix;
pub use capability_list::has_msi;
pub use counters::Counters;
pub use entry::{FunctionError, ModeChange};
pub use function::{BarMapping, Isolation, PciFunction, SetUpError};
pub use handle::{FunctionHandle, FunctionStatus};
#[cfg(all(feature = "kvm", target_arch = "aarch64"))]
pub use kvm::SmcccFilter;
#[cfg(feature = "kvm")]
pub use kvm::{KvmRoutes, KvmRoutesError, KvmWindow, MemorySlot, MemorySlots};
pub use layout::{
    Bar, BarIndex, ENTRY_BYTES, Layout, LayoutError, NotMappable, PendingBits, Target,
};
pub use page_size::host_page_size;
pub use platform::Platform;
pub use policy::{FunctionPolicy, Policy};
pub use router::Router;
pub use routes::{Gsi, Route, RouteChange, Routes, RoutesError};
pub use save::{RestoreError, Saved, ServiceState, StateVersion, Versioned};
pub use service::{AddFunctionError, DoorbellError, NotAdded, Service, ServiceConfig};
pub use sleep::SleepWatch;
pub use vector_table::{MappedTable, TableError, VectorTable};
#[cfg(feature = "vfio")]
pub use vfio::{
    HostInterrupt, HostPaths, Irqbalance, MOVES_WRITE_MASKS, NoIommu, PinnedInterrupts, Remapping,
    VfioBackend, VfioError, VfioFunction, VfioHost, behind_iommu, function_interrupts,
    function_isolation, host_isolation, interrupt_remapping,
};
pub use window::{View, Window};
