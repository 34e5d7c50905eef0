//! The way to configuration space: memory.

use std::sync::Arc;

use pvmsi_hypervisor::Service;

use crate::ecam::Ecam;

/// The way. It has no state.
pub(crate) struct PciConfig(Ecam);

impl PciConfig {
    pub(crate) fn new(service: Arc<Service>) -> Self {
        Self(Ecam::new(service))
    }

    /// Configuration space in memory.
    pub(super) fn ecam(&self) -> &Ecam {
        &self.0
    }

    /// As at power-on.
    pub(crate) fn reset(&self) {}

    /// There is no address register here.
    pub(crate) fn address(&self) -> u32 {
        0
    }

    /// As [`address`](Self::address).
    pub(crate) fn set_address(&self, _address: u32) {}
}
