//! A function's state as a value, for a model checker (feature `model`).
//!
//! The checker in `tests/model` explores the state machine that runs in
//! production: it puts a state into a [`Service`], lets the service act, and
//! takes the next state out. What lies behind the seams is the checker's own.
//!
//! Left out are the numbers that only grow (generation, counters, the log's
//! allowance): a checker reads them from [`Service::status`] before and after.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use pvmsi_protocol::{
    FunctionId, Generation, Kind, Sequence, TableMessage, TableMode, VectorSetup,
};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use crate::calls::Preparation;
use crate::counters::Counters;
use crate::event;
use crate::layout::BarIndex;
use crate::rate_limit::RateLimit;
use crate::routes::{Gsi, Route};
use crate::service::Service;
use crate::state::{FunctionState, MsixControl, Owner, Placement, Vector};

/// All that one function's state machine remembers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Snapshot {
    control: MsixControl,
    decoding: bool,
    full_power: bool,
    bars: [Option<u64>; BarIndex::COUNT],
    owner: Owner,
    vectors: Vec<VectorSnapshot>,
    set_up: usize,
    enabled: bool,
    mode: TableMode,
    preparation: Option<PreparationSnapshot>,
    revoked: bool,
    held: bool,
    unmappable: bool,
    owing: bool,
    stale: bool,
    paused: bool,
    migrated: bool,
    behind: bool,
    unshown: bool,
    unread: bool,
    leftover: bool,
    stuck: Vec<VectorSnapshot>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct VectorSnapshot {
    gsi: Option<Gsi>,
    installed: Option<Route>,
    attached: bool,
    table_message: Option<TableMessage>,
    blocked: bool,
    signalled: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PreparationSnapshot {
    sequence: Sequence,
    kind: Kind,
    requested: u16,
    setups: Vec<VectorSetup>,
    events: usize,
}

impl Snapshot {
    /// The mask bit that the service keeps for an assigned vector.
    pub fn masked(&self, vector: usize) -> Option<bool> {
        match &self.owner {
            Owner::Legacy(_) => None,
            Owner::Assigned(vectors) => vectors.get(vector).map(|vector| vector.masked),
        }
    }

    /// Whether the event of a vector holds a signal.
    pub fn signalled(&self, vector: usize) -> bool {
        self.vectors.get(vector).is_some_and(|vector| vector.signalled)
    }
}

impl Service {
    /// The state of a function; `None` when there is no such function.
    pub fn snapshot(&self, id: FunctionId) -> Option<Snapshot> {
        self.with(id, |state| state.snapshot())
    }

    /// Puts a function into a state that [`snapshot`](Self::snapshot) has given, on a thread that [keeps events](keep_events): generation and counters at zero. What is behind the seams must be put into the same state by the caller. `None` when there is no such function.
    ///
    /// # Errors
    /// When no event can be made.
    pub fn load(&self, id: FunctionId, snapshot: &Snapshot) -> Option<io::Result<()>> {
        self.with(id, |state| state.load(snapshot))
    }

    /// The file descriptors of the events of a function's vectors, in order.
    pub fn event_fds(&self, id: FunctionId) -> Vec<RawFd> {
        let fds = |state: &mut FunctionState| {
            state.vectors.iter().map(|vector| vector.event.as_raw_fd()).collect()
        };
        self.with(id, fds).unwrap_or_default()
    }
}

impl FunctionState {
    fn snapshot(&self) -> Snapshot {
        // All fields by name, so that a new one cannot be forgotten.
        let Self {
            id: _,
            platform: _,
            policy: _,
            isolation: _,
            layout: _,
            registers: _,
            window: _,
            function: _,
            routes: _,
            control,
            placement: Placement { decoding, full_power, bars },
            owner,
            vectors,
            set_up,
            enabled,
            mode,
            preparation,
            attempt: _,
            revoked,
            held,
            unmappable,
            owing,
            stale,
            paused,
            migrated,
            behind,
            unshown,
            unread,
            leftover,
            stuck,
            generation: _,
            counters: _,
            log: _,
        } = self;
        Snapshot {
            control: *control,
            decoding: *decoding,
            full_power: *full_power,
            bars: bars.map(|bar| bar.map(|GuestAddress(address)| address)),
            owner: owner.clone(),
            vectors: vectors.iter().map(VectorSnapshot::of).collect(),
            set_up: *set_up,
            enabled: *enabled,
            mode: *mode,
            preparation: preparation.as_ref().map(PreparationSnapshot::of),
            revoked: *revoked,
            held: *held,
            unmappable: *unmappable,
            owing: *owing,
            stale: *stale,
            paused: *paused,
            migrated: *migrated,
            behind: *behind,
            unshown: *unshown,
            unread: *unread,
            leftover: *leftover,
            stuck: stuck.iter().map(VectorSnapshot::of).collect(),
        }
    }

    fn load(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        let Snapshot {
            control,
            decoding,
            full_power,
            bars,
            owner,
            vectors,
            set_up,
            enabled,
            mode,
            preparation,
            revoked,
            held,
            unmappable,
            owing,
            stale,
            paused,
            migrated,
            behind,
            unshown,
            unread,
            leftover,
            stuck,
        } = snapshot;
        self.control = *control;
        self.placement = Placement {
            decoding: *decoding,
            full_power: *full_power,
            bars: bars.map(|bar| bar.map(GuestAddress)),
        };
        self.owner.clone_from(owner);
        // Making an eventfd costs more than all else here.
        let mut spare = SPARE.take();
        let old = self.vectors.drain(..).chain(self.stuck.drain(..));
        spare.extend(old.map(|vector| vector.event));
        for vector in vectors {
            self.vectors.push(vector.make(spare.pop())?);
        }
        for vector in stuck {
            self.stuck.push(vector.make(spare.pop())?);
        }
        spare.truncate(SPARES);
        SPARE.set(spare);
        self.set_up = *set_up;
        self.enabled = *enabled;
        self.mode = *mode;
        self.preparation = preparation.as_ref().map(PreparationSnapshot::make).transpose()?;
        self.revoked = *revoked;
        self.held = *held;
        self.unmappable = *unmappable;
        self.owing = *owing;
        self.stale = *stale;
        self.paused = *paused;
        self.migrated = *migrated;
        self.behind = *behind;
        self.unshown = *unshown;
        self.unread = *unread;
        self.leftover = *leftover;
        self.generation = Generation::default();
        self.counters = Counters::default();
        self.log = RateLimit::default();
        Ok(())
    }
}

impl VectorSnapshot {
    fn of(vector: &Vector) -> Self {
        // Both end with the call, where nothing is refused.
        let Vector { event, gsi, installed, attached, table_message, blocked, quiet: _, aside: _ } =
            vector;
        Self {
            gsi: *gsi,
            installed: *installed,
            attached: *attached,
            table_message: *table_message,
            blocked: *blocked,
            signalled: holds(event),
        }
    }

    fn make(&self, spare: Option<EventFd>) -> io::Result<Vector> {
        let event = spare.map_or_else(event::new, Ok)?;
        created(&event);
        if self.signalled {
            put(&event);
        }
        let Self { gsi, installed, attached, table_message, blocked, signalled: _ } = *self;
        let vector = Vector::new(event, gsi);
        Ok(Vector { installed, attached, table_message, blocked, ..vector })
    }
}

impl PreparationSnapshot {
    fn of(preparation: &Preparation) -> Self {
        let Preparation { sequence, kind, requested, setups, events } = preparation;
        Self {
            sequence: *sequence,
            kind: *kind,
            requested: *requested,
            setups: setups.clone(),
            // Nothing is attached to them and nothing signals them.
            events: events.len(),
        }
    }

    fn make(&self) -> io::Result<Preparation> {
        let Self { sequence, kind, requested, setups, events } = self;
        Ok(Preparation {
            sequence: *sequence,
            kind: *kind,
            requested: *requested,
            setups: setups.clone(),
            events: (0..*events).map(|_| event::new()).collect::<io::Result<_>>()?,
        })
    }
}

/// Keeps what events hold, in place of the kernel. Events are named by their file descriptors.
pub trait Events {
    /// A new event, which holds nothing.
    fn created(&self, event: RawFd);
    /// The service takes what the event holds. Others can act just before.
    fn take(&self, event: RawFd) -> bool;
    /// The service signals the event.
    fn put(&self, event: RawFd);
    /// Whether the event holds a signal; the checker asks, not the service.
    fn holds(&self, event: RawFd) -> bool;
}

/// Events that are kept for the next state, at most.
const SPARES: usize = 16;

thread_local! {
    static SPARE: Cell<Vec<EventFd>> = const { Cell::new(Vec::new()) };
    static EVENTS: RefCell<Option<Box<dyn Events>>> = const { RefCell::new(None) };
}

/// Sets who keeps what events hold, for services that this thread calls.
pub fn keep_events(events: Option<Box<dyn Events>>) {
    EVENTS.with(|place| *place.borrow_mut() = events);
}

fn keeper<T>(act: impl FnOnce(&dyn Events) -> T) -> Option<T> {
    EVENTS.with(|events| events.borrow().as_deref().map(act))
}

pub(crate) fn created(event: &EventFd) {
    let _ = keeper(|events| events.created(event.as_raw_fd()));
}

pub(crate) fn take(event: &EventFd) -> Option<bool> {
    keeper(|events| events.take(event.as_raw_fd()))
}

pub(crate) fn put(event: &EventFd) -> bool {
    keeper(|events| events.put(event.as_raw_fd())).is_some()
}

fn holds(event: &EventFd) -> bool {
    keeper(|events| events.holds(event.as_raw_fd())).unwrap_or(false)
}
