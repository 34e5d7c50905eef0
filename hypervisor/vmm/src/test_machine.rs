//! Stand-ins for KVM in unit tests.

use std::io;
use std::sync::Arc;

use pvmsi_hypervisor::{
    FunctionPolicy, Gsi, RouteChange, Routes, RoutesError, Service, ServiceConfig, View, Window,
};
use pvmsi_software::{SoftwareFunction, SoftwareOptions};
use vmm_sys_util::eventfd::EventFd;

use crate::{arch, host, pci};

/// A service with so many software functions, at their addresses on the bus.
pub(crate) fn service(functions: usize) -> Arc<Service> {
    let service = Service::new(ServiceConfig::new(arch::PLATFORM), Arc::new(NoRoutes));
    for n in 0..functions {
        let function =
            SoftwareFunction::new(SoftwareOptions::default(), host::page_size()).unwrap();
        service
            .add_function(
                pci::address(n).unwrap(),
                Box::new(function),
                Box::new(NoWindow),
                FunctionPolicy::default(),
            )
            .unwrap();
    }
    Arc::new(service)
}

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
