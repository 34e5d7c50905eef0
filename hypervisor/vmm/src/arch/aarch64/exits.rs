//! Exits of an arm64 vCPU.

use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{Error, VcpuExit, VcpuFd};
use pvmsi_protocol::SMCCC_CALL;

use crate::access::{self, Exit};
use crate::bus::{Action, Bus};
use crate::measurements::ExitKind;

/// Enters the guest and serves the exit.
///
/// # Errors
/// `KVM_RUN`'s.
pub(crate) fn run(vcpu: &mut VcpuFd, bus: &Bus) -> Result<Exit, Error> {
    let exit = match vcpu.run() {
        Err(error) if error.errno() == libc::ENOSYS => {
            return Ok(Exit::Stuck(
                "a load or store outside RAM that KVM cannot decode: of a pair, of a vector register, or with write-back"
                    .to_owned(),
            ));
        }
        result => result?,
    };
    Ok(match exit {
        VcpuExit::Hypercall(call) => {
            let function = call.nr;
            hypercall(vcpu, bus, function)
        }
        // PSCI.
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => counted(bus, Action::Exit(0)),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => counted(bus, Action::Reset),
        other => access::serve(other, bus),
    })
}

fn counted(bus: &Bus, action: Action) -> Exit {
    bus.exits.count(ExitKind::Other);
    Exit::Served(action)
}

/// An SMCCC call that the filter lets out. There is no filter without an offer.
fn hypercall(vcpu: &VcpuFd, bus: &Bus, function: u64) -> Exit {
    let (Ok(function), Some(offer)) = (u32::try_from(function), &bus.offer) else {
        return Exit::Stuck(format!("a hypercall that nobody has asked for: {function:#x}"));
    };
    bus.exits.count(if function == SMCCC_CALL { ExitKind::Doorbell } else { ExitKind::Other });
    match bus.service.serve_smccc(vcpu, bus.memory.as_ref(), offer, function) {
        Ok(()) => Exit::Served(Action::Continue),
        Err(error) => Exit::Stuck(format!("the registers of a hypercall: {error}")),
    }
}
