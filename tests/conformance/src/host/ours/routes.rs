//! Interrupt routes that behave as KVM's, and record what arrives in the guest.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pvmsi_hypervisor::{Gsi, Route, RouteChange, Routes, RoutesError};
use pvmsi_protocol::GuestMessage;
use vmm_sys_util::eventfd::EventFd;

/// The first number that is not an input of an interrupt controller.
const FIRST_GSI: u32 = 24;

pub(super) struct RecordedRoutes(Mutex<State>);

struct State {
    limit: usize,
    taken: BTreeSet<Gsi>,
    routes: BTreeMap<Gsi, Route>,
    attached: BTreeMap<Gsi, EventFd>,
    delivered: Vec<GuestMessage>,
    updates: u64,
    /// The step from now that is refused; 0 is none.
    refuse: u32,
}

impl RecordedRoutes {
    pub(super) fn new(limit: u16) -> Self {
        Self(Mutex::new(State {
            limit: limit.into(),
            taken: BTreeSet::new(),
            routes: BTreeMap::new(),
            attached: BTreeMap::new(),
            delivered: Vec::new(),
            updates: 0,
            refuse: 0,
        }))
    }

    pub(super) fn delivered(&self) -> Vec<GuestMessage> {
        let mut state = self.state();
        state.pump();
        std::mem::take(&mut state.delivered)
    }

    pub(super) fn updates(&self) -> u64 {
        self.state().updates
    }

    pub(super) fn taken(&self) -> u64 {
        self.state().taken.len() as u64
    }

    pub(super) fn refuse(&self, step: u32) {
        self.state().refuse = step;
    }

    pub(super) fn refusal_is_due(&self) -> bool {
        self.state().refuse != 0
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Delivers what was signalled, by the routes of this moment.
    fn pump(&mut self) {
        for (gsi, event) in &self.attached {
            let Ok(signals) = event.read() else { continue };
            if let Some(route) = self.routes.get(gsi) {
                self.delivered.extend((0..signals).map(|_| route.message));
            }
        }
    }

    fn step(&mut self) -> Result<(), RoutesError> {
        let refused = self.refuse == 1;
        self.refuse = self.refuse.saturating_sub(1);
        if refused { Err(refusal("asked to refuse")) } else { Ok(()) }
    }
}

fn refusal(why: &'static str) -> RoutesError {
    RoutesError::Kernel { operation: "recorded routes", source: io::Error::other(why) }
}

impl Routes for RecordedRoutes {
    fn allocate(&self, count: u16) -> Result<Vec<Gsi>, RoutesError> {
        let mut state = self.state();
        let left = state.limit.saturating_sub(state.taken.len()).min(count.into());
        let free = (FIRST_GSI..).map(Gsi).filter(|gsi| !state.taken.contains(gsi));
        let gsis: Vec<_> = free.take(left).collect();
        state.taken.extend(&gsis);
        if gsis.is_empty() { Err(RoutesError::Exhausted) } else { Ok(gsis) }
    }

    fn free(&self, gsis: &[Gsi]) {
        let mut state = self.state();
        for gsi in gsis {
            state.taken.remove(gsi);
            state.routes.remove(gsi);
        }
    }

    fn install(&self, changes: &[RouteChange]) -> Result<(), RoutesError> {
        let mut state = self.state();
        state.step()?;
        state.pump();
        state.updates = state.updates.saturating_add(1);
        state.routes.extend(changes.iter().map(|RouteChange { gsi, route }| (*gsi, *route)));
        Ok(())
    }

    fn attach(&self, event: &EventFd, gsi: Gsi) -> Result<(), RoutesError> {
        let mut state = self.state();
        state.step()?;
        let event = event.try_clone().map_err(|_| refusal("no file descriptor left"))?;
        // However often it was signalled before: one interrupt.
        if event.read().is_ok()
            && let Some(route) = state.routes.get(&gsi).copied()
        {
            state.delivered.push(route.message);
        }
        state.attached.insert(gsi, event);
        Ok(())
    }

    fn detach(&self, _: &EventFd, gsi: Gsi) -> Result<(), RoutesError> {
        let mut state = self.state();
        state.step()?;
        state.pump();
        state.attached.remove(&gsi);
        Ok(())
    }
}
