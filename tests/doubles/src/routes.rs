//! Routes that behave as KVM's, and keep what arrives in the guest.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};

use pvmsi_hypervisor::{Gsi, Route, RouteChange, Routes, RoutesError};
use pvmsi_protocol::GuestMessage;
use vmm_sys_util::eventfd::EventFd;

use crate::step::{Hook, Step, never};
use crate::sync::{Mutex, MutexGuard};

/// The first number that is not an input of an interrupt controller.
const FIRST_GSI: u32 = 24;

/// A routing table. An interrupt is delivered when an event that is attached has been signalled and
/// somebody looks, or the table changes: by the routes of before.
///
/// # Panics
/// What no service may do stops the test: to attach without a route or twice, to detach what is
/// not attached, to free what is attached or free.
pub struct RecordedRoutes {
    state: Mutex<State>,
    hook: Box<Hook>,
    /// Routes that are left.
    pub left: AtomicU16,
    /// How many the table takes where it takes fewer; 0: it takes all.
    pub room: AtomicUsize,
    /// An event that is signalled during its attach comes twice, as from KVM.
    pub doubles: AtomicBool,
}

#[derive(Default)]
struct State {
    next: u32,
    free: Vec<Gsi>,
    routes: BTreeMap<Gsi, Route>,
    attached: BTreeMap<Gsi, EventFd>,
    delivered: Vec<GuestMessage>,
    updates: u64,
}

impl RecordedRoutes {
    /// A table with room for so many routes. No step is refused.
    pub fn new(left: u16) -> Self {
        Self::with_hook(left, never)
    }

    /// The same; `hook` is asked before each step.
    pub fn with_hook(
        left: u16,
        hook: impl Fn(Step) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self {
            state: Mutex::new(State::default()),
            hook: Box::new(hook),
            left: AtomicU16::new(left),
            room: AtomicUsize::new(0),
            doubles: AtomicBool::new(false),
        }
    }

    /// What was delivered since the last look.
    pub fn delivered(&self) -> Vec<GuestMessage> {
        let mut state = self.lock();
        state.pump();
        std::mem::take(&mut state.delivered)
    }

    /// Delivers what has been signalled, as the kernel does at once.
    pub fn pump(&self) {
        self.lock().pump();
    }

    /// How many events are attached.
    pub fn attached(&self) -> usize {
        self.lock().attached.len()
    }

    /// Where attached events lead, whatever their GSIs. Routes that nothing is attached to lead nobody anywhere.
    pub fn led(&self) -> Vec<GuestMessage> {
        let state = self.lock();
        let mut all: Vec<_> = state.attached.keys().map(|gsi| state.message(*gsi)).collect();
        all.sort_unstable_by_key(|message| (message.address, message.data));
        all
    }

    /// How many GSIs lead somewhere.
    pub fn routed(&self) -> usize {
        self.lock().routes.len()
    }

    /// How many GSIs are taken.
    pub fn taken(&self) -> usize {
        let state = self.lock();
        usize::try_from(state.next).unwrap().saturating_sub(state.free.len())
    }

    /// How often the table was replaced.
    pub fn updates(&self) -> u64 {
        self.lock().updates
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn ask(&self, step: Step, operation: &'static str) -> Result<(), RoutesError> {
        (self.hook)(step).map_err(|source| RoutesError::Kernel { operation, source })
    }
}

impl State {
    fn pump(&mut self) {
        for (gsi, event) in &self.attached {
            // Each signal: a counter that merges them would hide an event that came twice.
            for _ in 0..event.read().unwrap_or(0) {
                self.delivered.push(self.message(*gsi));
            }
        }
    }

    fn message(&self, gsi: Gsi) -> GuestMessage {
        self.routes.get(&gsi).expect("attached before it was routed").message
    }
}

impl Routes for RecordedRoutes {
    fn allocate(&self, count: u16) -> Result<Vec<Gsi>, RoutesError> {
        (self.hook)(Step::Allocate).map_err(|_| RoutesError::Exhausted)?;
        let mut state = self.lock();
        let left = self.left.load(Ordering::SeqCst);
        let count = count.min(left);
        if count == 0 {
            return Err(RoutesError::Exhausted);
        }
        self.left.store(left.saturating_sub(count), Ordering::SeqCst);
        let gsis = (0..count).map(|_| {
            state.free.pop().unwrap_or_else(|| {
                let gsi = Gsi(FIRST_GSI.saturating_add(state.next));
                state.next = state.next.saturating_add(1);
                gsi
            })
        });
        Ok(gsis.collect())
    }

    fn free(&self, gsis: &[Gsi]) {
        if std::thread::panicking() {
            return;
        }
        let mut state = self.lock();
        for gsi in gsis {
            assert!(
                !state.attached.contains_key(gsi),
                "{gsi:?} is freed while an event is attached"
            );
            assert!(!state.free.contains(gsi), "{gsi:?} is freed twice");
            // It may stay in the kernel until the next update; here nobody can follow it any more.
            state.routes.remove(gsi);
        }
        state.free.extend(gsis);
        self.left.fetch_add(gsis.len().try_into().unwrap(), Ordering::SeqCst);
    }

    fn install(&self, changes: &[RouteChange]) -> Result<(), RoutesError> {
        self.ask(Step::Install, "routing update")?;
        let mut state = self.lock();
        state.pump();
        let mut routes = state.routes.clone();
        routes.extend(changes.iter().map(|RouteChange { gsi, route }| (*gsi, *route)));
        let room = self.room.load(Ordering::SeqCst);
        if room != 0 && routes.len() > room {
            return Err(RoutesError::Exhausted);
        }
        state.routes = routes;
        state.updates = state.updates.saturating_add(1);
        Ok(())
    }

    fn attach(&self, event: &EventFd, gsi: Gsi) -> Result<(), RoutesError> {
        let waited = is_signalled(event);
        self.ask(Step::Attach, "attach")?;
        let twice = self.doubles.load(Ordering::SeqCst) && !waited && is_signalled(event);
        let clone = event
            .try_clone()
            .map_err(|source| RoutesError::Kernel { operation: "eventfd", source })?;
        let mut state = self.lock();
        let message = state.message(gsi);
        // However often it was signalled before: one interrupt.
        if event.read().is_ok() {
            state.delivered.push(message);
            state.delivered.extend(twice.then_some(message));
        }
        let before = state.attached.insert(gsi, clone);
        assert!(before.is_none(), "{gsi:?} has two events");
        Ok(())
    }

    fn detach(&self, _: &EventFd, gsi: Gsi) -> Result<(), RoutesError> {
        self.ask(Step::Detach, "detach")?;
        let mut state = self.lock();
        state.pump();
        state.attached.remove(&gsi).expect("detached what is not attached");
        Ok(())
    }
}

fn is_signalled(event: &EventFd) -> bool {
    let signals = event.read().unwrap_or(0);
    if signals > 0 {
        event.write(signals).unwrap();
    }
    signals > 0
}

impl fmt::Debug for RecordedRoutes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordedRoutes").field("left", &self.left).finish_non_exhaustive()
    }
}
