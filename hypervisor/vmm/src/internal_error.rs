//! What KVM says of an exit with which it gives a guest up (`KVM_EXIT_INTERNAL_ERROR`).

use std::fmt;

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
};
use kvm_ioctls::VcpuFd;

/// `internal` of `struct kvm_run`.
pub(crate) struct InternalError {
    suberror: u32,
    /// What it means depends on the suberror and on the kernel.
    data: Vec<u64>,
}

impl InternalError {
    /// Of a vCPU whose last exit was one.
    pub(crate) fn of(vcpu: &mut VcpuFd) -> Self {
        let run = vcpu.get_kvm_run();
        // SAFETY: a part of the page that the kernel shares: numbers, valid whatever they are.
        let internal = unsafe { run.__bindgen_anon_1.internal };
        let given = usize::try_from(internal.ndata).unwrap_or(usize::MAX);
        let data = internal.data.into_iter().take(given).collect();
        Self { suberror: internal.suberror, data }
    }
}

impl fmt::Display for InternalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.suberror {
            KVM_INTERNAL_ERROR_EMULATION if cfg!(target_arch = "x86_64") => {
                "an instruction that it cannot emulate; guests must be built without SSE"
            }
            KVM_INTERNAL_ERROR_EMULATION => "an instruction that it cannot emulate",
            KVM_INTERNAL_ERROR_SIMUL_EX => "exceptions during an exception",
            KVM_INTERNAL_ERROR_DELIVERY_EV => {
                "an exit that it cannot serve in the midst of delivering an interrupt or exception"
            }
            KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "an exit that it does not know",
            _ => "see KVM_EXIT_INTERNAL_ERROR in the kernel's documentation",
        };
        write!(f, "KVM cannot go on (internal error {}: {what}; data", self.suberror)?;
        for word in &self.data {
            write!(f, " {word:#x}")?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_told() {
        let error = InternalError { suberror: 3, data: vec![0x8000_0300, 0x400] };
        let text = error.to_string();
        for words in ["internal error 3", "delivering an interrupt", "data 0x80000300 0x400)"] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(InternalError { suberror: 99, data: Vec::new() }.to_string().contains("99: see"));
    }
}
