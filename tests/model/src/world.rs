//! What lies behind the seams: the function, KVM, the guest's memory map; and others who act while an operation is under way.
//!
//! Each call of a seam, and each look at an event, is an [`Access`]. An operation
//! is run once to see its accesses, and then again for each place where a device
//! or the other processor, acting just there, makes a difference.

mod interference;
mod seams;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pvmsi_hypervisor::View;
use pvmsi_protocol::{FunctionId, TableMode, VectorIndex};
use vmm_sys_util::eventfd::EventFd;

use crate::VECTORS;
use crate::bugs::Bug;
use crate::hardware::{Content, Entry, Hardware};
use crate::kernel::{GSIS, Kernel, Message};
use crate::rules::Rules;
use crate::violation::Violations;

use self::interference::Kind;
pub use self::interference::{Access, Interference, interferences};
pub use self::seams::{Function, Keeper, MemoryMap, RoutingTable};

/// The guest's memory map, as far as the function is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Map {
    /// Where the BAR's pages are.
    pub bar: Option<u64>,
    /// Whether the table's pages are there too.
    pub table: bool,
}

impl Map {
    const NOTHING: Self = Self { bar: None, table: false };

    fn of(view: &View) -> Self {
        let bar = view.bars.first().copied().flatten().map(|address| address.0);
        Self { bar, table: bar.is_some() && view.table == TableMode::Direct }
    }
}

/// The part of the environment that is a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// The function.
    pub hardware: Hardware,
    /// KVM.
    pub kernel: Kernel,
    /// What the guest has mapped.
    pub map: Map,
}

impl World {
    /// After power-on.
    pub fn power_on() -> Self {
        Self { hardware: Hardware::POWER_ON, kernel: Kernel::default(), map: Map::NOTHING }
    }
}

/// The environment while an operation is under way.
#[derive(Debug)]
pub struct Live {
    /// The state.
    pub world: World,
    /// What the guest and the host have asked for before the operation.
    pub before: Rules,
    /// And what they will have after it.
    pub after: Rules,
    /// Events that are owed, as of now.
    pub owed: [u8; VECTORS],
    /// What was broken.
    pub violations: Violations,
    /// The accesses so far.
    pub accesses: Vec<Access>,
    /// What shall happen, and before which access.
    pub interference: Option<(u16, Interference)>,
    /// Mask bits that the other processor has written meanwhile.
    pub written: [Option<bool>; VECTORS],
    /// Routing updates.
    pub updates: u32,
    /// Interrupt set-ups, and requests that set or clear the function's own MSI-X Enable.
    pub set_ups: u32,
    /// Events that hold a signal, by their file descriptors as all events here.
    pub signalled: Vec<RawFd>,
    /// Events of the vectors that are set up.
    events: Vec<RawFd>,
    attached: [Option<RawFd>; GSIS],
    /// Messages that may be delivered at this moment, a bit each.
    allowed: u8,
    /// The neighbour is being set up.
    pub neighbour: bool,
    arm64: bool,
    isolated: bool,
    routes: usize,
    bug: Option<Bug>,
    pending_map: Option<Map>,
}

/// The environment, shared by the seams of a function.
pub type Shared = Arc<Mutex<Live>>;

/// The function that is explored.
pub const FUNCTION: FunctionId = FunctionId(0x0008);
/// Its neighbour.
pub const NEIGHBOUR: FunctionId = FunctionId(0x0010);

impl Live {
    /// An environment at power-on.
    pub fn new(arm64: bool, isolated: bool, routes: usize, bug: Option<Bug>) -> Self {
        Self {
            world: World::power_on(),
            before: Rules::POWER_ON,
            after: Rules::POWER_ON,
            owed: [0; VECTORS],
            violations: Violations::empty(),
            accesses: Vec::new(),
            interference: None,
            written: [None; VECTORS],
            updates: 0,
            set_ups: 0,
            signalled: Vec::new(),
            events: Vec::new(),
            attached: [None; GSIS],
            allowed: 0,
            neighbour: false,
            arm64,
            isolated,
            routes,
            bug,
            pending_map: None,
        }
    }

    /// Puts a state in. What the events hold, the service puts in itself.
    pub fn load(&mut self, world: &World, rules: &Rules, fds: &[RawFd]) {
        self.world.clone_from(world);
        self.attached = world
            .kernel
            .attached
            .map(|vector| vector.and_then(|vector| fds.get(usize::from(vector)).copied()));
        self.events.clear();
        self.events.extend(fds.iter().take(usize::from(world.hardware.set_up)));
        self.owed = rules.owed;
        self.violations = Violations::empty();
        self.pending_map = None;
        self.begin(rules, rules);
    }

    /// Between two states events are nobody's: what is loaded into them goes nowhere.
    pub fn forget(&mut self) {
        self.signalled.clear();
        self.events.clear();
        self.attached = Default::default();
    }

    /// An operation begins.
    pub fn begin(&mut self, before: &Rules, after: &Rules) {
        self.before.clone_from(before);
        self.after.clone_from(after);
        self.accesses.clear();
        self.interference = None;
        self.written = [None; VECTORS];
        self.updates = 0;
        self.set_ups = 0;
        self.allowed = 0;
        self.allow();
    }

    /// What may fire before or after the operation may fire during it.
    pub fn allow(&mut self) {
        for vector in 0..VECTORS {
            for rules in [&self.before, &self.after] {
                if let Some(Message(message)) = rules.may_fire(vector) {
                    self.allowed |= 1 << message;
                }
            }
        }
    }

    /// Names events by their vectors, now that the operation is over.
    pub fn settle_names(&mut self, fds: &[RawFd]) {
        let named = |event: RawFd| fds.iter().position(|&other| other == event);
        for (vector, event) in self.events.iter().enumerate() {
            if named(*event) != Some(vector) {
                // Signals nobody's event.
                self.violations |= Violations::LOST;
            }
        }
        for gsi in 0..GSIS {
            let vector = self.attached[gsi].map(named);
            if vector == Some(None) {
                self.violations |= Violations::ROUTES;
            }
            self.world.kernel.attached[gsi] =
                vector.flatten().and_then(|vector| u8::try_from(vector).ok());
        }
    }

    /// The device raises an event.
    pub fn raise(&mut self, vector: usize) {
        if !self.world.hardware.full_power {
            return;
        }
        if !std::mem::replace(&mut self.world.hardware.pending[vector], true) {
            self.owed[vector] += 1;
        }
        self.emit(vector);
    }

    /// The same, but the message stays under way.
    pub fn raise_late(&mut self, vector: usize) {
        self.owed[vector] += 1;
        self.world.hardware.in_flight[vector] = Some(!self.before.masked[vector]);
    }

    /// A message that is under way arrives.
    pub fn arrive(&mut self, vector: usize) {
        let Some(unmasked) = self.world.hardware.in_flight[vector].take() else { return };
        if unmasked {
            // It was under way when the vector was masked: it may still arrive (G-522), by an
            // attach as well that comes later in the same operation.
            for rules in [&self.before, &self.after] {
                if rules.enable
                    && !rules.function_mask
                    && let Some(Message(message)) = rules.messages[vector]
                {
                    self.allowed |= 1 << message;
                }
            }
        }
        self.signal(vector);
    }

    /// The other processor writes a mask bit by its mapping.
    pub fn set_mask_by_mapping(&mut self, vector: usize, masked: bool) {
        if !self.world.map.table {
            return;
        }
        self.written[vector] = Some(masked);
        if self.before.assigned > 0 {
            self.before.masked[vector] = masked;
        }
        if self.after.assigned > 0 {
            self.after.masked[vector] = masked;
        }
        self.allow();
        self.world.hardware.entries[vector].masked = masked;
        self.emit(vector);
    }

    fn emit(&mut self, vector: usize) {
        let hardware = &mut self.world.hardware;
        if !hardware.pending[vector] || !hardware.would_emit(vector) {
            return;
        }
        hardware.pending[vector] = false;
        if let Content::Host(own) = hardware.entries[vector].content {
            self.signal(usize::from(own));
        }
    }

    fn signal(&mut self, vector: usize) {
        if let Some(&event) = self.events.get(vector) {
            self.hold(event);
        }
    }

    /// Signals an event. Two signals that nobody has taken are one.
    fn hold(&mut self, event: RawFd) {
        if !self.signalled.contains(&event) {
            self.signalled.push(event);
        } else if let Some(vector) = self.vector_of(event) {
            self.owed[vector] -= 1;
        }
        self.poll();
    }

    /// Takes what an event holds.
    fn take(&mut self, event: RawFd) -> bool {
        let at = self.signalled.iter().position(|&other| other == event);
        at.map(|at| self.signalled.swap_remove(at)).is_some()
    }

    /// KVM takes what attached events hold.
    fn poll(&mut self) {
        for gsi in 0..GSIS {
            if self.attached[gsi].is_some_and(|event| self.take(event)) {
                self.deliver(gsi);
            }
        }
    }

    fn deliver(&mut self, gsi: usize) {
        let Some(message) = self.world.kernel.routes[gsi] else {
            self.violations |= Violations::LOST;
            return;
        };
        if self.allowed & (1 << message.0) == 0 {
            self.violations |= Violations::MASKED;
        }
        match self.owed[message.vector()].checked_sub(1) {
            Some(left) => self.owed[message.vector()] = left,
            None => self.violations |= Violations::DOUBLED,
        }
    }

    /// Something is about to happen: whoever acts in between acts now.
    fn access(&mut self, kind: Kind, vector: Option<usize>) {
        if self.neighbour {
            return;
        }
        let at = self.accesses.len();
        self.accesses.push(Access {
            kind,
            vector: vector.and_then(|vector| u8::try_from(vector).ok()),
            mapped: self.world.map.table,
            masked: self.world.hardware.entries.map(|entry| entry.masked),
        });
        match self.interference.filter(|(place, _)| usize::from(*place) == at) {
            Some((_, Interference::Raise(vector))) => self.raise(usize::from(vector)),
            Some((_, Interference::Arrive(vector))) => self.arrive(usize::from(vector)),
            Some((_, Interference::SetMask(vector, masked))) => {
                self.set_mask_by_mapping(usize::from(vector), masked);
            }
            Some((_, Interference::RaiseInAttach(_))) | None => {}
        }
    }

    /// An access to the table or the pending bits.
    fn table_access(&mut self, kind: Kind, vector: VectorIndex) -> io::Result<usize> {
        let vector = vector.as_usize();
        self.access(kind, Some(vector));
        if !self.world.hardware.answers() {
            self.violations |= Violations::TOUCHED;
        }
        if vector < VECTORS { Ok(vector) } else { Err(io::Error::other("no such vector")) }
    }

    /// The vector of an event, while an operation is under way.
    fn vector_of(&self, fd: RawFd) -> Option<usize> {
        self.events.iter().position(|&other| other == fd)
    }

    /// No page may be mapped that the function does not answer on.
    fn check_map(&mut self) {
        let Hardware { bar, .. } = self.world.hardware;
        let answered = self.world.hardware.answers().then_some(u64::from(bar));
        if self.world.map.bar.is_some() && self.world.map.bar != answered {
            self.violations |= Violations::MAPPING;
        }
        if self.world.map.table && !self.isolated {
            self.violations |= Violations::MODE;
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut Hardware)) {
        self.access(Kind::Change, None);
        let before = (self.world.hardware.answers(), self.world.hardware.bar);
        change(&mut self.world.hardware);
        if before != (self.world.hardware.answers(), self.world.hardware.bar) {
            self.check_map();
        }
    }

    fn reset_hardware(&mut self) {
        if self.world.map.bar.is_some() {
            self.violations |= Violations::MAPPING;
        }
        self.lose_table();
    }

    /// What the function itself held is gone.
    pub fn lose_table(&mut self) {
        let waited = self.world.hardware.pending;
        self.world.hardware.reset();
        for (owed, waited) in self.owed.iter_mut().zip(waited) {
            *owed -= u8::from(waited);
        }
    }

    fn set_enabled(&mut self, enabled: bool) {
        if enabled == self.world.hardware.enabled {
            self.access(Kind::SetUp, None);
            self.set_ups += 1;
            return;
        }
        if !enabled && self.before.enable && self.after.enable {
            // The function notices even a moment without.
            self.violations |= Violations::ENABLE;
        }
        self.set_up(0, &[]);
        if self.bug != Some(Bug::EnableForgotten) {
            self.world.hardware.enabled = enabled;
        }
    }

    fn set_up(&mut self, first: usize, events: &[&EventFd]) {
        self.access(Kind::SetUp, None);
        self.set_ups += 1;
        self.world.hardware.enabled |= !events.is_empty();
        for vector in first..VECTORS {
            self.arrive(vector);
        }
        self.events.truncate(first);
        self.events.extend(events.iter().map(|event| event.as_raw_fd()));
        self.world.hardware.set_up = u8::try_from(self.events.len()).unwrap_or(u8::MAX);
        for (vector, entry) in self.world.hardware.entries.iter_mut().enumerate().skip(first) {
            entry.masked = vector >= self.events.len();
            if let Ok(own) = u8::try_from(vector)
                && !entry.masked
            {
                *entry = Entry { content: Content::Host(own), masked: false };
            }
        }
        for vector in first..VECTORS {
            self.emit(vector);
        }
    }
}

/// The environment behind its lock.
pub fn lock(shared: &Shared) -> MutexGuard<'_, Live> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
