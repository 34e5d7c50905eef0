//! The seams of the service, with the environment behind them.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::MutexGuard;

use pvmsi_hypervisor::model::Events;
use pvmsi_hypervisor::{
    Bar, BarIndex, BarMapping, Gsi, Isolation, Layout, PciFunction, RouteChange, Routes,
    RoutesError, SetUpError, TableError, VectorTable, View, Window,
};
use pvmsi_protocol::{TableMessage, VectorIndex};
use vmm_sys_util::eventfd::EventFd;

use super::interference::{Interference, Kind};
use super::{FUNCTION, Live, Map, Shared, lock};
use crate::VECTORS;
use crate::bugs::Bug;
use crate::hardware::{BAR_BYTES, Content, Effect, Hardware, PENDING, POWER, TABLE};
use crate::kernel::{self, Message};
use crate::violation::Violations;

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
        lock(&self.0).hold(event);
    }

    fn holds(&self, event: RawFd) -> bool {
        lock(&self.0).signalled.contains(&event)
    }
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

    fn set_enabled(&mut self, enabled: bool) -> Result<(), SetUpError> {
        if let Some(mut live) = self.live() {
            live.set_enabled(enabled);
        }
        Ok(())
    }

    fn set_up_interrupts(
        &mut self,
        first: VectorIndex,
        events: &[&EventFd],
    ) -> Result<(), SetUpError> {
        if let Some(mut live) = self.live() {
            live.set_up(first.as_usize(), events);
        }
        Ok(())
    }

    fn table(&mut self) -> &mut dyn VectorTable {
        self
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
        let live = lock(&self.shared);
        read_config(&live.world.hardware, offset, data);
        if live.bug == Some(Bug::SleepDenied)
            && let Some(power) = POWER.checked_sub(offset)
            && let Some(byte) = usize::try_from(power).ok().and_then(|at| data.get_mut(at))
        {
            *byte = 0;
        }
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

impl VectorTable for Function {
    fn message(&mut self, vector: VectorIndex) -> Result<TableMessage, TableError> {
        let Some(mut live) = self.live() else { return Ok(table_message(Content::Host(0))) };
        let vector = live.table_access(Kind::Message, vector)?;
        Ok(table_message(live.world.hardware.entries[vector].content))
    }

    fn set_message(
        &mut self,
        vector: VectorIndex,
        message: TableMessage,
    ) -> Result<(), TableError> {
        let Some(mut live) = self.live() else { return Ok(()) };
        let vector = live.table_access(Kind::SetMessage, vector)?;
        let content = match u8::try_from(message.data) {
            Ok(own) if message.address == HOST_DOORBELL => Content::Host(own),
            _ => Content::Foreign,
        };
        live.world.hardware.entries[vector].content = content;
        Ok(())
    }

    fn masked(&mut self, vector: VectorIndex) -> Result<bool, TableError> {
        let Some(mut live) = self.live() else { return Ok(false) };
        let vector = live.table_access(Kind::Mask, vector)?;
        let wrong = live.bug == Some(Bug::MaskMisread);
        Ok(live.world.hardware.entries[vector].masked != wrong)
    }

    fn set_masked(&mut self, vector: VectorIndex, masked: bool) -> Result<(), TableError> {
        let Some(mut live) = self.live() else { return Ok(()) };
        let vector = live.table_access(Kind::SetMask, vector)?;
        if live.bug != Some(Bug::MaskIgnored) {
            live.world.hardware.entries[vector].masked = masked;
            live.emit(vector);
        }
        Ok(())
    }

    fn control(&mut self, vector: VectorIndex) -> Result<u32, TableError> {
        self.masked(vector).map(u32::from)
    }

    fn set_control(&mut self, vector: VectorIndex, control: u32) -> Result<(), TableError> {
        self.set_masked(vector, control & 1 != 0)
    }

    fn pending(&mut self, vector: VectorIndex) -> Result<bool, TableError> {
        let Some(mut live) = self.live() else { return Ok(false) };
        let vector = live.table_access(Kind::Pending, vector)?;
        Ok(live.world.hardware.pending[vector])
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
            // The route stays until the next update; nobody follows it.
            kernel.routes[index] = None;
            let freed = kept || std::mem::take(&mut kernel.taken[index]);
            if live.attached[index].is_some() || !freed {
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
            let message = Message::of_route(route, live.arm64, FUNCTION);
            if message.is_none() {
                live.violations |= Violations::FOREIGN;
            }
            // On arm64 KVM cannot untie what is attached to a route that is gone.
            if live.attached[index].is_some() && live.arm64 {
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
