//! What comes out of a guest on every architecture, and what it is served with.

use kvm_ioctls::VcpuExit;

use crate::arch;
use crate::bus::{Action, Bus};

/// What came out of the guest.
pub(crate) enum Exit {
    Served(Action),
    /// KVM could not reach guest memory at this address.
    MemoryFault(u64),
    /// KVM gives the guest up, and says why in `kvm_run`.
    InternalError,
    /// The vCPU cannot go on, and why.
    Stuck(String),
}

/// Serves the exits that are the same on all architectures.
pub(crate) fn serve(exit: VcpuExit<'_>, bus: &Bus) -> Exit {
    match exit {
        VcpuExit::MmioWrite(address, data) => Exit::Served(write(bus, address, data)),
        VcpuExit::MmioRead(address, data) => {
            read(bus, address, data);
            Exit::Served(Action::Continue)
        }
        VcpuExit::Intr => Exit::Served(Action::Continue),
        VcpuExit::MemoryFault { gpa, .. } => Exit::MemoryFault(gpa),
        VcpuExit::InternalError => Exit::InternalError,
        VcpuExit::FailEntry(reason, cpu) => {
            Exit::Stuck(format!("KVM cannot enter the guest (reason {reason:#x}, host CPU {cpu})"))
        }
        other => Exit::Stuck(format!("an exit that the machine does not know: {other:?}")),
    }
}

/// A load where no memory is.
fn read(bus: &Bus, address: u64, data: &mut [u8]) {
    data.fill(0xff);
    if !arch::device_read(bus, address, data) {
        bus.memory_read(address, data);
    }
}

/// A store where no memory is.
fn write(bus: &Bus, address: u64, data: &[u8]) -> Action {
    arch::device_write(bus, address, data).unwrap_or_else(|| bus.memory_write(address, data))
}
