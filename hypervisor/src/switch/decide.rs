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
use crate::platform::Platform;
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
    reasons.set(Reasons::NOT_ASSIGNED, !guest.owner.is_assigned());
    reasons.set(Reasons::POLICY, fixed.policy.policy != Policy::Direct);
    reasons.set(Reasons::NO_ISOLATION, !isolated);
    reasons.set(Reasons::NOT_MAPPABLE, fixed.not_mappable.is_some());
    // One test for both: this comes with each operation.
    if debts.intersects(Debts::TRAPPING) {
        reasons |= owed(debts);
    }
    reasons.set(Reasons::MSIX_DISABLED, !guest.control.enable);
    reasons.set(Reasons::DECODING_OFF, !guest.placement.decoding);
    reasons.set(Reasons::POWER_STATE, !guest.placement.full_power);
    let revoked = Host::REVOKED.union(Host::PAUSED).union(Host::FROZEN);
    reasons.set(Reasons::HOST_REVOKED, host.intersects(revoked));
    reasons.set(Reasons::HELD_EVENT, held);
    reasons.set(Reasons::MIGRATED, host.contains(Host::MIGRATED));
    reasons
}

/// What is owed and a reason.
#[cold]
fn owed(debts: Debts) -> Reasons {
    let mut reasons = Reasons::empty();
    reasons.set(Reasons::NOT_MAPPABLE, debts.intersects(Debts::NOT_MAPPABLE));
    reasons.set(Reasons::UNREADABLE, debts.contains(Debts::UNREADABLE));
    reasons
}

/// Whether the function answers accesses to its memory.
#[inline]
pub(crate) fn answers(placement: &Placement, host: Host) -> bool {
    placement.decoding && placement.full_power && !host.contains(Host::FROZEN)
}

/// What the guest's memory map shall show.
pub(crate) fn view(placement: &Placement, host: Host, mode: TableMode) -> View {
    if answers(placement, host) {
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
// Each walk over vectors asks it for all of them: a call of its own costs a sixth of the whole step.
#[inline(always)]
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
    // A prepared one is let alone: the function's own mask bit holds what was attached in advance.
    let (message, unmasked) = match &guest.owner {
        Owner::Legacy(_) if guest.is_prepared(vector) => (wire.message(), wire.is_attached()),
        Owner::Legacy(entries) => match entries.get(index) {
            Some(entry) if control.enable && !entry.masked => {
                (Some(entry.message).filter(|&message| fixed.delivers(message)), true)
            }
            Some(_) | None => (wire.message(), false),
        },
        // Checked when it was named.
        Owner::Assigned(vectors) => match vectors.get(index) {
            Some(vector) => (vector.message, mode == TableMode::Direct || !vector.masked),
            None if guest.is_prepared(vector) => (wire.message(), wire.is_attached()),
            None => (None, false),
        },
    };
    let could_fire = is_open(guest, host) && message.is_some();
    Wanted { message, could_fire, attached: could_fire && unmasked }
}

/// Whether events can reach the guest at all.
#[inline]
pub(crate) fn is_open(guest: &Guest, host: Host) -> bool {
    let control = guest.control;
    control.enable && !control.function_mask && !host.contains(Host::PAUSED)
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

/// Whether the host's kernel sets and clears mask bits of a table by itself, with interrupt remapping or without. On arm64 it does not.
pub(crate) fn host_moves_mask_bits(fixed: &Fixed) -> bool {
    matches!(fixed.platform, Platform::X86_64 { .. })
}

/// The last vector that the guest uses of its emulated table: one that is unmasked needs an interrupt.
pub(crate) fn last_used(guest: &Guest) -> Option<VectorIndex> {
    match &guest.owner {
        Owner::Legacy(entries) if guest.control.enable => {
            let last = entries.iter().rposition(|entry| !entry.masked)?;
            u16::try_from(last).map(VectorIndex).ok()
        }
        Owner::Legacy(_) | Owner::Assigned(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use pvmsi_protocol::{FunctionId, Kind, Sequence, VectorSetup};

    use super::super::guest::{LegacyEntry, MsixControl, Unfinished};
    use super::*;
    use crate::capability::Registers;
    use crate::layout::{Bar, BarIndex, Layout, NotMappable};
    use crate::policy::FunctionPolicy;
    use crate::routes::Gsi;

    const VECTOR: VectorIndex = VectorIndex(1);
    const GSI: Gsi = Gsi(24);
    const ONE: GuestMessage = GuestMessage { address: 0xfee0_0000, data: 0x31 };
    const OTHER: GuestMessage = GuestMessage { address: 0xfee0_0000, data: 0x32 };
    /// The platform could not deliver it.
    const NONSENSE: GuestMessage = GuestMessage { address: 0x1000, data: 0x31 };

    fn fixed() -> Fixed {
        let mut bars = [None; BarIndex::COUNT];
        bars[0] = Some(Bar { size: 0x4000, is_64bit: false, prefetchable: false });
        let bar = BarIndex(0);
        Fixed {
            id: FunctionId(8),
            platform: Platform::X86_64 { extended_destination_ids: true },
            policy: FunctionPolicy { policy: Policy::Direct, ..FunctionPolicy::default() },
            isolation: Isolation::Isolated,
            layout: Layout::new(bars, 2, (bar, 0x1000), (bar, 0x2000), 4096).unwrap(),
            registers: Registers {
                msix_control: 0x93,
                power: None,
                device_control: None,
                advanced_control: None,
                msi_unlinked: None,
            },
            not_mappable: None,
        }
    }

    /// A guest with two vectors assigned, of a function that answers.
    fn assigned(message: Option<GuestMessage>, masked: bool) -> Guest {
        let mut guest = Guest::new(2);
        guest.owner = Owner::Assigned(vec![VectorSetup { message, masked }; 2]);
        guest.control = MsixControl { enable: true, function_mask: false };
        guest.placement = Placement { decoding: true, ..Placement::NOWHERE };
        guest
    }

    fn legacy(message: GuestMessage, masked: bool) -> Guest {
        let owner = Owner::Legacy(vec![LegacyEntry { message, masked }; 2]);
        Guest { owner, ..assigned(None, true) }
    }

    fn why(fixed: &Fixed, guest: &Guest, host: Host, debts: Debts, held: bool) -> Reasons {
        reasons(fixed, guest, host, debts, held)
    }

    #[test]
    fn the_table_is_direct_where_nothing_is_against_it() {
        let guest = assigned(Some(ONE), false);
        assert_eq!(why(&fixed(), &guest, Host::empty(), Debts::empty(), false), Reasons::empty());
    }

    #[test]
    fn each_reason_has_its_cause() {
        let (good, guest) = (fixed(), assigned(None, false));
        let fixed_with = |change: fn(&mut Fixed)| {
            let mut fixed = fixed();
            change(&mut fixed);
            why(&fixed, &guest, Host::empty(), Debts::empty(), false)
        };
        let guest_with = |change: fn(&mut Guest)| {
            let mut guest = guest.clone();
            change(&mut guest);
            why(&good, &guest, Host::empty(), Debts::empty(), false)
        };
        let host_with = |host| why(&good, &guest, host, Debts::empty(), false);
        let owing = |debts| why(&good, &guest, Host::empty(), debts, false);
        assert_eq!(fixed_with(|fixed| fixed.policy.policy = Policy::Trapped), Reasons::POLICY);
        let over = |fixed: &mut Fixed| fixed.not_mappable = Some(NotMappable::OverPendingBits);
        assert_eq!(fixed_with(over), Reasons::NOT_MAPPABLE);
        let unisolated =
            |fixed: &mut Fixed| fixed.isolation = Isolation::NotIsolated(String::new());
        assert_eq!(fixed_with(unisolated), Reasons::NO_ISOLATION);
        assert_eq!(
            fixed_with(|fixed| {
                fixed.isolation = Isolation::NotIsolated(String::new());
                fixed.policy.allow_unisolated = true;
            }),
            Reasons::empty()
        );
        assert_eq!(guest_with(|guest| guest.owner = Owner::default_of(2)), Reasons::NOT_ASSIGNED);
        assert_eq!(guest_with(|guest| guest.control.enable = false), Reasons::MSIX_DISABLED);
        assert_eq!(guest_with(|guest| guest.control.function_mask = true), Reasons::empty());
        assert_eq!(guest_with(|guest| guest.placement.decoding = false), Reasons::DECODING_OFF);
        assert_eq!(guest_with(|guest| guest.placement.full_power = false), Reasons::POWER_STATE);
        assert_eq!(host_with(Host::REVOKED), Reasons::HOST_REVOKED);
        assert_eq!(host_with(Host::PAUSED), Reasons::HOST_REVOKED);
        assert_eq!(host_with(Host::FROZEN), Reasons::HOST_REVOKED);
        assert_eq!(host_with(Host::MIGRATED), Reasons::MIGRATED);
        assert_eq!(owing(Debts::PAGES), Reasons::NOT_MAPPABLE);
        assert_eq!(owing(Debts::HAND_OVER), Reasons::NOT_MAPPABLE);
        assert_eq!(owing(Debts::UNREADABLE), Reasons::UNREADABLE);
        assert_eq!(owing(!Debts::NOT_MAPPABLE - Debts::UNREADABLE), Reasons::empty());
        let held = why(&good, &guest, Host::empty(), Debts::empty(), true);
        assert_eq!(held, Reasons::HELD_EVENT);
    }

    #[test]
    fn nothing_is_shown_of_a_function_that_does_not_answer() {
        let mut placement = Placement { decoding: true, ..Placement::NOWHERE };
        placement.bars[0] = Some(0xc000_0000);
        let shown = view(&placement, Host::all() - Host::FROZEN, TableMode::Direct);
        assert_eq!(shown.bars[0], Some(GuestAddress(0xc000_0000)));
        assert_eq!(shown.table, TableMode::Direct);
        for stopped in [
            Placement { decoding: false, ..placement },
            Placement { full_power: false, ..placement },
        ] {
            assert_eq!(view(&stopped, Host::empty(), TableMode::Direct), View::NOTHING);
        }
        assert_eq!(view(&placement, Host::FROZEN, TableMode::Direct), View::NOTHING);
    }

    fn want(guest: &Guest, host: Host, mode: TableMode, wire: Wire) -> Wanted {
        wanted(&fixed(), guest, host, mode, VECTOR, wire)
    }

    #[test]
    fn an_assigned_vector_fires_where_its_message_is_known_and_nothing_masks_it() {
        let (wire, trapped) = (Wire::Allocated(GSI), TableMode::Trapped);
        let open = want(&assigned(Some(ONE), false), Host::empty(), trapped, wire);
        assert_eq!(open, Wanted { message: Some(ONE), could_fire: true, attached: true });
        let masked = want(&assigned(Some(ONE), true), Host::empty(), trapped, wire);
        assert_eq!(masked, Wanted { message: Some(ONE), could_fire: true, attached: false });
        let direct = want(&assigned(Some(ONE), true), Host::empty(), TableMode::Direct, wire);
        assert!(direct.attached, "the function's own mask bit holds it back");
        let nameless = want(&assigned(None, false), Host::empty(), trapped, wire);
        assert_eq!(nameless, Wanted::NOTHING);
        let paused = want(&assigned(Some(ONE), false), Host::PAUSED, trapped, wire);
        assert_eq!(paused, Wanted { message: Some(ONE), could_fire: false, attached: false });
    }

    #[test]
    fn a_prepared_vector_is_let_alone_or_detached() {
        let trapped = TableMode::Trapped;
        for owner in [Owner::default_of(2), Owner::Assigned(Vec::new())] {
            let mut guest = Guest { owner, ..assigned(None, true) };
            guest.unfinished = Some(Unfinished {
                first: 1,
                sequence: Sequence(1),
                kind: Kind::MsiX,
                requested: 2,
                setups: Vec::new(),
            });
            for wire in [Wire::Allocated(GSI), Wire::Routed(GSI, OTHER), Wire::Attached(GSI, OTHER)]
            {
                let wanted = want(&guest, Host::empty(), trapped, wire);
                assert!(wanted.is_met(wire) && !wanted.is_against(wire), "{wire:?}");
            }
            let attached = Wire::Attached(GSI, OTHER);
            assert!(want(&guest, Host::PAUSED, trapped, attached).is_against(attached));
            guest.control.function_mask = true;
            assert!(want(&guest, Host::empty(), trapped, attached).is_against(attached));
        }
    }

    #[test]
    fn enable_and_function_mask_hold_all_vectors() {
        for control in [
            MsixControl { enable: false, function_mask: false },
            MsixControl { enable: true, function_mask: true },
        ] {
            let guest = Guest { control, ..assigned(Some(ONE), false) };
            for mode in [TableMode::Trapped, TableMode::Direct] {
                let wanted = want(&guest, Host::empty(), mode, Wire::Routed(GSI, ONE));
                assert_eq!(
                    wanted,
                    Wanted { message: Some(ONE), could_fire: false, attached: false }
                );
            }
        }
    }

    #[test]
    fn a_masked_entry_of_the_emulated_table_keeps_its_route() {
        let trapped = TableMode::Trapped;
        let wire = Wire::Routed(GSI, ONE);
        let masked = want(&legacy(OTHER, true), Host::empty(), trapped, wire);
        assert_eq!((masked.message, masked.attached), (Some(ONE), false));
        assert!(masked.is_met(wire));
        let unmasked = want(&legacy(OTHER, false), Host::empty(), trapped, wire);
        assert_eq!((unmasked.message, unmasked.attached), (Some(OTHER), true));
        assert!(!unmasked.is_met(wire));
        let nonsense = want(&legacy(NONSENSE, false), Host::empty(), trapped, wire);
        assert_eq!((nonsense.message, nonsense.attached), (None, false));
    }

    #[test]
    fn a_vector_without_a_gsi_leads_nowhere() {
        let guest = assigned(Some(ONE), false);
        let wanted = want(&guest, Host::empty(), TableMode::Direct, Wire::None);
        assert_eq!(wanted, Wanted::NOTHING);
        let mut few = guest;
        few.owner = Owner::Assigned(vec![VectorSetup { message: Some(ONE), masked: false }]);
        let ungranted = want(&few, Host::empty(), TableMode::Direct, Wire::Allocated(GSI));
        assert_eq!(ungranted, Wanted::NOTHING);
    }

    #[test]
    fn what_is_attached_and_must_not_fire_is_against_the_will() {
        let guest = |masked| assigned(Some(ONE), masked);
        let against = |guest: &Guest, wire| {
            want(guest, Host::empty(), TableMode::Trapped, wire).is_against(wire)
        };
        assert!(!against(&guest(false), Wire::Attached(GSI, ONE)));
        assert!(against(&guest(true), Wire::Attached(GSI, ONE)), "masked");
        assert!(against(&guest(false), Wire::Attached(GSI, OTHER)), "leads elsewhere");
        assert!(!against(&guest(true), Wire::Routed(GSI, OTHER)), "nothing is attached");
    }

    #[test]
    fn the_function_is_enabled_while_the_guest_or_a_vector_needs_it() {
        let mut guest = Guest::new(2);
        assert!(!enabled(&guest, 0) && enabled(&guest, 1));
        guest.control.enable = true;
        assert!(enabled(&guest, 0));
    }

    #[test]
    fn the_emulated_table_is_used_when_a_vector_is_unmasked_and_enabled() {
        assert_eq!(last_used(&legacy(ONE, false)), Some(VectorIndex(1)));
        assert_eq!(last_used(&legacy(ONE, true)), None);
        assert_eq!(last_used(&assigned(Some(ONE), false)), None);
        let mut disabled = legacy(ONE, false);
        disabled.control.enable = false;
        assert_eq!(last_used(&disabled), None);
    }
}
