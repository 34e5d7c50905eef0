//! What lies behind the seams: the function, KVM, the guest's memory map; and others who act while an operation is under way.
//!
//! Each call of a seam, and each look at an event, is an [`Access`]. An operation
//! is run once to see its accesses, and then again for each place where a device
//! or the other processor, acting just there, makes a difference.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pvmsi_hypervisor::model::Events;
use pvmsi_hypervisor::{
    Bar, BarIndex, BarMapping, Gsi, Isolation, Layout, PciFunction, RouteChange, Routes,
    RoutesError, View, Window,
};
use pvmsi_protocol::{FunctionId, TableMessage, TableMode, VectorIndex};
use vmm_sys_util::eventfd::EventFd;

use crate::VECTORS;
use crate::bugs::Bug;
use crate::hardware::{BAR_BYTES, Content, Effect, Entry, Hardware, PENDING, TABLE};
use crate::kernel::{self, GSIS, Kernel, Message};
use crate::rules::Rules;
use crate::violation::Violations;

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

/// Something that happens while an operation is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interference {
    /// The device raises an event.
    Raise(u8),
    /// The device raises an event at the very moment of an attach, which KVM may see twice.
    RaiseInAttach(u8),
    /// A message that was under way arrives.
    Arrive(u8),
    /// The other processor masks or unmasks a vector, by its mapping.
    SetMask(u8, bool),
}

/// A call of a seam or a look at an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    kind: Kind,
    /// The vector that is concerned; absent for all.
    vector: Option<u8>,
    mapped: bool,
    masked: [bool; VECTORS],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Look,
    Attach,
    Detach,
    Install,
    SetUp,
    SetMask,
    Mask,
    Message,
    SetMessage,
    Pending,
    Settle,
    Change,
    Show,
}

impl Access {
    /// Whether it makes a difference whether the device raises an event before or after.
    fn sees_event(&self, vector: u8) -> bool {
        let own = self.vector.is_none_or(|own| own == vector);
        own && !matches!(self.kind, Kind::Mask | Kind::Message | Kind::Show | Kind::Settle)
    }

    fn sees_arrival(&self, vector: u8) -> bool {
        let own = self.vector.is_none_or(|own| own == vector);
        let kinds =
            [Kind::Look, Kind::Attach, Kind::Detach, Kind::Install, Kind::SetUp, Kind::Settle];
        own && kinds.contains(&self.kind)
    }

    fn sees_mask(&self, vector: u8) -> bool {
        self.vector.is_none_or(|own| own == vector)
            && !matches!(self.kind, Kind::Message | Kind::SetMessage)
    }
}

/// Where in an operation something can happen that makes a difference.
pub fn interferences(
    accesses: &[Access],
    in_flight: &[Option<bool>; VECTORS],
    races: bool,
) -> Vec<(u16, Interference)> {
    let mut found = Vec::new();
    for (number, flying) in (0..).zip(in_flight) {
        let (mut event, mut arrival, mut mask) = (false, false, false);
        for (at, access) in (0..).zip(accesses) {
            // Before the first that sees it is as good as before the operation.
            if access.sees_event(number) {
                if event && flying.is_none() {
                    found.push((at, Interference::Raise(number)));
                }
                event = true;
                if races && access.kind == Kind::Attach {
                    found.push((at, Interference::RaiseInAttach(number)));
                }
            }
            if access.sees_arrival(number) {
                if arrival && flying.is_some() {
                    found.push((at, Interference::Arrive(number)));
                }
                arrival = true;
            }
            if access.sees_mask(number) {
                if mask && access.mapped {
                    let now = access.masked.get(usize::from(number)) == Some(&true);
                    found.push((at, Interference::SetMask(number, !now)));
                }
                mask = true;
            }
        }
    }
    found
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
    /// Interrupt set-ups.
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
            if self.signalled.contains(&event) {
                self.owed[vector] -= 1;
            } else {
                self.signalled.push(event);
            }
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
        let asleep = self.bug == Some(Bug::TableReadAsleep) && kind == Kind::SetMask;
        if asleep || !self.world.hardware.answers() {
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

    fn set_up(&mut self, events: &[&EventFd]) {
        self.access(Kind::SetUp, None);
        self.set_ups += 1;
        for vector in 0..VECTORS {
            self.arrive(vector);
        }
        self.events = events.iter().map(|event| event.as_raw_fd()).collect();
        self.world.hardware.set_up = u8::try_from(events.len()).unwrap_or(u8::MAX);
        for (vector, entry) in self.world.hardware.entries.iter_mut().enumerate() {
            entry.masked = vector >= events.len();
            if let Ok(own) = u8::try_from(vector)
                && !entry.masked
            {
                *entry = Entry { content: Content::Host(own), masked: false };
            }
        }
        for vector in 0..VECTORS {
            self.emit(vector);
        }
    }
}

/// Keeps what events hold.
pub struct Keeper(pub Shared);

impl Events for Keeper {
    fn created(&self, event: RawFd) {
        lock(&self.0).take(event);
    }

    fn take(&self, event: RawFd) -> bool {
        let mut live = lock(&self.0);
        let vector = live.vector_of(event);
        live.access(Kind::Look, vector);
        live.take(event)
    }

    fn put(&self, event: RawFd) {
        lock(&self.0).signalled.push(event);
    }

    fn holds(&self, event: RawFd) -> bool {
        lock(&self.0).signalled.contains(&event)
    }
}

/// The environment behind its lock.
pub fn lock(shared: &Shared) -> MutexGuard<'_, Live> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The *function* seam. The neighbour has one too, and nobody may call it.
pub struct Function {
    shared: Shared,
    layout: Layout,
    neighbour: Option<Hardware>,
}

impl Function {
    /// The function that is explored, or its neighbour.
    ///
    /// # Errors
    /// None: the layout is right.
    pub fn new(shared: Shared, neighbour: bool) -> anyhow::Result<Self> {
        let mut bars = [None; BarIndex::COUNT];
        bars[0] = Some(Bar { size: BAR_BYTES, is_64bit: false, prefetchable: false });
        let vectors = u16::try_from(VECTORS)?;
        let bar = BarIndex(0);
        let layout = Layout::new(bars, vectors, (bar, TABLE), (bar, PENDING), 4096)?;
        Ok(Self { shared, layout, neighbour: neighbour.then_some(Hardware::POWER_ON) })
    }

    /// The environment; `None` for the neighbour, which notes that it was touched.
    fn live(&self) -> Option<MutexGuard<'_, Live>> {
        let mut live = lock(&self.shared);
        if self.neighbour.is_none() {
            return Some(live);
        }
        if !live.neighbour {
            live.violations |= Violations::FOREIGN;
        }
        None
    }
}

/// The host's message for a vector.
fn table_message(content: Content) -> TableMessage {
    match content {
        Content::Nothing => TableMessage::default(),
        Content::Host(vector) => TableMessage { address: HOST_DOORBELL, data: u32::from(vector) },
        Content::Foreign => TableMessage { address: 0xfee0_0000, data: 0x31 },
    }
}

const HOST_DOORBELL: u64 = 0x1_0000_0000;

impl PciFunction for Function {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn isolation(&self) -> Isolation {
        let live = lock(&self.shared);
        if live.isolated || live.bug == Some(Bug::IsolationClaimed) {
            Isolation::Isolated
        } else {
            Isolation::NotIsolated("the model says so".to_owned())
        }
    }

    fn mappings(&self) -> io::Result<Vec<BarMapping>> {
        Ok(Vec::new())
    }

    fn set_up_interrupts(&mut self, events: &[&EventFd]) -> io::Result<()> {
        if let Some(mut live) = self.live() {
            live.set_up(events);
        }
        Ok(())
    }

    fn table_message(&mut self, vector: VectorIndex) -> io::Result<TableMessage> {
        let Some(mut live) = self.live() else { return Ok(table_message(Content::Host(0))) };
        let vector = live.table_access(Kind::Message, vector)?;
        Ok(table_message(live.world.hardware.entries[vector].content))
    }

    fn set_table_message(&mut self, vector: VectorIndex, message: TableMessage) -> io::Result<()> {
        let Some(mut live) = self.live() else { return Ok(()) };
        let vector = live.table_access(Kind::SetMessage, vector)?;
        let content = match u8::try_from(message.data) {
            Ok(own) if message.address == HOST_DOORBELL => Content::Host(own),
            _ => Content::Foreign,
        };
        live.world.hardware.entries[vector].content = content;
        Ok(())
    }

    fn masked(&mut self, vector: VectorIndex) -> io::Result<bool> {
        let Some(mut live) = self.live() else { return Ok(false) };
        let vector = live.table_access(Kind::Mask, vector)?;
        let wrong = live.bug == Some(Bug::MaskMisread);
        Ok(live.world.hardware.entries[vector].masked != wrong)
    }

    fn set_masked(&mut self, vector: VectorIndex, masked: bool) -> io::Result<()> {
        let Some(mut live) = self.live() else { return Ok(()) };
        let vector = live.table_access(Kind::SetMask, vector)?;
        if live.bug != Some(Bug::MaskIgnored) {
            live.world.hardware.entries[vector].masked = masked;
            live.emit(vector);
        }
        Ok(())
    }

    fn pending(&mut self, vector: VectorIndex) -> io::Result<bool> {
        let Some(mut live) = self.live() else { return Ok(false) };
        let vector = live.table_access(Kind::Pending, vector)?;
        Ok(live.world.hardware.pending[vector])
    }

    fn settle(&mut self) {
        let Some(mut live) = self.live() else { return };
        live.access(Kind::Settle, None);
        if live.bug == Some(Bug::SettleForgotten) {
            return;
        }
        for vector in 0..VECTORS {
            if live.world.hardware.entries[vector].masked {
                live.arrive(vector);
            }
        }
    }

    fn config_read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(hardware) = &self.neighbour {
            read_config(hardware, offset, data);
            return;
        }
        read_config(&lock(&self.shared).world.hardware, offset, data);
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) {
        if let Some(mut live) = self.live() {
            let mut effect = Effect::None;
            let resets = (offset..)
                .zip(data)
                .any(|(at, byte)| at == crate::hardware::DEVICE_CONTROL && byte & 0x80 != 0);
            if resets && live.world.map.bar.is_some() {
                live.violations |= Violations::MAPPING;
            }
            live.change(|hardware| {
                for (at, &byte) in (offset..).zip(data) {
                    if hardware.config_write_byte(at, byte) == Effect::TableLost {
                        effect = Effect::TableLost;
                    }
                }
            });
            if effect == Effect::TableLost {
                live.lose_table();
            }
        }
        if let Some(hardware) = &mut self.neighbour {
            for (at, &byte) in (offset..).zip(data) {
                hardware.config_write_byte(at, byte);
            }
        }
    }

    fn bar_read(&mut self, _: BarIndex, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn bar_write(&mut self, _: BarIndex, _: u64, _: &[u8]) {}

    fn reset(&mut self) -> io::Result<()> {
        if let Some(mut live) = self.live() {
            live.access(Kind::Change, None);
            live.reset_hardware();
        }
        Ok(())
    }
}

fn read_config(hardware: &Hardware, offset: u64, data: &mut [u8]) {
    for (at, byte) in (offset..).zip(data) {
        *byte = hardware.config_byte(at);
    }
}

/// The *window* seam.
pub struct MemoryMap {
    /// The environment.
    pub shared: Shared,
    /// Whether it is the neighbour's.
    pub neighbour: bool,
}

impl Window for MemoryMap {
    fn show(&mut self, view: &View) -> io::Result<()> {
        let mut live = lock(&self.shared);
        if self.neighbour {
            if !live.neighbour {
                live.violations |= Violations::FOREIGN;
            }
            return Ok(());
        }
        live.access(Kind::Show, None);
        let map = Map::of(view);
        live.world.map = match live.bug {
            Some(Bug::UnmapLate) if map.bar.is_none() => {
                let late = live.pending_map.replace(map);
                late.unwrap_or(live.world.map)
            }
            Some(Bug::MapForgotten) => Map { table: false, ..map },
            _ => map,
        };
        live.check_map();
        Ok(())
    }

    fn table_can_be_direct(&self) -> bool {
        true
    }
}

/// The *routes* seam.
pub struct RoutingTable(pub Shared);

impl Routes for RoutingTable {
    fn allocate(&self, count: u16) -> Result<Vec<Gsi>, RoutesError> {
        let mut live = lock(&self.0);
        let used = live.world.kernel.taken.iter().filter(|&&taken| taken).count();
        let left = live.routes.saturating_sub(used).min(usize::from(count));
        let mut gsis = Vec::new();
        for (index, taken) in live.world.kernel.taken.iter_mut().enumerate() {
            if gsis.len() < left && !std::mem::replace(taken, true) {
                gsis.push(kernel::gsi(index));
            }
        }
        if gsis.is_empty() { Err(RoutesError::Exhausted) } else { Ok(gsis) }
    }

    fn free(&self, gsis: &[Gsi]) {
        let mut live = lock(&self.0);
        for &gsi in gsis {
            let Some(index) = kernel::index(gsi) else { continue };
            let kept = live.bug == Some(Bug::RoutesKept) && index > 0;
            let kernel = &mut live.world.kernel;
            let in_use = kernel.routes[index].is_some();
            let freed = kept || std::mem::take(&mut kernel.taken[index]);
            if in_use || live.attached[index].is_some() || !freed {
                live.violations |= Violations::ROUTES;
            }
        }
    }

    fn install(&self, changes: &[RouteChange]) -> Result<(), RoutesError> {
        let mut live = lock(&self.0);
        live.access(Kind::Install, None);
        if live.neighbour {
            return Ok(());
        }
        live.updates += match live.bug {
            Some(Bug::RoutesOneByOne) => u32::try_from(changes.len()).unwrap_or(u32::MAX),
            _ => 1,
        };
        for RouteChange { gsi, route } in changes {
            let index = kernel::index(*gsi).filter(|&index| index > 0);
            let Some(index) = index else {
                live.violations |= Violations::FOREIGN;
                continue;
            };
            let message = route.and_then(|route| Message::of_route(&route, live.arm64, FUNCTION));
            if route.is_some() && message.is_none() {
                live.violations |= Violations::FOREIGN;
            }
            // KVM cannot untie what is attached to a route that is gone.
            if live.attached[index].is_some() && (route.is_none() || live.arm64) {
                live.violations |= Violations::ROUTES;
            }
            live.world.kernel.routes[index] = message;
        }
        Ok(())
    }

    fn attach(&self, event: &EventFd, gsi: Gsi) -> Result<(), RoutesError> {
        let mut live = lock(&self.0);
        if live.neighbour {
            return Ok(());
        }
        let vector = live.vector_of(event.as_raw_fd());
        let at = live.accesses.len();
        live.access(Kind::Attach, vector);
        let index = kernel::index(gsi).filter(|&index| index > 0);
        let Some(index) = index else {
            live.violations |= Violations::FOREIGN;
            return Ok(());
        };
        let twice = live.attached[index].is_some() || live.world.kernel.routes[index].is_none();
        if twice {
            live.violations |= Violations::ROUTES;
        }
        if live.bug == Some(Bug::AttachDrops) {
            live.take(event.as_raw_fd());
        }
        if live.bug == Some(Bug::AttachDoubles) && live.signalled.contains(&event.as_raw_fd()) {
            live.deliver(index);
        }
        live.attached[index] = Some(event.as_raw_fd());
        if live.bug != Some(Bug::AttachLate) {
            live.poll();
        }
        if let Some((place, Interference::RaiseInAttach(raised))) = live.interference
            && usize::from(place) == at
        {
            let raised = usize::from(raised);
            live.raise(raised);
            // The wake-up has taken the signal, and the look at the event saw it as well.
            if vector == Some(raised) && !live.world.hardware.pending[raised] {
                live.deliver(index);
            }
        }
        Ok(())
    }

    fn detach(&self, event: &EventFd, gsi: Gsi) -> Result<(), RoutesError> {
        let mut live = lock(&self.0);
        if live.neighbour {
            return Ok(());
        }
        let vector = live.vector_of(event.as_raw_fd());
        live.access(Kind::Detach, vector);
        let Some(index) = kernel::index(gsi).filter(|&index| index > 0) else {
            live.violations |= Violations::FOREIGN;
            return Ok(());
        };
        if live.bug == Some(Bug::DetachForgotten) {
            return Ok(());
        }
        if live.attached[index].take().is_none() {
            live.violations |= Violations::ROUTES;
        }
        Ok(())
    }
}
