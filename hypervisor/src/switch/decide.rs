//! The decisions: what guest and host have asked for, and so what the world shall be.
//!
//! Pure functions. Whatever changes one of their arguments for a vector marks it
//! as changed; nothing else has to be looked at again.

use pvmsi_protocol::{GuestMessage, Reasons, TableMode, VectorIndex};
use vm_memory::GuestAddress;

use super::fixed::Fixed;
use super::guest::{Guest, Owner, Placement};
use super::host::{Debts, Host};
use super::wires::Wire;
use crate::function::Isolation;
use crate::policy::Policy;
use crate::window::View;

/// Why the table is not direct. Empty is the one condition for direct mode. `held`: an event waits for a masked vector at the host.
pub(crate) fn reasons(
    fixed: &Fixed,
    guest: &Guest,
    host: Host,
    debts: Debts,
    held: bool,
) -> Reasons {
    let mut reasons = Reasons::empty();
    let isolated = fixed.isolation == Isolation::Isolated || fixed.policy.allow_unisolated;
    let mappable = fixed.mappable && !debts.intersects(Debts::NOT_MAPPABLE);
    reasons.set(Reasons::NOT_ASSIGNED, !guest.owner.is_assigned());
    reasons.set(Reasons::POLICY, fixed.policy.policy != Policy::Direct);
    reasons.set(Reasons::NO_ISOLATION, !isolated);
    reasons.set(Reasons::NOT_MAPPABLE, !mappable);
    reasons.set(Reasons::MSIX_DISABLED, !guest.control.enable);
    reasons.set(Reasons::DECODING_OFF, !guest.placement.decoding);
    reasons.set(Reasons::POWER_STATE, !guest.placement.full_power);
    reasons.set(Reasons::HOST_REVOKED, host.intersects(Host::REVOKED.union(Host::PAUSED)));
    reasons.set(Reasons::HELD_EVENT, held);
    reasons.set(Reasons::MIGRATED, host.contains(Host::MIGRATED));
    reasons
}

/// What the guest's memory map shall show.
pub(crate) fn view(placement: &Placement, mode: TableMode) -> View {
    if placement.answers() {
        View { bars: placement.bars.map(|bar| bar.map(GuestAddress)), table: mode }
    } else {
        View::NOTHING
    }
}

/// What one vector shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The message that its GSI shall lead to; absent where the platform could not deliver it.
    pub(crate) message: Option<GuestMessage>,
    /// Whether an event of it may reach the guest now, or nothing but its mask bit is in the way.
    pub(crate) could_fire: bool,
    /// Whether an event of it may reach the guest now.
    pub(crate) attached: bool,
}

impl Wanted {
    const NOTHING: Self = Self { message: None, could_fire: false, attached: false };

    /// Whether the vector is attached and must not fire: it is masked, or would go where it led before.
    pub(crate) fn is_against(&self, wire: Wire) -> bool {
        wire.is_attached() && !(self.attached && self.is_routed(wire))
    }

    /// Whether the GSI leads where it shall.
    pub(crate) fn is_routed(&self, wire: Wire) -> bool {
        self.message == wire.message()
    }

    /// Whether nothing is left to be done.
    pub(crate) fn is_met(&self, wire: Wire) -> bool {
        self.attached == wire.is_attached() && self.is_routed(wire)
    }
}

/// What a vector with this wire shall be. A masked entry of the emulated table keeps the route that it had last: it costs an update to change it, and nothing is attached.
pub(crate) fn wanted(
    fixed: &Fixed,
    guest: &Guest,
    host: Host,
    mode: TableMode,
    vector: VectorIndex,
    wire: Wire,
) -> Wanted {
    if wire == Wire::None {
        return Wanted::NOTHING;
    }
    let index = vector.as_usize();
    let control = guest.control;
    let (message, unmasked) = match &guest.owner {
        Owner::Legacy(entries) => match entries.get(index) {
            Some(entry) if control.enable && !entry.masked => {
                let deliverable = fixed.route(entry.message).is_some();
                (Some(entry.message).filter(|_| deliverable), true)
            }
            Some(_) | None => (wire.message(), false),
        },
        // Checked when it was named.
        Owner::Assigned(vectors) => match vectors.get(index) {
            Some(vector) => (vector.message, mode == TableMode::Direct || !vector.masked),
            None => (None, false),
        },
    };
    let open = control.enable && !control.function_mask && !host.contains(Host::PAUSED);
    let could_fire = open && message.is_some();
    Wanted { message, could_fire, attached: could_fire && unmasked }
}

/// The function's own MSI-X Enable follows the guest's, whatever is masked: some functions look at it when they are started, before the first vector is unmasked, and guests may unmask last. Vectors that are set up have set it, and need it.
pub(crate) fn enabled(guest: &Guest, vectors: usize) -> bool {
    guest.control.enable || vectors > 0
}

/// Whether the host's kernel writes messages into the table by itself: without interrupt remapping it does when it moves an interrupt to another processor. A table that the operator has mapped all the same is the guest's to write as well, so its content says nothing.
pub(crate) fn host_moves_messages(fixed: &Fixed, mode: TableMode) -> bool {
    fixed.isolation != Isolation::Isolated
        && !fixed.policy.allow_unisolated
        && mode == TableMode::Trapped
}

/// Whether the guest uses its emulated table: a vector that is unmasked needs interrupts.
pub(crate) fn uses_legacy(guest: &Guest) -> bool {
    match &guest.owner {
        Owner::Legacy(entries) => guest.control.enable && entries.iter().any(|entry| !entry.masked),
        Owner::Assigned(_) => false,
    }
}
