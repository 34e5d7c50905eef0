//! KVM's routes and irqfds: which event raises which message of the guest.

use pvmsi_hypervisor::{Gsi, Platform, Route};
use pvmsi_protocol::{FunctionId, GuestMessage};

use crate::VECTORS;

/// GSIs of the machine: those of the function, and one of its neighbour.
pub const GSIS: usize = VECTORS + 1;

/// A guest message; each vector has two that are its own, so a message tells its vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Message(pub u8);

/// Address of the ITS's doorbell register.
const ITS: u64 = 0x0808_0040;
const FIRST_VECTOR: u32 = 0x40;

/// The platform as the service knows it.
pub fn platform(arm64: bool) -> Platform {
    if arm64 {
        Platform::Aarch64 { its_doorbell: ITS }
    } else {
        Platform::X86_64 { extended_destination_ids: false }
    }
}

impl Message {
    /// One of the two messages of a vector.
    pub fn of(vector: usize, second: bool) -> Self {
        let vector = u8::try_from(vector).unwrap_or(u8::MAX);
        Self(vector.saturating_mul(2).saturating_add(u8::from(second)))
    }

    /// The vector that it belongs to.
    pub fn vector(self) -> usize {
        usize::from(self.0 / 2)
    }

    /// As a guest writes it.
    pub fn guest(self, arm64: bool) -> GuestMessage {
        let data = u32::from(self.0);
        if arm64 {
            GuestMessage { address: ITS, data }
        } else {
            GuestMessage { address: 0xfee0_0000, data: data + FIRST_VECTOR }
        }
    }

    /// The message that a route leads to; `None` when it is none of the function's.
    pub fn of_route(route: &Route, arm64: bool, function: FunctionId) -> Option<Self> {
        let device_id = arm64.then(|| u32::from(function.requester_id()));
        (0..u8::try_from(2 * VECTORS).unwrap_or(0))
            .map(Self)
            .find(|message| message.guest(arm64) == route.message)
            .filter(|_| route.device_id == device_id)
    }
}

/// The routing table and the irqfds, as far as one function is concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// GSIs that are taken.
    pub taken: [bool; GSIS],
    /// The routing table.
    pub routes: [Option<Message>; GSIS],
    /// The vector whose event is attached.
    pub attached: [Option<u8>; GSIS],
}

/// The index of a GSI; `None` for one that was never given out.
pub fn index(gsi: Gsi) -> Option<usize> {
    usize::try_from(gsi.0.checked_sub(FIRST_GSI)?).ok().filter(|&index| index < GSIS)
}

/// The GSI with an index.
pub fn gsi(index: usize) -> Gsi {
    Gsi(u32::try_from(index).unwrap_or(u32::MAX).saturating_add(FIRST_GSI))
}

/// Those below belong to the interrupt controllers' pins.
const FIRST_GSI: u32 = 24;
