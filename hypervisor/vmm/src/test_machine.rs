//! A service without KVM, for unit tests.

use std::sync::Arc;

use pvmsi_hypervisor::{FunctionPolicy, Platform, Service, ServiceConfig};
use pvmsi_software::{SoftwareFunction, SoftwareOptions};
use pvmsi_test_doubles::{IdleRoutes, IdleWindow};

use crate::{host, pci};

/// One is as good as another: its messages lead nowhere.
pub(crate) const PLATFORM: Platform = Platform::X86_64 { extended_destination_ids: false };

/// A service with so many software functions, at their addresses on the bus.
pub(crate) fn service(functions: usize) -> Arc<Service> {
    let service = Service::new(ServiceConfig::new(PLATFORM), Arc::new(IdleRoutes::default()));
    for n in 0..functions {
        let function =
            SoftwareFunction::new(SoftwareOptions::default(), host::page_size()).unwrap();
        service
            .add_function(
                pci::address(n).unwrap(),
                Box::new(function),
                Box::new(IdleWindow::new(true)),
                FunctionPolicy::default(),
            )
            .unwrap();
    }
    Arc::new(service)
}
