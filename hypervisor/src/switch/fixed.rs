//! What never changes of a function.

use pvmsi_protocol::{FunctionId, GuestMessage};

use crate::capability::Registers;
use crate::function::Isolation;
use crate::layout::{BarIndex, Layout, NotMappable};
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
    /// Why the table's pages can never be shown.
    pub(crate) not_mappable: Option<NotMappable>,
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

    /// Which bits of a byte of configuration space say what is served, and what they are: size and place of
    /// table and pending bits, in the MSI-X capability. Functions are known that say something else later.
    pub(crate) fn served(&self, at: u64) -> Option<(u8, u8)> {
        // Table Size ends where the writable bits of Message Control begin.
        const LAST_SIZE_BITS: u8 = 0x07;
        let Self { layout, registers, .. } = self;
        let place = |(bar, offset): (BarIndex, u64)| {
            (u32::try_from(offset).unwrap_or(0) | u32::from(bar.0)).to_le_bytes()
        };
        let [low, high] = layout.vectors().saturating_sub(1).to_le_bytes();
        let [t0, t1, t2, t3] = place(layout.table());
        let [p0, p1, p2, p3] = place(layout.pending());
        let from = at.checked_sub(registers.msix_control.checked_sub(1)?)?;
        let value =
            *[low, high, t0, t1, t2, t3, p0, p1, p2, p3].get(usize::try_from(from).ok()?)?;
        Some((if from == 1 { LAST_SIZE_BITS } else { u8::MAX }, value))
    }

    /// The most vectors that a `configure` can be granted.
    pub(crate) fn vectors_offered(&self) -> u16 {
        match self.policy.policy {
            Policy::Off => 0,
            Policy::Trapped | Policy::Direct => self.vectors_allowed(),
        }
    }

    /// How many vectors of the function may have interrupts, whoever owns them.
    pub(crate) fn vectors_allowed(&self) -> u16 {
        self.layout.vectors().min(self.policy.vectors.unwrap_or(u16::MAX))
    }
}
