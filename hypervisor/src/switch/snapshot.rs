//! A switch as a value, for a model checker (feature `model`).

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use pvmsi_protocol::{TableMessage, TableMode, VectorIndex};
use vmm_sys_util::eventfd::EventFd;

use super::guest::{Guest, Owner};
use super::host::{Debts, Host};
use super::set::VectorSet;
use super::tally::Tally;
use super::wires::{Vector, Wire};
use super::{Switch, World};
use crate::event;
use crate::event::keeper;

/// All that one function's state machine remembers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Snapshot {
    guest: Guest,
    host: Host,
    debts: Debts,
    vectors: Vec<VectorSnapshot>,
    ahead: Vec<Wire>,
    retired: Vec<VectorSnapshot>,
    changed: VectorSet,
    mode: TableMode,
    set_up: usize,
    enabled: bool,
    held: bool,
    blocked: VectorSet,
    quiet: VectorSet,
    spare: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct VectorSnapshot {
    wire: Wire,
    table_message: Option<TableMessage>,
    signalled: bool,
}

impl Snapshot {
    /// The mask bit that the service keeps for an assigned vector.
    pub fn masked(&self, vector: usize) -> Option<bool> {
        match &self.guest.owner {
            Owner::Legacy(_) => None,
            Owner::Assigned(vectors) => vectors.get(vector).map(|vector| vector.masked),
        }
    }

    /// GSIs that are taken only for an unfinished `configure`.
    pub fn prepared(&self) -> usize {
        let first = self.guest.unfinished.as_ref().map(|unfinished| unfinished.first);
        let vectors = first.map_or(0, |first| self.vectors.len().saturating_sub(first));
        vectors.saturating_add(self.ahead.len())
    }

    /// Whether a vector has a GSI.
    pub fn has_gsi(&self, vector: usize) -> bool {
        self.vectors.get(vector).is_some_and(|vector| vector.wire.gsi().is_some())
    }

    /// Whether the event of a vector holds a signal.
    pub fn signalled(&self, vector: usize) -> bool {
        self.vectors.get(vector).is_some_and(|vector| vector.signalled)
    }
}

/// Events that are kept for the next state, at most.
const SPARES: usize = 16;

thread_local! {
    static SPARE: Cell<Vec<EventFd>> = const { Cell::new(Vec::new()) };
}

impl Switch {
    pub(crate) fn snapshot(&self) -> Snapshot {
        // All fields by name, so that a new one cannot be forgotten.
        let Self { fixed: _, guest, host, world, debts, tally: _, pages: _, function: _ } = self;
        let World {
            mode,
            wires,
            set_up,
            enabled,
            held,
            blocked,
            quiet,
            // These end with the call, where nothing is refused.
            aside: _,
            attempt: _,
            spare,
        } = world;
        Snapshot {
            guest: guest.clone(),
            host: *host,
            debts: *debts,
            vectors: wires
                .first(wires.len())
                .map(|(_, vector)| VectorSnapshot::of(vector))
                .collect(),
            ahead: wires.ahead().collect(),
            retired: wires.retired().iter().map(VectorSnapshot::of).collect(),
            changed: wires.changed,
            mode: *mode,
            set_up: *set_up,
            enabled: *enabled,
            // Where to look first makes no difference.
            held: held.is_some(),
            blocked: *blocked,
            quiet: *quiet,
            // Nothing is attached to them and nothing signals them.
            spare: spare.len(),
        }
    }

    pub(crate) fn load(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        let Snapshot {
            guest,
            host,
            debts,
            vectors,
            ahead,
            retired,
            changed,
            mode,
            set_up,
            enabled,
            held,
            blocked,
            quiet,
            spare,
        } = snapshot;
        self.guest.clone_from(guest);
        self.host = *host;
        self.debts = *debts;
        // Making an eventfd costs more than all else here.
        let mut events = SPARE.take();
        self.world.wires.replace(
            |events| {
                let mut make = |of: &[VectorSnapshot]| -> io::Result<Vec<Vector>> {
                    of.iter().map(|vector| vector.make(events.pop())).collect()
                };
                Ok::<_, io::Error>((make(vectors)?, make(retired)?))
            },
            &mut events,
        )?;
        events.truncate(SPARES);
        SPARE.set(events);
        self.world.wires.set_ahead(ahead.iter().copied());
        self.world.wires.changed = *changed;
        self.world.mode = *mode;
        self.world.set_up = *set_up;
        self.world.enabled = *enabled;
        self.world.held = held.then_some(VectorIndex(0));
        self.world.blocked = *blocked;
        self.world.quiet = *quiet;
        self.world.spare = (0..*spare).map(|_| event::new()).collect::<io::Result<_>>()?;
        self.tally = Tally::default();
        Ok(())
    }

    /// The file descriptors of the events of the vectors, in order.
    pub(crate) fn event_fds(&self) -> Vec<RawFd> {
        let wires = &self.world.wires;
        wires.first(wires.len()).map(|(_, vector)| vector.event.as_raw_fd()).collect()
    }
}

impl VectorSnapshot {
    fn of(Vector { event, wire, table_message }: &Vector) -> Self {
        Self { wire: *wire, table_message: *table_message, signalled: keeper::holds(event) }
    }

    fn make(&self, spare: Option<EventFd>) -> io::Result<Vector> {
        let event = spare.map_or_else(event::new, Ok)?;
        keeper::created(&event);
        if self.signalled {
            keeper::put(&event);
        }
        let Self { wire, table_message, signalled: _ } = *self;
        Ok(Vector { event, wire, table_message })
    }
}
