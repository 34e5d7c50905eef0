//! Routes on KVM: `KVM_SET_GSI_ROUTING` and `KVM_IRQFD`.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KVM_MSI_VALID_DEVID, KvmIrqRouting, kvm_irq_routing_entry,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use crate::event;
use crate::routes::{Gsi, Route, RouteChange, Routes, RoutesError};

/// How often a signal that races with [`Routes::attach`] is followed up.
const ATTACH_ROUNDS: usize = 4;

/// The routing table of one VM. All interrupt routes of the VM go through it, since KVM replaces the table as a whole.
#[derive(Debug)]
pub struct KvmRoutes {
    vm: Arc<VmFd>,
    base: Vec<kvm_irq_routing_entry>,
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    free: Vec<Gsi>,
    routes: BTreeMap<Gsi, Route>,
}

impl KvmRoutes {
    /// Routes for the GSIs `gsis`, beside entries that the VMM needs for itself (the pins of the interrupt controllers), which are part of every update. Nothing is installed yet.
    pub fn new(vm: Arc<VmFd>, base: Vec<kvm_irq_routing_entry>, gsis: Range<u32>) -> Self {
        let free = gsis.rev().map(Gsi).collect();
        Self { vm, base, table: Mutex::new(Table { free, routes: BTreeMap::new() }) }
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
        let mut table = self.lock();
        for gsi in gsis {
            table.routes.remove(gsi);
        }
        table.free.extend(gsis.iter().rev());
    }

    fn install(&self, changes: &[RouteChange]) -> Result<(), RoutesError> {
        let mut table = self.lock();
        let mut routes = table.routes.clone();
        routes.extend(changes.iter().map(|RouteChange { gsi, route }| (*gsi, *route)));
        let entries: Vec<_> = self
            .base
            .iter()
            .copied()
            .chain(routes.iter().map(|(gsi, route)| msi_entry(*gsi, *route)))
            .collect();
        let entries = KvmIrqRouting::from_entries(&entries).map_err(|_| RoutesError::Exhausted)?;
        self.vm.set_gsi_routing(&entries).map_err(kernel("KVM_SET_GSI_ROUTING"))?;
        table.routes = routes;
        Ok(())
    }

    /// What KVM finds in an eventfd at the moment of `KVM_IRQFD` it raises from a work queue, some
    /// time after the request has returned: a guest could mask the vector in between. So what the
    /// event holds is taken out first, and signalled again once KVM waits for it. That too can end
    /// in the work queue (on arm64, before KVM has the translation in its cache). Detaching waits
    /// for the work, so one more round makes the promise of [`Routes::attach`] true; most attaches
    /// have nothing held and need none.
    fn attach(&self, event: &EventFd, gsi: Gsi) -> Result<(), RoutesError> {
        for _ in 0..ATTACH_ROUNDS {
            let held = event::drain(event);
            let attached = self.vm.register_irqfd(event, gsi.0).map_err(kernel("KVM_IRQFD"));
            if held {
                event::signal(event);
            }
            attached?;
            // Signalled since it was drained, and found by KVM in the event.
            let found = event::drain(event);
            if !held && !found {
                return Ok(());
            }
            if self.detach(event, gsi).is_err() {
                // Still attached, which is what was asked for.
                return Ok(());
            }
        }
        self.vm.register_irqfd(event, gsi.0).map_err(kernel("KVM_IRQFD"))
    }

    fn detach(&self, event: &EventFd, gsi: Gsi) -> Result<(), RoutesError> {
        self.vm.unregister_irqfd(event, gsi.0).map_err(kernel("KVM_IRQFD (deassign)"))
    }
}

fn kernel(operation: &'static str) -> impl Fn(kvm_ioctls::Error) -> RoutesError {
    move |error| RoutesError::Kernel {
        operation,
        source: io::Error::from_raw_os_error(error.errno()),
    }
}

fn msi_entry(gsi: Gsi, Route { message, device_id }: Route) -> kvm_irq_routing_entry {
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
