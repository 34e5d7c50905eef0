//! What KVM keeps of a machine: vCPUs and interrupt controllers, read out and put back.
//!
//! Source: KVM API documentation; the order of putting back is the one that other VMMs use
//! (the local APIC before the MSRs, since one of them is its deadline).

use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd};

use crate::error::MachineError;

/// A vCPU's registers, its local APIC included.
pub(crate) struct SavedVcpu {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

/// The time stamp counter, and what is added to it.
const CLOCK_MSRS: [u32; 2] = [0x10, 0x3b];

/// The state of PICs and I/O APIC.
pub(crate) type SavedInterrupts = Vec<kvm_irqchip>;

impl SavedVcpu {
    /// Reads a vCPU that is at rest.
    ///
    /// # Errors
    /// KVM's.
    pub(crate) fn read(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Self, MachineError> {
        let read = || {
            Ok(Self {
                // First: KVM makes up its mind about an INIT or SIPI that waits.
                mp_state: vcpu.get_mp_state()?,
                regs: vcpu.get_regs()?,
                sregs: vcpu.get_sregs()?,
                xsave: vcpu.get_xsave()?,
                xcrs: vcpu.get_xcrs()?,
                debug: vcpu.get_debug_regs()?,
                lapic: vcpu.get_lapic()?,
                msrs: read_msrs(vcpu, kvm.get_msr_index_list()?.as_slice())?,
                events: vcpu.get_vcpu_events()?,
            })
        };
        read().map_err(MachineError::kvm("reading a vCPU's registers"))
    }

    /// Puts them into a vCPU that has not run.
    ///
    /// # Errors
    /// KVM's.
    pub(crate) fn write(&self, vcpu: &VcpuFd) -> Result<(), MachineError> {
        let write = || {
            vcpu.set_mp_state(self.mp_state)?;
            vcpu.set_regs(&self.regs)?;
            vcpu.set_sregs(&self.sregs)?;
            // SAFETY: the machine enables no features by arch_prctl, and without those the
            // kernel reads no more than this structure.
            unsafe { vcpu.set_xsave(&self.xsave) }?;
            vcpu.set_xcrs(&self.xcrs)?;
            vcpu.set_debug_regs(&self.debug)?;
            vcpu.set_lapic(&self.lapic)?;
            write_msrs(vcpu, &self.msrs)?;
            vcpu.set_vcpu_events(&self.events)
        };
        write().map_err(MachineError::kvm("setting a vCPU's registers"))
    }
}

/// The MSRs that a reset sets back: all but the clock.
///
/// # Errors
/// KVM's.
pub(super) fn resettable_msrs(kvm: &Kvm) -> Result<Vec<u32>, kvm_ioctls::Error> {
    let mut indices = kvm.get_msr_index_list()?.as_slice().to_vec();
    indices.retain(|index| !CLOCK_MSRS.contains(index));
    Ok(indices)
}

/// Writes MSRs.
///
/// # Errors
/// KVM's.
pub(super) fn write_msrs(vcpu: &VcpuFd, msrs: &[kvm_msr_entry]) -> Result<(), kvm_ioctls::Error> {
    for msr in msrs {
        // Some can be read and not written; KVM says so by writing none.
        if let Ok(msrs) = Msrs::from_entries(&[*msr]) {
            vcpu.set_msrs(&msrs)?;
        }
    }
    Ok(())
}

/// Writes those MSRs that hold something else: KVM puts writes that it does not know on the host's log, whatever they write.
///
/// # Errors
/// KVM's.
pub(super) fn write_changed_msrs(
    vcpu: &VcpuFd,
    msrs: &[kvm_msr_entry],
) -> Result<(), kvm_ioctls::Error> {
    let indices: Vec<_> = msrs.iter().map(|msr| msr.index).collect();
    let now = read_msrs(vcpu, &indices)?;
    let mut changed = msrs.to_vec();
    changed.retain(|msr| !now.iter().any(|now| now.index == msr.index && now.data == msr.data));
    write_msrs(vcpu, &changed)
}

/// Reads MSRs, one at a time: a list ends at the first one that this processor has not.
///
/// # Errors
/// KVM's.
pub(super) fn read_msrs(
    vcpu: &VcpuFd,
    indices: &[u32],
) -> Result<Vec<kvm_msr_entry>, kvm_ioctls::Error> {
    let mut found = Vec::new();
    for &index in indices {
        let Ok(mut msrs) = Msrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }])
        else {
            continue;
        };
        if vcpu.get_msrs(&mut msrs)? == 1 {
            found.extend(msrs.as_slice());
        }
    }
    Ok(found)
}
