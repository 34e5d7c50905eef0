//! Why a machine cannot be built or run.

use std::io;

use pvmsi_hypervisor::FunctionError;
use thiserror::Error;

/// A machine cannot be built, or stopped for a reason that is not the guest's wish.
#[derive(Debug, Error)]
pub enum MachineError {
    /// `/dev/kvm` cannot be opened.
    #[error("KVM cannot be used: /dev/kvm: {source}\n{remedy}")]
    KvmUnavailable {
        /// What the system answered.
        source: io::Error,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A request to KVM failed.
    #[error("{operation} failed: {source}")]
    Kvm {
        /// The kernel interface.
        operation: &'static str,
        /// What it answered.
        source: io::Error,
    },
    /// The guest's RAM cannot be had or does not hold what it must.
    #[error("guest memory: {0}")]
    Memory(String),
    /// The guest program cannot be loaded.
    #[error("the guest cannot be loaded: {0}")]
    Guest(String),
    /// What was asked for makes no machine.
    #[error("{0}")]
    Config(String),
    /// A PCI function cannot be had.
    #[error("function {function}: {message}")]
    Function {
        /// As it was named.
        function: String,
        /// What is wrong and what to do.
        message: String,
    },
}

impl MachineError {
    /// Whether the user asked for something wrong, as opposed to a host that cannot do it.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Guest(_) | Self::Config(_))
    }

    /// For `map_err` on kvm-ioctls.
    pub(crate) fn kvm(operation: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |error| Self::Kvm { operation, source: io::Error::from_raw_os_error(error.errno()) }
    }

    /// `/dev/kvm` cannot be opened; with the remedy.
    pub(crate) fn kvm_unavailable(error: kvm_ioctls::Error) -> Self {
        let source = io::Error::from_raw_os_error(error.errno());
        Self::KvmUnavailable { remedy: kvm_remedy(&source), source }
    }
}

impl From<FunctionError> for MachineError {
    fn from(error: FunctionError) -> Self {
        let (FunctionError::Removed(id) | FunctionError::Reentered(id)) = error;
        Self::Function { function: id.to_string(), message: error.to_string() }
    }
}

/// What to do when `/dev/kvm` cannot be opened.
pub(crate) fn kvm_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "add this user to the group that owns /dev/kvm (usually: adduser USER kvm) and log in again"
        }
        _ => crate::arch::KVM_REMEDY,
    }
}
