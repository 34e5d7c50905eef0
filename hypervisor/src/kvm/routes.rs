//! Routes on KVM: `KVM_SET_GSI_ROUTING` and `KVM_IRQFD`.

use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_MAX_IRQ_ROUTES, KVM_MSI_VALID_DEVID,
    KvmIrqRouting, kvm_irq_routing_entry,
};
#[cfg(target_arch = "x86_64")]
use kvm_bindings::{KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE};
use kvm_ioctls::{Cap, VmFd};
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use crate::event;
use crate::routes::{Gsi, Route, RouteChange, Routes, RoutesError};

/// How often a signal that races with [`Routes::attach`] is followed up.
const ATTACH_ROUNDS: usize = 4;

/// Pins of KVM's I/O APIC.
#[cfg(target_arch = "x86_64")]
const PINS: u32 = 24;
/// Shared peripheral interrupts of a GIC, at most.
#[cfg(target_arch = "aarch64")]
const PINS: u32 = 988;

/// The routing table of one VM. All interrupt routes of the VM go through it, since KVM replaces the table as a whole.
#[derive(Debug)]
pub struct KvmRoutes {
    vm: Arc<VmFd>,
    table: Mutex<Table>,
}

/// The table as KVM is given it. A change costs what it changes, but for the copy of the whole that KVM takes.
#[derive(Debug)]
struct Table {
    free: Vec<Gsi>,
    /// The VMM's own, then one for each GSI that leads somewhere.
    entries: Vec<kvm_irq_routing_entry>,
    /// The first GSI for messages.
    first: u32,
    /// Where the entry of each GSI for messages is.
    places: Vec<Option<usize>>,
}

impl Table {
    fn new(own: Vec<kvm_irq_routing_entry>, gsis: Range<u32>) -> Self {
        let places: Vec<_> = gsis.clone().map(|_| None).collect();
        let mut entries = own;
        entries.reserve_exact(places.len());
        Self { first: gsis.start, free: gsis.rev().map(Gsi).collect(), entries, places }
    }

    fn place(&mut self, Gsi(gsi): Gsi) -> Option<&mut Option<usize>> {
        let index = usize::try_from(gsi.checked_sub(self.first)?).ok()?;
        self.places.get_mut(index)
    }

    /// Gives a GSI for messages another entry, or none; what it had.
    fn set(
        &mut self,
        gsi: Gsi,
        entry: Option<kvm_irq_routing_entry>,
    ) -> Option<kvm_irq_routing_entry> {
        let next = self.entries.len();
        let place = self.place(gsi)?;
        let Some(entry) = entry else {
            let at = place.take()?;
            let old = self.entries.swap_remove(at);
            // The last one is there now.
            if let Some(moved) = self.entries.get(at).map(|entry| Gsi(entry.gsi))
                && let Some(place) = self.place(moved)
            {
                *place = Some(at);
            }
            return Some(old);
        };
        match *place {
            Some(at) => self.entries.get_mut(at).map(|there| std::mem::replace(there, entry)),
            None => {
                *place = Some(next);
                self.entries.push(entry);
                None
            }
        }
    }

    /// Costs what is given back, however many routes the VM has: all functions of the VM wait for it.
    fn give_back(&mut self, gsis: &[Gsi]) {
        for &gsi in gsis {
            self.set(gsi, None);
        }
        self.free.extend(gsis.iter().rev());
    }
}

/// The routing table cannot be as the VMM wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KvmRoutesError {
    /// This kernel cannot do it.
    #[error("this KVM lacks {0}")]
    Missing(&'static str),
    /// Two owners of one GSI.
    #[error("GSI {0} is the VMM's own and in the range for messages as well")]
    Overlap(u32),
    /// More routes than KVM's table takes.
    #[error("{entries} routes are more than KVM's table takes, {limit}; give PV-MSI fewer GSIs")]
    TooLarge {
        /// Entries of the VMM and GSIs for messages together.
        entries: u64,
        /// KVM's limit (`KVM_CAP_IRQ_ROUTING`).
        limit: u64,
    },
}

impl KvmRoutes {
    /// Routes for the GSIs `gsis`, beside entries that the VMM needs for itself: the pins of the interrupt controllers, its own MSI routes. Those are part of every update, and nobody else may set the table: KVM replaces it as a whole. Nothing is installed yet.
    ///
    /// Where `gsis` has no end (`24..`) it has as many as KVM's table has room for beside `base`. When all are in use, guests are granted fewer vectors.
    ///
    /// ```no_run
    /// # use std::sync::Arc;
    /// # use pvmsi_hypervisor::KvmRoutes;
    /// # fn example(vm: Arc<kvm_ioctls::VmFd>) -> Result<KvmRoutes, pvmsi_hypervisor::KvmRoutesError> {
    /// KvmRoutes::new(vm, KvmRoutes::default_pins(24), 24..)
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`KvmRoutesError`].
    pub fn new(
        vm: Arc<VmFd>,
        base: Vec<kvm_irq_routing_entry>,
        gsis: impl RangeBounds<u32>,
    ) -> Result<Self, KvmRoutesError> {
        if !vm.check_extension(Cap::Irqfd) {
            return Err(KvmRoutesError::Missing("KVM_CAP_IRQFD"));
        }
        // As many as this program can hand over, where KVM takes more.
        let limit = u64::try_from(vm.check_extension_int(Cap::IrqRouting)).unwrap_or(0);
        let limit = limit.min(u64::try_from(KVM_MAX_IRQ_ROUTES).unwrap_or(u64::MAX));
        let gsis = fit(limit, &base, &gsis)?;
        Ok(Self { vm, table: Mutex::new(Table::new(base, gsis)) })
    }

    /// The routes of the first `pins` interrupt pins, as KVM itself installs them for the interrupt controllers that it emulates. For `base` of [`new`](Self::new): without them the VMM's own interrupts end with the first update.
    ///
    /// x86_64 (`KVM_CREATE_IRQCHIP`): GSI i is pin i of the I/O APIC, those below 16 of the PICs as well. There are 24; a split interrupt controller (`KVM_CAP_SPLIT_IRQCHIP`) has none in KVM.
    #[cfg(target_arch = "x86_64")]
    pub fn default_pins(pins: u32) -> Vec<kvm_irq_routing_entry> {
        let pic = |gsi: u32| match gsi {
            0..8 => Some(pin(gsi, KVM_IRQCHIP_PIC_MASTER, gsi)),
            8..16 => Some(pin(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi & 7)),
            _ => None,
        };
        let routes = |gsi| [Some(pin(gsi, KVM_IRQCHIP_IOAPIC, gsi)), pic(gsi)];
        (0..pins.min(PINS)).flat_map(routes).flatten().collect()
    }

    /// The routes of the first `pins` interrupt pins, as KVM itself installs them for the interrupt controllers that it emulates. For `base` of [`new`](Self::new): without them the VMM's own interrupts end with the first update.
    ///
    /// arm64: GSI i is the shared peripheral interrupt i, counted from 0 (INTID i + 32), of at most 988. Only irqfds of the VMM go by these routes; interrupts that it raises by `KVM_IRQ_LINE` do not, and need none.
    #[cfg(target_arch = "aarch64")]
    pub fn default_pins(pins: u32) -> Vec<kvm_irq_routing_entry> {
        (0..pins.min(PINS)).map(|gsi| pin(gsi, 0, gsi)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // A panic elsewhere cannot leave the table half changed: it is replaced as a whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Routes for KvmRoutes {
    fn allocate(&self, count: u16) -> Result<Vec<Gsi>, RoutesError> {
        let mut table = self.lock();
        let keep = table.free.len().saturating_sub(usize::from(count));
        let mut taken = table.free.split_off(keep);
        taken.reverse();
        if taken.is_empty() && count > 0 { Err(RoutesError::Exhausted) } else { Ok(taken) }
    }

    fn free(&self, gsis: &[Gsi]) {
        self.lock().give_back(gsis);
    }

    fn install(&self, changes: &[RouteChange]) -> Result<(), RoutesError> {
        let mut table = self.lock();
        let mut before = Vec::new();
        for &RouteChange { gsi, route } in changes {
            before.extend(table.set(gsi, Some(msi_entry(gsi, route))));
        }
        let installed = KvmIrqRouting::from_entries(&table.entries)
            .map_err(|_| RoutesError::Exhausted)
            .and_then(|entries| {
                self.vm.set_gsi_routing(&entries).map_err(kernel("KVM_SET_GSI_ROUTING"))
            });
        if installed.is_err() {
            for change in changes {
                table.set(change.gsi, None);
            }
            // The oldest of a GSI last.
            for entry in before.into_iter().rev() {
                table.set(Gsi(entry.gsi), Some(entry));
            }
        }
        installed
    }

    /// What KVM finds in an eventfd at the moment of `KVM_IRQFD` it raises from a work queue, some
    /// time after the request has returned: a guest could mask the vector in between. So what the
    /// event holds is taken out first, and signalled again once KVM waits for it. That too can end
    /// in the work queue (on arm64, before KVM has the translation in its cache). Detaching waits
    /// for the work, so one more round makes the promise of [`Routes::attach`] true; most attaches
    /// have nothing held and need none.
    fn attach(&self, event: &EventFd, gsi: Gsi) -> Result<(), RoutesError> {
        let register = || self.vm.register_irqfd(event, gsi.0).map_err(kernel("KVM_IRQFD"));
        follow_up(event, register, || self.detach(event, gsi))
    }

    fn detach(&self, event: &EventFd, gsi: Gsi) -> Result<(), RoutesError> {
        self.vm.unregister_irqfd(event, gsi.0).map_err(kernel("KVM_IRQFD (deassign)"))
    }
}

/// Attaches an event, and again where it is signalled meanwhile, a bounded number of times: each round binds the event
/// anew in the host's kernel, and it is the guest who has the device signal.
fn follow_up<E>(
    event: &EventFd,
    mut attach: impl FnMut() -> Result<(), E>,
    mut detach: impl FnMut() -> Result<(), E>,
) -> Result<(), E> {
    for _ in 0..ATTACH_ROUNDS {
        let held = event::drain(event);
        let attached = attach();
        if held {
            event::signal(event);
        }
        attached?;
        // Signalled since it was drained, and found by KVM in the event.
        let found = event::drain(event);
        if !held && !found {
            return Ok(());
        }
        if detach().is_err() {
            // Still attached, which is what was asked for.
            return Ok(());
        }
    }
    attach()
}

/// The GSIs for messages, checked against KVM's `limit` and the VMM's own entries.
fn fit(
    limit: u64,
    base: &[kvm_irq_routing_entry],
    gsis: &impl RangeBounds<u32>,
) -> Result<Range<u32>, KvmRoutesError> {
    if limit == 0 {
        return Err(KvmRoutesError::Missing("KVM_CAP_IRQ_ROUTING"));
    }
    let start = match gsis.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let own = u64::try_from(base.len()).unwrap_or(u64::MAX);
    let end = match gsis.end_bound() {
        Bound::Included(&last) => last.saturating_add(1),
        Bound::Excluded(&end) => end,
        Bound::Unbounded => {
            let room = u32::try_from(limit.saturating_sub(own)).unwrap_or(u32::MAX);
            start.saturating_add(room)
        }
    };
    let gsis = start..end.max(start);
    if let Some(entry) = base.iter().find(|entry| gsis.contains(&entry.gsi)) {
        return Err(KvmRoutesError::Overlap(entry.gsi));
    }
    let entries = own.saturating_add(u64::from(gsis.end.saturating_sub(gsis.start)));
    if entries > limit {
        return Err(KvmRoutesError::TooLarge { entries, limit });
    }
    Ok(gsis)
}

/// A GSI that is a pin of an interrupt controller of KVM's.
fn pin(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry =
        kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip.irqchip = irqchip;
    entry.u.irqchip.pin = pin;
    entry
}

fn kernel(operation: &'static str) -> impl Fn(kvm_ioctls::Error) -> RoutesError {
    move |error| RoutesError::Kernel {
        operation,
        source: io::Error::from_raw_os_error(error.errno()),
    }
}

fn msi_entry(gsi: Gsi, route: Route) -> kvm_irq_routing_entry {
    let Route { device_id, .. } = route;
    let message = route.kvm_message();
    let mut entry = kvm_irq_routing_entry {
        gsi: gsi.0,
        type_: KVM_IRQ_ROUTING_MSI,
        flags: if device_id.is_some() { KVM_MSI_VALID_DEVID } else { 0 },
        ..Default::default()
    };
    let [a0, a1, a2, a3, a4, a5, a6, a7] = message.address.to_le_bytes();
    entry.u.msi.address_lo = u32::from_le_bytes([a0, a1, a2, a3]);
    entry.u.msi.address_hi = u32::from_le_bytes([a4, a5, a6, a7]);
    entry.u.msi.data = message.data;
    entry.u.msi.__bindgen_anon_1.devid = device_id.unwrap_or(0);
    entry
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use pvmsi_protocol::GuestMessage;

    use super::*;

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_default_pins_are_kvms() {
        let pins = KvmRoutes::default_pins(PINS);
        let of = |chip| -> Vec<_> {
            // SAFETY: all entries are of the type that has these fields.
            let chips = pins.iter().map(|entry| (entry.gsi, unsafe { entry.u.irqchip }));
            chips.filter(|(_, at)| at.irqchip == chip).map(|(gsi, at)| (gsi, at.pin)).collect()
        };
        assert!(pins.iter().all(|entry| entry.type_ == KVM_IRQ_ROUTING_IRQCHIP));
        assert_eq!(pins.len(), 40);
        assert_eq!(of(KVM_IRQCHIP_IOAPIC), (0..24).map(|pin| (pin, pin)).collect::<Vec<_>>());
        assert_eq!(of(KVM_IRQCHIP_PIC_MASTER), (0..8).map(|pin| (pin, pin)).collect::<Vec<_>>());
        let slave = (8..16).zip(0..8).collect::<Vec<_>>();
        assert_eq!(of(KVM_IRQCHIP_PIC_SLAVE), slave);
        assert_eq!(KvmRoutes::default_pins(9).len(), 18);
        assert_eq!(KvmRoutes::default_pins(u32::MAX).len(), 40, "there are no more");
    }

    /// A device that signals in each of the moments that matter.
    #[test]
    fn a_device_that_never_rests_has_its_event_attached_a_bounded_number_of_times() {
        for (signals, expected) in [(0, 1), (1, 2), (usize::MAX, ATTACH_ROUNDS + 1)] {
            let event = event::new().unwrap();
            let (mut attaches, mut detaches) = (0, 0);
            let attach = || {
                if attaches < signals {
                    event::signal(&event);
                }
                attaches += 1;
                Ok::<_, RoutesError>(())
            };
            let detach = || {
                detaches += 1;
                Ok(())
            };
            follow_up(&event, attach, detach).unwrap();
            assert_eq!((attaches, detaches), (expected, expected - 1));
        }
    }

    /// A table much larger than KVM's, so that each route looked for among those given back takes minutes.
    #[test]
    fn giving_back_costs_what_is_given_back() {
        let message = GuestMessage { address: 0xfee0_0000, data: 0x31 };
        let route = Route { message, device_id: None };
        let mut table = Table::new(Vec::new(), 0..200_000);
        let mut all: Vec<_> = table.free.drain(..).collect();
        all.reverse();
        for &gsi in &all {
            assert!(table.set(gsi, Some(msi_entry(gsi, route))).is_none());
        }
        let (first, rest) = all.split_at(100_000);
        let start = Instant::now();
        table.give_back(first);
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        assert_eq!(routed(&table), rest);
        assert!(table.free.iter().rev().eq(first), "the first is the next to be taken");
    }

    /// The GSIs that lead somewhere, behind the VMM's own.
    fn routed(table: &Table) -> Vec<Gsi> {
        let mut gsis: Vec<_> = table.entries.iter().map(|entry| Gsi(entry.gsi)).collect();
        gsis.sort_unstable();
        gsis
    }

    #[test]
    fn an_entry_is_found_again_whatever_has_gone_beside_it() {
        let entry = |gsi, data| {
            let message = GuestMessage { address: 0xfee0_0000, data };
            msi_entry(gsi, Route { message, device_id: None })
        };
        // SAFETY: all entries here but the first are messages.
        let data = |entry: kvm_irq_routing_entry| unsafe { entry.u.msi.data };
        let mut table = Table::new(vec![pin(3, 0, 3)], 10..14);
        let [a, b, c, d] = [10, 11, 12, 13].map(Gsi);
        for gsi in [b, d, a] {
            assert!(table.set(gsi, Some(entry(gsi, gsi.0))).is_none());
        }
        assert_eq!(table.set(b, None).map(data), Some(11));
        assert!(table.set(b, None).is_none() && table.set(c, None).is_none());
        assert_eq!(table.set(a, Some(entry(a, 100))).map(data), Some(10), "it was moved");
        assert_eq!(table.set(d, Some(entry(d, 130))).map(data), Some(13));
        assert_eq!(routed(&table), [3, 10, 13].map(Gsi));
        assert!(table.set(Gsi(3), None).is_none(), "the VMM's own");
        assert!(table.set(Gsi(14), Some(entry(Gsi(14), 1))).is_none(), "nobody has it");
        assert_eq!(routed(&table), [3, 10, 13].map(Gsi));
    }

    #[test]
    fn the_range_must_fit_the_table_and_leave_the_vmms_own() {
        let base = [3, 4, 4, 23].map(|gsi| pin(gsi, 0, gsi));
        assert_eq!(fit(4096, &base, &(24..4096)), Ok(24..4096));
        assert_eq!(fit(4096, &base, &(24..4116)), Ok(24..4116));
        let too_large = |entries| Err(KvmRoutesError::TooLarge { entries, limit: 4096 });
        assert_eq!(fit(4096, &base, &(24..4117)), too_large(4097));
        assert_eq!(fit(4096, &base, &(24..=u32::MAX)), too_large(u64::from(u32::MAX) - 20));
        assert_eq!(fit(4096, &base, &(24..)), Ok(24..4116), "all that fits");
        assert_eq!(fit(4096, &base, &(5..)), Err(KvmRoutesError::Overlap(23)));
        assert_eq!(fit(4096, &base, &(..)), Err(KvmRoutesError::Overlap(3)));
        assert_eq!(fit(4096, &base, &(4..5)), Err(KvmRoutesError::Overlap(4)));
        assert_eq!(fit(4096, &base, &(5..23)), Ok(5..23));
        assert_eq!(fit(4096, &base, &(9..9)), Ok(9..9));
        assert_eq!(
            fit(3, &base, &(24..24)),
            Err(KvmRoutesError::TooLarge { entries: 4, limit: 3 })
        );
        assert_eq!(fit(0, &[], &(24..)), Err(KvmRoutesError::Missing("KVM_CAP_IRQ_ROUTING")));
    }
}
