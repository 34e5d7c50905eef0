//! The real guest half against the real host half: what one writes the other must understand.

#![allow(clippy::unwrap_used)]

mod fixture;

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;

use fixture::*;
use pvmsi_guest::{
    BufferPage, CallBuffer, CallError, Client, Doorbell, FunctionId, MsiX, MsiXCapability,
    PciFunction, TableMode, VectorIndex, VectorUpdate, World,
};
use pvmsi_hypervisor::Policy;
use pvmsi_protocol::Reasons;
use vm_memory::{GuestAddress, GuestMemoryBackend};

/// Rings the service, and counts.
struct Bell<'g> {
    guest: &'g Guest,
    rings: Cell<u32>,
}

impl Doorbell for Bell<'_> {
    fn ring(&self, page: BufferPage) {
        self.rings.set(self.rings.get().saturating_add(1));
        self.guest.service.doorbell(&self.guest.memory, page.0).ok();
    }
}

/// The kernel's PCI layer.
struct Kernel<'g> {
    guest: &'g Guest,
    delivered: RefCell<Vec<u16>>,
}

impl PciFunction for &Kernel<'_> {
    fn id(&self) -> FunctionId {
        FUNCTION
    }

    fn read_config_u16(&self, offset: u16) -> u16 {
        let mut data = [0; 2];
        assert!(self.guest.router.config_read(FUNCTION, offset.into(), &mut data));
        u16::from_le_bytes(data)
    }

    fn read_config_u32(&self, offset: u16) -> u32 {
        self.guest.config_read(offset.into())
    }

    fn write_config_u16(&self, offset: u16, value: u16) {
        self.guest.config_write(offset.into(), &value.to_le_bytes());
    }

    fn deliver(&self, vector: VectorIndex) {
        self.delivered.borrow_mut().push(vector.0);
    }
}

/// Runs `act` with a client and an [`MsiX`] whose table is the function's memory: right while the table is direct.
fn with_msix(
    options: Options,
    act: impl FnOnce(&Guest, &Bell<'_>, Client<'_, &Bell<'_>>, MsiX<&Kernel<'_>>, &Kernel<'_>),
) {
    let guest = Guest::new(options);
    let bell = Bell { guest: &guest, rings: Cell::new(0) };
    let kernel = Kernel { guest: &guest, delivered: RefCell::default() };
    let page = guest.memory.get_host_address(GuestAddress(0x1_0000)).unwrap();
    // SAFETY: 64 KiB of RAM that only this buffer uses, at that guest physical address.
    let buffer = unsafe { CallBuffer::new(NonNull::new(page).unwrap(), 65536, 0x1_0000) }.unwrap();
    let client = Client::new(buffer, &bell, |_| {});
    let capability = MsiXCapability::find(&&kernel).unwrap();
    assert_eq!(u64::from(capability.table.offset), TABLE);
    let at = |offset: u64| {
        let offset = usize::try_from(offset).unwrap();
        // SAFETY: the offset lies inside the BAR's mapping.
        NonNull::new(unsafe { guest.bar.as_ptr().add(offset) }.cast()).unwrap()
    };
    // SAFETY: table and pending bit array of the function, mapped while `guest` lives.
    let msix = unsafe { MsiX::new(&kernel, capability, at(TABLE), Some(at(PENDING))) };
    act(&guest, &bell, client, msix, &kernel);
}

fn options(vectors: u16) -> Options {
    Options { vectors, ..Options::default() }
}

#[test]
fn two_thousand_vectors_take_one_call() {
    with_msix(options(2048), |guest, bell, mut client, msix, _| {
        client.negotiate().unwrap();
        bell.rings.set(0);
        let before = guest.status().counters;
        let enabled = msix.enable_with(Some(&mut client), 2048, |v| Some(message(v.0 ^ 1)));
        let spent = guest.status().counters.since(&before);
        assert_eq!(enabled, Ok(2048));
        assert_eq!((bell.rings.get(), spent.routing_updates, spent.interrupt_setups), (1, 1, 1));
        assert_eq!((msix.mode(), msix.reasons()), (TableMode::Direct, Reasons::empty()));
        guest.raise(7);
        assert_eq!(guest.interrupts(), NONE, "vectors start masked");
        assert!(msix.is_pending(VectorIndex(7)));
        let all = (0..2048).map(|v| VectorUpdate { vector: VectorIndex(v), message: message(v) });
        msix.set_many(Some(&mut client), all).unwrap();
        for vector in 0..2048 {
            msix.unmask(VectorIndex(vector)).unwrap();
        }
        assert_eq!(guest.interrupts(), [7]);
        let mut seen = 0_u16;
        client
            .query_vectors(FUNCTION, VectorIndex(0), 2048, |_, state| {
                assert!(state.assigned && !state.masked && !state.pending);
                seen = seen.saturating_add(1);
            })
            .unwrap();
        assert_eq!(seen, 2048);
        msix.disable();
        assert_eq!((guest.status().assigned, guest.is_direct()), (0, false));
    });
}

#[test]
fn an_affinity_change_moves_the_next_event() {
    with_msix(options(4), |guest, _, mut client, msix, _| {
        msix.enable(Some(&mut client), 4).unwrap();
        msix.set(Some(&mut client), VectorIndex(2), message(2)).unwrap();
        msix.unmask(VectorIndex(2)).unwrap();
        guest.raise(2);
        assert_eq!(guest.interrupts(), [2]);
        msix.set(Some(&mut client), VectorIndex(2), message(9)).unwrap();
        guest.raise(2);
        assert_eq!(guest.interrupts(), [9]);
    });
}

#[test]
fn an_event_held_at_the_switch_is_delivered_by_the_guest_half_once() {
    with_msix(options(4), |guest, _, mut client, msix, kernel| {
        // A driver before us has used the standard table and left an event behind.
        guest.control(ENABLE);
        guest.program(1, message(1));
        guest.mask(1);
        guest.raise(1);
        let setup = pvmsi_protocol::VectorSetup { message: Some(message(1)), masked: true };
        let answer =
            guest.configure_with(4, pvmsi_protocol::Sequence::START, &[setup, setup]).unwrap();
        assert_eq!(answer.pending(), [1]);
        // The type starts from the default, which drops what was left: nothing comes twice.
        msix.enable(Some(&mut client), 4).unwrap();
        msix.unmask(VectorIndex(1)).unwrap();
        assert_eq!(guest.interrupts(), NONE);
        assert!(kernel.delivered.borrow().is_empty());
    });
}

#[test]
fn resets_of_every_kind_are_survived() {
    with_msix(options(8), |guest, _, mut client, msix, _| {
        msix.enable_with(Some(&mut client), 8, |v| Some(message(v.0))).unwrap();
        msix.unmask(VectorIndex(1)).unwrap();
        let works = |guest: &Guest| {
            guest.raise(1);
            guest.raise(2);
            assert_eq!(guest.interrupts(), [1], "2 is masked");
        };
        guest.store(CONTROL, RESET);
        guest.interrupts();
        msix.after_reset(Some(&mut client), |_| None).unwrap();
        msix.unmask(VectorIndex(1)).unwrap();
        works(guest);
        guest.config_write(DEVICE_CONTROL, &0x8000_u16.to_le_bytes());
        msix.after_reset(Some(&mut client), |_| None).unwrap();
        works(guest);
        assert_eq!((msix.world(), msix.mode()), (World::Paravirtual, TableMode::Direct));
        guest.control(0);
        msix.after_reset(Some(&mut client), |v| Some(message(v.0))).unwrap();
        assert_eq!(msix.world(), World::Legacy, "somebody else has ended our ownership");
    });
}

#[test]
fn busy_is_repeated_until_it_is_done() {
    let bounded = Options { vectors_per_call: 16, ..options(300) };
    with_msix(bounded, |_, bell, mut client, msix, _| {
        assert_eq!(msix.enable(Some(&mut client), 300), Ok(300));
        // The last one finds all vectors ready.
        assert_eq!(bell.rings.get(), 300_u32.div_ceil(16) + 1);
    });
}

#[test]
fn the_guest_half_goes_on_without_what_it_does_not_get() {
    with_msix(Options { routes: 10, ..options(64) }, |_, _, mut client, msix, _| {
        assert_eq!(msix.enable(Some(&mut client), 64), Ok(10), "a short grant");
    });
    with_msix(Options { policy: Policy::Off, ..options(8) }, |_, _, mut client, msix, _| {
        assert_eq!(msix.enable(Some(&mut client), 8), Ok(8));
        assert_eq!((msix.world(), msix.refusal()), (World::Legacy, Some(CallError::NotSupported)));
    });
    with_msix(Options { isolated: false, ..options(8) }, |_, _, mut client, msix, _| {
        assert_eq!(msix.enable(Some(&mut client), 8), Ok(8));
        assert_eq!((msix.world(), msix.mode()), (World::Paravirtual, TableMode::Trapped));
        assert_eq!(msix.reasons(), Reasons::NO_ISOLATION);
    });
}
