//! The *routes* seam: where messages of a function become interrupts of the guest.
//!
//! One implementation serves all functions of a VM, since the hypervisor's
//! routing table is one per VM and is replaced as a whole. [`KvmRoutes`](crate::KvmRoutes)
//! is the one for KVM.

use pvmsi_protocol::GuestMessage;
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use crate::platform::ID_14_8;

/// A global system interrupt number: an index of KVM's routing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gsi(pub u32);

/// Where a GSI leads: a guest message that has been checked, with what the platform adds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// Address and data as the guest gave them. KVM takes [another form](Self::kvm_message).
    pub message: GuestMessage,
    /// arm64: the device id that the guest's ITS knows the function by. `None` on x86.
    pub device_id: Option<u32>,
}

impl Route {
    /// The message in the form that KVM takes (`KVM_SET_GSI_ROUTING`, `KVM_SIGNAL_MSI`), for [`Routes`] of a VMM's own.
    ///
    /// A destination id on x86 has bits beyond the lowest 8 in one of two places (W-610 of the specification). KVM never looks at address bits 11:5, which are for the VMM to decode; it reads bits 63:40, and those only where the VMM has [said so](crate::Platform::X86_64).
    pub const fn kvm_message(self) -> GuestMessage {
        let GuestMessage { address, data } = self.message;
        if self.device_id.is_some() {
            return self.message;
        }
        let moved = address & ID_14_8;
        GuestMessage { address: address & !ID_14_8 | moved << 35, data }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn kvms(address: u64, device_id: Option<u32>) -> u64 {
        let message = GuestMessage { address, data: 0x4031 };
        let taken = Route { message, device_id }.kvm_message();
        assert_eq!(taken.data, message.data);
        taken.address
    }

    #[test]
    fn an_extended_destination_id_is_where_kvm_looks_for_it() {
        for (given, taken) in [
            (0xfee0_1000, 0xfee0_1000),
            (0xfeef_f00c, 0xfeef_f00c),
            // 0x101; 0x40ff with mode and hint; 0x7fff.
            (0xfee0_1020, 0x0000_0100_fee0_1000),
            (0xfeef_f80c, 0x0000_4000_feef_f00c),
            (0xfeef_ffe3, 0x0000_7f00_feef_f003),
            (0x0001_0100_fee0_1000, 0x0001_0100_fee0_1000),
            (0xffff_ff00_feef_f000, 0xffff_ff00_feef_f000),
        ] {
            assert_eq!(kvms(given, None), taken, "{given:#x}");
        }
        for bit in 8..15 {
            let given = 0xfee0_0000 | 1 << (bit - 3);
            assert_eq!(kvms(given, None) >> 40 << 8, 1 << bit, "{given:#x}");
        }
    }

    #[test]
    fn an_its_is_named_as_it_is() {
        assert_eq!(kvms(0x0809_0fe0, Some(8)), 0x0809_0fe0);
    }
}
