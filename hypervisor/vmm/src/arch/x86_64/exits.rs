//! Exits of an x86_64 vCPU.

use kvm_ioctls::{Error, VcpuExit, VcpuFd};

use super::ports;
use crate::access::{self, Exit};
use crate::bus::{Action, Bus};

/// Enters the guest and serves the exit.
///
/// # Errors
/// `KVM_RUN`'s.
pub(crate) fn run(vcpu: &mut VcpuFd, bus: &Bus) -> Result<Exit, Error> {
    Ok(match vcpu.run()? {
        VcpuExit::IoOut(port, data) => Exit::Served(ports::write(bus, port, data)),
        VcpuExit::IoIn(port, data) => {
            ports::read(bus, port, data);
            Exit::Served(Action::Continue)
        }
        VcpuExit::Shutdown => Exit::Stuck(
            "shutdown: a triple fault, most often an exception without a handler or a stack that is not there"
                .to_owned(),
        ),
        VcpuExit::Hlt => {
            Exit::Stuck("HLT came out of KVM, which has no interrupt controller".to_owned())
        }
        other => access::serve(other, bus),
    })
}
