//! Doubles that do nothing.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use pvmsi_hypervisor::{Gsi, RouteChange, Routes, RoutesError, View, Window};
use pvmsi_protocol::TableMode;
use vmm_sys_util::eventfd::EventFd;

/// Routes that lead nowhere. No two have the same number.
#[derive(Debug, Default)]
pub struct IdleRoutes {
    next: AtomicU32,
}

impl Routes for IdleRoutes {
    fn allocate(&self, count: u16) -> Result<Vec<Gsi>, RoutesError> {
        let count = u32::from(count);
        let first = self.next.fetch_add(count, Ordering::Relaxed);
        Ok((first..first.saturating_add(count)).map(Gsi).collect())
    }

    fn free(&self, _: &[Gsi]) {}

    fn install(&self, _: &[RouteChange]) -> Result<(), RoutesError> {
        Ok(())
    }

    fn attach(&self, _: &EventFd, _: Gsi) -> Result<(), RoutesError> {
        Ok(())
    }

    fn detach(&self, _: &EventFd, _: Gsi) -> Result<(), RoutesError> {
        Ok(())
    }
}

/// A memory map that shows whatever it is told to. Clones are the same window.
#[derive(Clone, Debug)]
pub struct IdleWindow {
    table_can_be_direct: bool,
    shows_table: Arc<AtomicBool>,
}

impl IdleWindow {
    /// A window; whether it can show the table.
    pub fn new(table_can_be_direct: bool) -> Self {
        Self { table_can_be_direct, shows_table: Arc::default() }
    }
}

impl Window for IdleWindow {
    fn show(&mut self, view: &View) -> io::Result<()> {
        let shows = view.table == TableMode::Direct && view.bars != View::NOTHING.bars;
        self.shows_table.store(shows, Ordering::Relaxed);
        Ok(())
    }

    fn table_can_be_direct(&self) -> bool {
        self.table_can_be_direct
    }

    fn shows_table(&self) -> bool {
        self.shows_table.load(Ordering::Relaxed)
    }
}
