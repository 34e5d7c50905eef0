//! Moving a machine is not implemented on arm64: the state of its GIC and ITS is read out in steps of their own.

use kvm_ioctls::{Kvm, VcpuFd};

use crate::error::MachineError;

/// A vCPU's registers. There is none yet.
pub(crate) enum SavedVcpu {}

/// The state of GIC and ITS. There is none yet.
pub(crate) enum SavedInterrupts {}

impl SavedVcpu {
    /// # Errors
    /// Always.
    pub(crate) fn read(_kvm: &Kvm, _vcpu: &VcpuFd) -> Result<Self, MachineError> {
        Err(unsupported())
    }

    /// # Errors
    /// None: there is no such state.
    pub(crate) fn write(&self, _vcpu: &VcpuFd) -> Result<(), MachineError> {
        match *self {}
    }
}

pub(super) fn unsupported() -> MachineError {
    MachineError::Config("moving a machine is implemented on x86_64 only".to_owned())
}
