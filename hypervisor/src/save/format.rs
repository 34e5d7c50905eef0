//! What is saved of a service. These types are the format: a change of one is a change of [`ServiceState::VERSION`].

use pvmsi_protocol::{FunctionId, Generation, GuestMessage, Sequence, VectorIndex};
use serde::{Deserialize, Serialize};

use super::versioned::{Saved, StateVersion, Versioned};

/// The state of a [`Service`], saved. How it is encoded is the VMM's choice (serde).
///
/// A state may come from anywhere: decoding it refuses other versions, and
/// [`Service::restore`] checks everything in it.
///
/// # The order for a VMM
///
/// Where the VM stops:
/// 1. Pause the vCPUs, with their last access completed. A call that was rung is
///    answered then: its answer lies in the guest's RAM. A `configure` that was
///    answered *busy* is part of the saved state, and its repetition goes on.
/// 2. Stop the devices. From here on no function raises an event.
/// 3. [`Service::save`]. It takes all tables back and detaches all events from
///    KVM. An event that was under way is then either in KVM's interrupt
///    controllers or in the saved state, never in both.
/// 4. Save the devices (`SoftwareDevice::save` of `pvmsi-software`),
///    configuration space, vCPUs and interrupt controllers. What KVM has taken
///    over is theirs: an interrupt that is pending lies in `KVM_GET_LAPIC` and
///    `KVM_GET_IRQCHIP`, on arm64 in the ITS's and redistributors' tables in RAM
///    (`KVM_DEV_ARM_ITS_SAVE_TABLES`, `KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES`).
///    So they must be saved *after* the service.
/// 5. To go on here after all (a snapshot, a move that failed):
///    [`Service::resume`], then devices, then vCPUs.
///
/// Where it goes on:
/// 1. Create the service, for the same platform, and add the functions, under the
///    same addresses.
/// 2. Restore RAM, the functions' configuration space
///    ([`FunctionHandle::config_write`], of all registers) and their devices. Where a
///    function is decoded is what configuration space says.
/// 3. [`Service::restore`].
/// 4. Restore vCPUs and interrupt controllers. Events that were held are still
///    held now: nothing that is restored here overwrites them.
/// 5. [`Service::resume`]: what is held and may fire reaches the guest. Then
///    start the devices, then the vCPUs.
///
/// The guest finds its vectors assigned, another generation, and the table
/// trapped for the reason *migrated* until it calls `configure` or `restore`
/// (H-810 of the specification).
///
/// # What is not saved
///
/// - Table messages: they are the host's, and the new host has its own.
/// - [`FunctionHandle::revoke`]: it was this host's decision. Counters start from 0.
/// - Pending bits of a function, which belong to the device. Those of a software
///   function are in its own state. Those of a VFIO function cannot be read out
///   and put back by anyone but the migration driver of its vendor
///   (`VFIO_DEVICE_FEATURE_MIGRATION`), as all else that the device knows. The
///   service takes the table back unmasked, so that a VFIO function that still
///   runs signals what was pending, and it lands in the saved state; a function
///   that was stopped with a pending bit set keeps it. A function whose device
///   state cannot be moved cannot be moved: let the guest give it up before.
///
/// [`FunctionHandle::config_write`]: crate::FunctionHandle::config_write
/// [`FunctionHandle::revoke`]: crate::FunctionHandle::revoke
/// [`Service`]: crate::Service
/// [`Service::restore`]: crate::Service::restore
/// [`Service::resume`]: crate::Service::resume
/// [`Service::save`]: crate::Service::save
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServiceState(Versioned<Vec<SavedFunction>>);

impl ServiceState {
    /// The version that is written, and the newest that is read.
    pub const VERSION: StateVersion = StateVersion { major: 1, minor: 0 };

    pub(crate) fn new(functions: Vec<SavedFunction>) -> Self {
        Self(Versioned(functions))
    }

    pub(crate) fn functions(&self) -> &[SavedFunction] {
        &self.0.0
    }
}

impl Saved for Vec<SavedFunction> {
    const OF: &'static str = "the PV-MSI service";
    const VERSION: StateVersion = ServiceState::VERSION;
}

/// One function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedFunction {
    pub(crate) id: FunctionId,
    /// Entries of its table.
    pub(crate) vectors: u16,
    pub(crate) msix_enable: bool,
    pub(crate) function_mask: bool,
    pub(crate) owner: SavedOwner,
    /// Vectors with an event that waits for them, in order.
    pub(crate) held: Vec<VectorIndex>,
    pub(crate) preparation: Option<SavedPreparation>,
    pub(crate) generation: Generation,
}

/// Whom the routes follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SavedOwner {
    /// The emulated table.
    Legacy {
        entries: Vec<SavedEntry>,
        /// How many vectors had an interrupt; none while the guest uses none.
        set_up: u16,
    },
    /// The protocol.
    Assigned { vectors: Vec<SavedVector> },
}

/// An entry of the emulated table: whatever the guest has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedEntry {
    pub(crate) message: GuestMessage,
    pub(crate) masked: bool,
}

/// A vector that is assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedVector {
    pub(crate) message: Option<GuestMessage>,
    pub(crate) masked: bool,
}

/// A `configure` that was answered *busy*. What was ready of it is made again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedPreparation {
    pub(crate) sequence: Sequence,
    pub(crate) requested: u16,
    pub(crate) vectors: Vec<SavedVector>,
}
