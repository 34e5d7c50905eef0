//! In place of KVM: events of vectors go where their routes lead, and are counted there.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pvmsi_hypervisor::{Gsi, RouteChange, Routes, RoutesError};
use pvmsi_protocol::GuestMessage;
use vmm_sys_util::eventfd::EventFd;

/// The routes of the one function, in user space.
#[derive(Default)]
pub(crate) struct Events(Mutex<State>);

#[derive(Default)]
struct State {
    next: u32,
    routes: BTreeMap<u32, GuestMessage>,
    attached: BTreeMap<u32, EventFd>,
    /// Events that came, by the data of their messages, since they were taken last.
    arrived: BTreeMap<u32, u64>,
    /// Events that had no route.
    astray: u64,
}

impl Events {
    /// How often this message came since it was asked for last.
    pub(crate) fn take(&self, message: GuestMessage) -> u64 {
        let mut state = self.state();
        state.collect();
        state.arrived.remove(&message.data).unwrap_or(0)
    }

    /// Events that led nowhere.
    pub(crate) fn astray(&self) -> u64 {
        self.state().astray
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Delivers what attached events hold.
    fn collect(&mut self) {
        let signals: Vec<_> =
            self.attached.iter().map(|(&gsi, event)| (gsi, event.read().unwrap_or(0))).collect();
        for (gsi, count) in signals {
            self.deliver(gsi, count);
        }
    }

    fn deliver(&mut self, gsi: u32, count: u64) {
        if count == 0 {
            return;
        }
        let place = match self.routes.get(&gsi) {
            Some(message) => self.arrived.entry(message.data).or_default(),
            None => &mut self.astray,
        };
        *place = place.saturating_add(count);
    }
}

impl Routes for Events {
    fn allocate(&self, count: u16) -> Result<Vec<Gsi>, RoutesError> {
        let mut state = self.state();
        let first = state.next;
        state.next = first.saturating_add(u32::from(count));
        Ok((first..state.next).map(Gsi).collect())
    }

    fn free(&self, gsis: &[Gsi]) {
        let mut state = self.state();
        for gsi in gsis {
            state.routes.remove(&gsi.0);
        }
    }

    fn install(&self, changes: &[RouteChange]) -> Result<(), RoutesError> {
        let mut state = self.state();
        // What was signalled before goes the old way.
        state.collect();
        for change in changes {
            state.routes.insert(change.gsi.0, change.route.message);
        }
        Ok(())
    }

    fn attach(&self, event: &EventFd, gsi: Gsi) -> Result<(), RoutesError> {
        let failed = |source: io::Error| RoutesError::Kernel { operation: "dup", source };
        let event = event.try_clone().map_err(failed)?;
        let mut state = self.state();
        // Whatever it holds is one interrupt.
        let held = event.read().unwrap_or(0).min(1);
        state.deliver(gsi.0, held);
        state.attached.insert(gsi.0, event);
        Ok(())
    }

    fn detach(&self, _: &EventFd, gsi: Gsi) -> Result<(), RoutesError> {
        let mut state = self.state();
        if let Some(event) = state.attached.remove(&gsi.0) {
            let before = event.read().unwrap_or(0);
            state.deliver(gsi.0, before);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use pvmsi_hypervisor::Route;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    #[test]
    fn events_go_where_they_led_when_they_came() {
        let events = Events::default();
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let gsi = events.allocate(1).unwrap()[0];
        let message = |data| GuestMessage { address: 0xfee0_0000, data };
        let route =
            |data| RouteChange { gsi, route: Route { message: message(data), device_id: None } };
        event.write(2).unwrap();
        events.install(&[route(7)]).unwrap();
        assert_eq!(events.take(message(7)), 0, "it is held");
        events.attach(&event, gsi).unwrap();
        assert_eq!(events.take(message(7)), 1);
        event.write(2).unwrap();
        events.install(&[route(8)]).unwrap();
        event.write(1).unwrap();
        assert_eq!((events.take(message(7)), events.take(message(8))), (2, 1));
        event.write(1).unwrap();
        events.detach(&event, gsi).unwrap();
        event.write(1).unwrap();
        assert_eq!(events.take(message(8)), 1, "the second is held");
        events.free(&[gsi]);
        events.attach(&event, gsi).unwrap();
        assert_eq!((events.take(message(8)), events.astray()), (0, 1));
    }
}
