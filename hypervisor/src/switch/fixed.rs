//! What never changes of a function.

use pvmsi_protocol::{FunctionId, GuestMessage};

use crate::capability::Registers;
use crate::function::Isolation;
use crate::layout::Layout;
use crate::platform::Platform;
use crate::policy::{FunctionPolicy, Policy};
use crate::routes::Route;

/// What is known when a function is added, and stays.
#[derive(Clone, Debug)]
pub(crate) struct Fixed {
    pub(crate) id: FunctionId,
    pub(crate) platform: Platform,
    pub(crate) policy: FunctionPolicy,
    pub(crate) isolation: Isolation,
    pub(crate) layout: Layout,
    pub(crate) registers: Registers,
    /// Whether the guest's memory map can show the table's pages at all.
    pub(crate) mappable: bool,
}

impl Fixed {
    /// The route for a message; `None` when the platform cannot deliver it.
    pub(crate) fn route(&self, message: GuestMessage) -> Option<Route> {
        self.platform.route(self.id, message)
    }

    /// Whether the platform can deliver a message. Not inlined: what is decided of assigned vectors stays short.
    #[inline(never)]
    pub(crate) fn delivers(&self, message: GuestMessage) -> bool {
        self.route(message).is_some()
    }

    /// The route for a message that has been checked.
    pub(crate) fn route_of(&self, message: GuestMessage) -> Route {
        self.platform.route_of(self.id, message)
    }

    /// The most vectors that a `configure` can be granted.
    pub(crate) fn vectors_offered(&self) -> u16 {
        match self.policy.policy {
            Policy::Off => 0,
            Policy::Trapped | Policy::Direct => {
                self.layout.vectors().min(self.policy.vectors.unwrap_or(u16::MAX))
            }
        }
    }
}
