//! The *routes* seam: where messages of a function become interrupts of the guest.
//!
//! One implementation serves all functions of a VM, since the hypervisor's
//! routing table is one per VM and is replaced as a whole. [`KvmRoutes`](crate::KvmRoutes)
//! is the one for KVM.

use pvmsi_protocol::GuestMessage;
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

/// A global system interrupt number: an index of KVM's routing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gsi(pub u32);

/// Where a GSI leads: a guest message that has been checked, with what the platform adds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// Address and data as the guest gave them.
    pub message: GuestMessage,
    /// arm64: the device id that the guest's ITS knows the function by.
    pub device_id: Option<u32>,
}

/// A change of one entry of the routing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteChange {
    /// The entry.
    pub gsi: Gsi,
    /// Its new content.
    pub route: Route,
}

/// Why a route could not be had.
#[derive(Debug, Error)]
pub enum RoutesError {
    /// No GSI is left.
    #[error("all interrupt routes of the VM are in use")]
    Exhausted,
    /// The kernel refused.
    #[error("{operation} failed")]
    Kernel {
        /// The kernel interface that was called.
        operation: &'static str,
        /// What it answered.
        #[source]
        source: std::io::Error,
    },
}

/// The hypervisor's interrupt routes. Methods may be called from several threads.
pub trait Routes: Send + Sync {
    /// Takes up to `count` GSIs, fewer when fewer are left.
    ///
    /// # Errors
    /// [`RoutesError::Exhausted`] when not one is left.
    fn allocate(&self, count: u16) -> Result<Vec<Gsi>, RoutesError>;

    /// Gives GSIs back. They have no attached event any more, so their routes lead nobody anywhere: they go with the next update, and need none of their own.
    fn free(&self, gsis: &[Gsi]);

    /// Applies all changes with *one* update of the routing table. All or nothing.
    ///
    /// An event that is signalled after the return goes the new way.
    ///
    /// # Errors
    /// See [`RoutesError`]; the table is then as before. [`Exhausted`](RoutesError::Exhausted), where the table takes fewer routes than were [allocated](Self::allocate), leads to a short grant.
    fn install(&self, changes: &[RouteChange]) -> Result<(), RoutesError>;

    /// From now on each signal of `event` raises `gsi`. One that was signalled before the call has been raised when it returns: this is how held events are delivered exactly once.
    ///
    /// # Errors
    /// [`RoutesError::Kernel`]; the event is then not attached, and still holds what it held.
    fn attach(&self, event: &EventFd, gsi: Gsi) -> Result<(), RoutesError>;

    /// Undoes [`attach`](Self::attach). Signals before the return have been raised, later ones are held by `event`.
    ///
    /// # Errors
    /// [`RoutesError::Kernel`]; the event is then still attached.
    fn detach(&self, event: &EventFd, gsi: Gsi) -> Result<(), RoutesError>;
}
