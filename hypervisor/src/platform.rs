//! Which guest messages a platform can deliver, and what a route needs besides.
//!
//! Everything else in this crate is the same on all architectures, but for one
//! thing that [`Platform::binds_at_attach`] says.
//!
//! # arm64: first map, then name
//!
//! A message names a device and an event, and the guest's interrupt translation
//! service (ITS) says what they mean. KVM looks there when an event is signalled
//! (`vgic_its_resolve_lpi`), and where it finds no translation, an ITS that is
//! off, or a redistributor with LPIs off, the event is *lost*: nothing is kept
//! and nobody is told. Only an LPI that is mapped but not enabled stays pending.
//! So it is the guest's duty (G-621, G-622 of the specification)
//! 1. to map device and event (MAPD, MAPTI) before `configure` or `update` names
//!    the message, or before it writes it to a trapped table,
//! 2. to take the mapping away (DISCARD) only when the vector is masked and
//!    quiet, or released, and
//! 3. to name the message again, by `update`, after it has mapped the event anew.
//!
//! The host's part: no event is handed to KVM before the guest has named a
//! message for it; it waits in its eventfd. With GICv4, KVM ties the host's
//! interrupt to the guest's event when the irqfd is attached, if there is a
//! translation then, and keeps to it whatever becomes of the route (before Linux
//! 6.16; since then it falls back to injection by software). Those kernels also
//! look for what to untie by the route of the moment of the detach. So every
//! vector that a call names is detached, routed, and attached anew.
//!
//! # arm64: an event is one vector's
//!
//! KVM keeps one host interrupt for each LPI (`vgic_irq::host_irq`). Where two are
//! tied to one, kernels before 6.16 overwrite the first, untie the wrong one, and
//! leave the other forwarded when both are detached, even when the VM is gone. So
//! a call that would give two vectors the same message is refused (H-623), and
//! `Wires` attaches no second vector to a message, whatever a guest writes into its
//! emulated table (H-624): the event waits in its eventfd.
//!
//! What the kernels say in their log, read in `vgic-v4.c`, `vgic-its.c`, `eventfd.c`
//! and `irqbypass.c`, and only where GICv4 was enabled (`kvm-arm.vgic_v4_enable=1`):
//!
//! | kernel | at a detach | at an attach |
//! |---|---|---|
//! | before 6.15 (6.1, 6.12) | `WARN_ON` each time where the route leads to an LPI that is not tied to this vector: unmapped and mapped anew since the attach, or shared. Nothing where it leads to no LPI | a line each time where the route leads to no LPI (`irq bypass consumer … registration fails`) |
//! | 6.15 | `WARN_ON` where it is tied to another: shared | nothing |
//! | 6.16 and later | nothing: found by the host interrupt | nothing: a second vector is injected by software |
//!
//! So there the safe order is: map, attach, detach, unmap. Mapped, unmapped, mapped
//! and then named again is safe since 6.15. Before, it works, and warns once for each
//! vector: the guest should have the vector detached before it unmaps (G-622). The
//! service adds nothing to that: a call detaches and attaches each vector that it
//! names once, and up to four times more where events come in just those moments
//! (`KvmRoutes::attach`). It cannot bound how often a guest does it, since mask bits
//! of a trapped table do the same, and two events of the guest's can be one LPI,
//! which only KVM can see. That is the same for any VMM.
//!
//! What KVM loses by itself: an event that GICv4 has made pending in the guest
//! and that the guest has not taken yet, when its irqfd is detached. A direct
//! table needs no detaching to be masked; a trapped one does.

use pvmsi_protocol::{Features, FunctionId, GuestMessage};

use crate::routes::Route;

/// Bits 14:8 of the destination id of a message to a local APIC, where KVM's guests put them (`KVM_FEATURE_MSI_EXT_DEST_ID`): address bits 11:5.
pub(crate) const ID_14_8: u64 = 0x0000_0fe0;
/// Bits 31:8 of the destination id, where KVM itself looks for them (`KVM_CAP_X2APIC_API`): address bits 63:40.
pub(crate) const ID_31_8: u64 = 0xffff_ff00_0000_0000;

/// The guest's platform, as far as messages are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// Local APICs: Intel SDM volume 3, "Message Signalled Interrupts", and W-610 of the specification.
    X86_64 {
        /// Whether the VM takes destination ids above 255. Only then the guest is offered them (the feature *extended-destination-id*); otherwise a message that names one is refused, since it would go to the processor that the low 8 bits name.
        ///
        /// On KVM: whether the VMM has enabled `KVM_CAP_X2APIC_API` with both flags, `KVM_X2APIC_API_USE_32BIT_IDS` and `KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK`. With the first alone, messages to id 255 go to all processors in x2APIC mode, and those to all of them to none.
        extended_destination_ids: bool,
    },
    /// An interrupt translation service: GICv3 architecture specification, `GITS_TRANSLATER`.
    Aarch64 {
        /// Guest physical address of the ITS's doorbell register.
        its_doorbell: u64,
    },
}

impl Platform {
    /// Whether an attached event keeps to the guest message that it was attached with: a vector whose message is named again is detached and attached anew, and no two vectors have the same.
    pub(crate) const fn binds_at_attach(self) -> bool {
        match self {
            Self::X86_64 { .. } => false,
            Self::Aarch64 { .. } => true,
        }
    }

    /// What its guests are offered.
    pub(crate) fn features(self) -> Features {
        match self {
            Self::X86_64 { extended_destination_ids: true } => Features::EXTENDED_DESTINATION_ID,
            Self::X86_64 { .. } | Self::Aarch64 { .. } => Features::empty(),
        }
    }

    /// The route for a message of a function; `None` when the platform cannot deliver the message.
    pub fn route(self, function: FunctionId, message: GuestMessage) -> Option<Route> {
        let deliverable = match self {
            Self::X86_64 { extended_destination_ids } => {
                is_local_apic_message(message)
                    && is_destination(message.address, extended_destination_ids)
            }
            Self::Aarch64 { its_doorbell } => message.address == its_doorbell,
        };
        deliverable.then(|| self.route_of(function, message))
    }

    /// The same for a message that has been checked.
    pub(crate) fn route_of(self, function: FunctionId, message: GuestMessage) -> Route {
        let device_id = match self {
            Self::X86_64 { .. } => None,
            Self::Aarch64 { .. } => Some(u32::from(function.requester_id())),
        };
        Route { message, device_id }
    }
}

/// Fixed, lowest priority or NMI; edge triggered; a vector that a processor accepts.
const fn is_local_apic_message(GuestMessage { address, data }: GuestMessage) -> bool {
    const ADDRESS_RANGE: u64 = 0xfee0_0000;
    // Bits 31:20 are the interrupt range, 39:32 are reserved. With bit 4 the address names an entry
    // of an interrupt remapping table, and no destination.
    let address_valid = address & 0x0000_00ff_fff0_0010 == ADDRESS_RANGE;
    // Bits 10:8 are the delivery mode: 0 and 1 go to a vector, 4 is an NMI. Bit 15 is level
    // triggered, 31:16 are reserved.
    let to_vector = data & 0xffff_8600 == 0 && data & 0xff >= 16;
    let nmi = data & 0xffff_8700 == 0x400;
    address_valid && (to_vector || nmi)
}

/// Bits of the id above the lowest 8 only where they are `extended`, and in one place: in both, nobody can say which are meant.
const fn is_destination(address: u64, extended: bool) -> bool {
    address & (ID_31_8 | ID_14_8) == 0
        || extended && (address & ID_31_8 == 0 || address & ID_14_8 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FUNCTION: FunctionId = FunctionId(8);

    fn valid(address: u64, data: u32) -> bool {
        let with = Platform::X86_64 { extended_destination_ids: true };
        with.route(FUNCTION, GuestMessage { address, data }).is_some()
    }

    fn valid_without(address: u64) -> bool {
        let without = Platform::X86_64 { extended_destination_ids: false };
        without.route(FUNCTION, GuestMessage { address, data: 0x31 }).is_some()
    }

    #[test]
    fn x86_accepts_what_a_local_apic_accepts() {
        assert!(valid(0xfee0_1000, 0x31), "physical destination 1");
        assert!(valid(0xfee0_1004, 0x131), "logical destination, lowest priority");
        assert!(valid(0xfeef_f008, 0x31), "redirection hint, all processors in xAPIC mode");
        assert!(valid(0xfee0_1003, 0x7831), "ignored bits");
        assert!(valid(0xfee0_0000, 0x400), "NMI");
    }

    #[test]
    fn x86_accepts_ids_above_255_only_where_they_lead_somewhere() {
        for (address, what) in [
            (0xfee0_1020, "bit 8, extended destination id"),
            (0xfeef_ffe8, "all bits of one, and redirection hint"),
            (0xfee0_0044, "logical destination, cluster 0"),
            (0x0000_0100_fee0_1000, "bit 8, x2APIC format"),
            (0x0010_0000_fee0_2004, "logical destination, cluster 16"),
            (0xffff_ff00_feef_f000, "all processors in x2APIC mode"),
        ] {
            assert!(valid(address, 0x31), "{what}");
            assert!(!valid_without(address), "{what}, without the feature");
        }
        assert!(valid_without(0xfeef_f00c), "255 is not above");
        assert!(!valid(0x0000_0100_fee0_1020, 0x31), "in both places, though they agree");
    }

    #[test]
    fn extended_ids_are_offered_where_they_are_taken() {
        for extended_destination_ids in [false, true] {
            let offered = Platform::X86_64 { extended_destination_ids }.features();
            assert_eq!(
                offered.contains(Features::EXTENDED_DESTINATION_ID),
                extended_destination_ids
            );
        }
        assert_eq!(Platform::Aarch64 { its_doorbell: 0 }.features(), Features::empty());
    }

    #[test]
    fn x86_refuses_the_rest() {
        assert!(!valid(0xfed0_0000, 0x31), "outside the interrupt range");
        assert!(!valid(0x1_fee0_0000, 0x31), "reserved address bits");
        assert!(!valid(0xfee0_1010, 0x31), "an entry of a remapping table");
        assert!(!valid(0xfee0_0000, 0x0f), "vector below 16");
        assert!(!valid(0xfee0_0000, 0x8031), "level triggered");
        assert!(!valid(0xfee0_0000, 0x231), "SMI");
        assert!(!valid(0xfee0_0000, 0x531), "INIT");
        assert!(!valid(0xfee0_0000, 0x1_0031), "reserved data bits");
    }

    #[test]
    fn arm64_accepts_the_doorbell_and_implies_the_device_id() {
        let platform = Platform::Aarch64 { its_doorbell: 0x0809_0040 };
        let message = GuestMessage { address: 0x0809_0040, data: 7 };
        let route = platform.route(FUNCTION, message).unwrap();
        assert_eq!(route.device_id, Some(8));
        assert!(platform.route(FUNCTION, GuestMessage { address: 0x0809_0044, data: 7 }).is_none());
    }
}
