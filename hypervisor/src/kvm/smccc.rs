//! SMCCC calls of arm64 guests on KVM: which of them come out to user space, and how they are answered.
//!
//! KVM answers a call that it does not know with NOT_SUPPORTED by itself. Its
//! filter (Linux 6.4; KVM API documentation, `KVM_ARM_VM_SMCCC_FILTER`) hands
//! PV-MSI's two calls to user space instead, as `KVM_EXIT_HYPERCALL`; HVC and
//! SMC are the same to it.

use std::io;

use kvm_bindings::{
    KVM_ARM_VM_SMCCC_CTRL, KVM_ARM_VM_SMCCC_FILTER, KVM_REG_ARM_CORE, KVM_REG_ARM64,
    KVM_REG_SIZE_U64, kvm_device_attr, kvm_regs, kvm_smccc_filter,
    kvm_smccc_filter_action_KVM_SMCCC_FILTER_FWD_TO_USER,
};
use kvm_ioctls::{VcpuFd, VmFd};
use pvmsi_protocol::{SMCCC_CALL, SMCCC_DISCOVER, ServiceBlock, SmcccStatus};
use vm_memory::GuestMemoryBackend;

use crate::service::Service;

/// KVM's SMCCC filter of one VM.
#[derive(Clone, Copy, Debug)]
pub struct SmcccFilter;

impl SmcccFilter {
    /// Whether this KVM has the filter.
    pub fn is_available(vm: &VmFd) -> bool {
        vm.has_device_attr(&attribute(0)).is_ok()
    }

    /// From now on PV-MSI's calls come out as `KVM_EXIT_HYPERCALL`. Once for a VM, before any of its vCPUs has run for the first time.
    ///
    /// # Errors
    /// `EBUSY` when a vCPU has run, `EEXIST` when there is a filter for these calls already, `ENXIO` when the kernel has none.
    pub fn install(vm: &VmFd) -> io::Result<()> {
        let action = u8::try_from(kvm_smccc_filter_action_KVM_SMCCC_FILTER_FWD_TO_USER)
            .map_err(io::Error::other)?;
        let filter = kvm_smccc_filter {
            base: SMCCC_DISCOVER,
            // They are adjacent.
            nr_functions: SMCCC_CALL.saturating_sub(SMCCC_DISCOVER).saturating_add(1),
            action,
            pad: [0; 15],
        };
        let address = (&raw const filter).expose_provenance();
        let address = u64::try_from(address).map_err(io::Error::other)?;
        // The kernel reads `filter` during the call.
        vm.set_device_attr(&attribute(address))
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }
}

fn attribute(addr: u64) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_ARM_VM_SMCCC_CTRL,
        attr: u64::from(KVM_ARM_VM_SMCCC_FILTER),
        addr,
    }
}

impl Service {
    /// Serves `KVM_EXIT_HYPERCALL` of a vCPU: takes the arguments from its registers and puts the answer there. `function` is the exit's number; one that is not PV-MSI's, or any with the policy off, is answered NOT_SUPPORTED.
    ///
    /// # Errors
    /// Of `KVM_GET_ONE_REG` and `KVM_SET_ONE_REG`, for a vCPU that cannot be used any more.
    pub fn serve_smccc<M: GuestMemoryBackend>(
        &self,
        vcpu: &VcpuFd,
        memory: &M,
        offer: &ServiceBlock,
        function: u32,
    ) -> io::Result<()> {
        let mut arguments = [0; 3];
        for (number, argument) in (1..).zip(&mut arguments) {
            let mut bytes = [0; 8];
            vcpu.get_one_reg(general_register(number), &mut bytes).map_err(kernel)?;
            *argument = u64::from_le_bytes(bytes);
        }
        let unknown = [SmcccStatus::NOT_SUPPORTED.0, 0, 0, 0];
        let answer = self.smccc(memory, offer, function, arguments).unwrap_or(unknown);
        for (number, value) in (0..).zip(answer) {
            vcpu.set_one_reg(general_register(number), &value.to_le_bytes()).map_err(kernel)?;
        }
        Ok(())
    }
}

fn kernel(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

/// The id of X0 to X3: core registers are numbered in 32-bit words of `struct kvm_regs`, which starts with them.
fn general_register(number: u64) -> u64 {
    const { assert!(std::mem::offset_of!(kvm_regs, regs) == 0) };
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | u64::from(KVM_REG_ARM_CORE) | number.saturating_mul(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_calls_are_adjacent() {
        assert_eq!(SMCCC_CALL, SMCCC_DISCOVER + 1, "one filter entry covers both");
    }

    #[test]
    fn registers_have_the_ids_of_the_kernel_interface() {
        assert_eq!(general_register(0), 0x6030_0000_0010_0000);
        assert_eq!(general_register(3), 0x6030_0000_0010_0006);
    }
}
