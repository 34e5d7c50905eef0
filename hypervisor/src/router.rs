//! Finds functions by address, for VMMs without a bus.

use std::fmt;
use std::sync::Arc;

use pvmsi_protocol::FunctionId;

use crate::entry::Functions;

/// Finds the function that an access is for, by the guest physical address or the address on the PCI bus. A VMM whose buses do so already calls [`FunctionHandle`](crate::FunctionHandle)s instead.
///
/// It knows all functions of its service, those that come later as well. Finding one does not wait for
/// calls on functions; what is done with it waits as its handle does. Functions at the same guest
/// physical address: the one with the lower bus address answers.
#[derive(Clone)]
pub struct Router {
    functions: Arc<Functions>,
}

impl Router {
    pub(crate) fn new(functions: &Arc<Functions>) -> Self {
        Self { functions: Arc::clone(functions) }
    }

    /// A read that exited. `true` when a function has answered, and `data` is filled; untouched otherwise.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) -> bool {
        let Some((entry, bar, offset)) = self.functions.find(address) else { return false };
        entry.with(|switch| switch.reader().bar_read(bar, offset, data)).is_ok()
    }

    /// A write that exited. `true` when a function has taken it.
    pub fn mmio_write(&self, address: u64, data: &[u8]) -> bool {
        let Some((entry, bar, offset)) = self.functions.find(address) else { return false };
        entry.with(|switch| switch.bar_write(&entry.decoded, bar, offset, data)).is_ok()
    }

    /// A read of configuration space. `true` when a function has answered, and `data` is filled; untouched otherwise.
    pub fn config_read(&self, id: FunctionId, offset: u64, data: &mut [u8]) -> bool {
        let entry = self.functions.get(id);
        entry
            .and_then(|entry| entry.with(|switch| switch.reader().config_read(offset, data)))
            .is_ok()
    }

    /// A write of configuration space. `true` when a function has taken it.
    pub fn config_write(&self, id: FunctionId, offset: u64, data: &[u8]) -> bool {
        let entry = self.functions.get(id);
        entry
            .and_then(|entry| entry.operate(|operation| operation.config_write(offset, data)))
            .is_ok()
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router").finish_non_exhaustive()
    }
}
