//! Stand-ins for KVM in unit tests.

use std::io;

use pvmsi_hypervisor::{Gsi, RouteChange, Routes, RoutesError, View, Window};
use vmm_sys_util::eventfd::EventFd;

/// Routes that lead nowhere.
pub(crate) struct NoRoutes;

impl Routes for NoRoutes {
    fn allocate(&self, count: u16) -> Result<Vec<Gsi>, RoutesError> {
        Ok((0..u32::from(count)).map(Gsi).collect())
    }

    fn free(&self, _gsis: &[Gsi]) {}

    fn install(&self, _changes: &[RouteChange]) -> Result<(), RoutesError> {
        Ok(())
    }

    fn attach(&self, _event: &EventFd, _gsi: Gsi) -> Result<(), RoutesError> {
        Ok(())
    }

    fn detach(&self, _event: &EventFd, _gsi: Gsi) -> Result<(), RoutesError> {
        Ok(())
    }
}

/// A memory map that shows nothing.
pub(crate) struct NoWindow;

impl Window for NoWindow {
    fn show(&mut self, _view: &View) -> io::Result<()> {
        Ok(())
    }

    fn table_can_be_direct(&self) -> bool {
        true
    }
}
