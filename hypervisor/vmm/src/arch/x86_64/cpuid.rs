//! What a vCPU's CPUID shows: what KVM supports, the vCPU's own APIC id, and the block of PV-MSI.

use std::io;

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use pvmsi_protocol::{Leaf, ServiceBlock};

use super::{PowerOnState, saved};
use crate::error::MachineError;

/// Where PV-MSI's block lies. KVM's own stays at 0x40000000.
const BLOCK_BASE: u32 = 0x4000_0100;

const HYPERVISOR_PRESENT: u32 = 1 << 31;
/// The local APIC's timer takes a deadline. KVM does not count it among what it supports.
const DEADLINE_TIMER: u32 = 1 << 24;
/// Bits of leaf 4 and 0x8000001d: how many logical processors share a cache, and cores of a package.
const CACHE_SHARING: u32 = 0xffff_c000;

/// What all vCPUs have in common.
pub(crate) struct VcpuModel {
    supported: CpuId,
    deadline_timer: bool,
    /// The MSRs that a machine reset sets back.
    msrs: Vec<u32>,
    cpus: u8,
    offer: Option<ServiceBlock>,
}

impl VcpuModel {
    /// For a machine with so many vCPUs.
    ///
    /// # Errors
    /// KVM's.
    pub(crate) fn new(
        kvm: &Kvm,
        _vm: &VmFd,
        cpus: u8,
        offer: Option<ServiceBlock>,
    ) -> Result<Self, MachineError> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(MachineError::kvm("KVM_GET_SUPPORTED_CPUID"))?;
        let deadline_timer = kvm.check_extension(Cap::TscDeadlineTimer);
        let msrs =
            saved::resettable_msrs(kvm).map_err(MachineError::kvm("KVM_GET_MSR_INDEX_LIST"))?;
        Ok(Self { supported, deadline_timer, msrs, cpus, offer })
    }

    /// Gives a new vCPU its CPUID.
    ///
    /// # Errors
    /// KVM's.
    pub(crate) fn apply(&self, vcpu: &VcpuFd, index: u8) -> Result<PowerOnState, MachineError> {
        let mut cpuid =
            for_vcpu(&self.supported, index, self.cpus, self.offer.as_ref()).map_err(|error| {
                MachineError::Kvm {
                    operation: "building CPUID",
                    source: io::Error::other(format!("{error:?}")),
                }
            })?;
        for entry in cpuid.as_mut_slice() {
            if entry.function == 1 && self.deadline_timer {
                entry.ecx |= DEADLINE_TIMER;
            }
        }
        vcpu.set_cpuid2(&cpuid).map_err(MachineError::kvm("KVM_SET_CPUID2"))?;
        PowerOnState::read(vcpu, index, &self.msrs)
            .map_err(MachineError::kvm("reading a vCPU's registers"))
    }
}

/// The leaves for the vCPU with this index, which is its APIC id.
///
/// # Errors
/// When there are more leaves than KVM takes.
fn for_vcpu(
    supported: &CpuId,
    index: u8,
    vcpus: u8,
    block: Option<&ServiceBlock>,
) -> Result<CpuId, vmm_sys_util::fam::Error> {
    let apic_id = u32::from(index);
    let mut entries: Vec<_> = supported
        .as_slice()
        .iter()
        // Nobody else's leaves where ours go.
        .filter(|entry| !(BLOCK_BASE..BLOCK_BASE.saturating_add(0x100)).contains(&entry.function))
        .copied()
        .collect();
    for entry in &mut entries {
        match entry.function {
            1 => {
                entry.ebx = entry.ebx & 0x0000_ffff | apic_id << 24 | u32::from(vcpus) << 16;
                entry.ecx |= HYPERVISOR_PRESENT;
            }
            // Extended topology: every vCPU is a package of one core of one thread.
            0x0b | 0x1f => {
                entry.eax = 0;
                entry.ebx = u32::from(entry.index < 2);
                entry.ecx = topology_level(entry.index);
                entry.edx = apic_id;
                entry.flags |= KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
            }
            // Caches are shared with nobody.
            4 | 0x8000_001d => entry.eax &= !CACHE_SHARING,
            // One core in a package, of one thread: its number is the APIC id.
            0x8000_0008 => entry.ecx = 0,
            0x8000_001e => {
                entry.eax = apic_id;
                entry.ebx = apic_id & 0xff;
                entry.ecx = 0;
            }
            _ => {}
        }
    }
    if let Some(block) = block {
        for (function, Leaf { eax, ebx, ecx, edx }) in block.leaves(BLOCK_BASE) {
            let leaf = kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() };
            entries.push(leaf);
        }
    }
    CpuId::from_entries(&entries)
}

/// ECX of an extended topology leaf: level number, and its type (1 thread, 2 core, 0 none).
fn topology_level(index: u32) -> u32 {
    match index {
        0 => 1 << 8,
        1 => 2 << 8 | 1,
        _ => index & 0xff,
    }
}

#[cfg(test)]
mod tests {
    use pvmsi_protocol::{Features, Limits, Version};

    use super::*;

    fn supported() -> CpuId {
        let entry = |function, ebx| kvm_cpuid_entry2 { function, ebx, ..Default::default() };
        CpuId::from_entries(&[
            entry(0, 0),
            entry(1, 0x1234_5678),
            entry(0x0b, 0),
            entry(0x4000_0000, u32::from_le_bytes(*b"KVMK")),
            entry(0x4000_0100, 0xdead),
        ])
        .unwrap()
    }

    fn leaf(id: &CpuId, function: u32) -> Leaf {
        let entry = id.as_slice().iter().find(|entry| entry.function == function);
        entry.map_or_else(Leaf::default, |entry| Leaf {
            eax: entry.eax,
            ebx: entry.ebx,
            ecx: entry.ecx,
            edx: entry.edx,
        })
    }

    #[test]
    fn the_guest_finds_the_block_and_kvm_keeps_its_own() {
        let block = ServiceBlock {
            version: Version::CURRENT,
            features: Features::empty(),
            doorbell_port: Some(0x5650),
            doorbell_address: None,
            limits: Limits { buffer_bytes: 65536, vectors: 2048 },
        };
        let id = for_vcpu(&supported(), 0, 1, Some(&block)).unwrap();
        assert_eq!(ServiceBlock::find_by_cpuid(|function| leaf(&id, function)), Some(block));
        assert_eq!(leaf(&id, 0x4000_0000).ebx, u32::from_le_bytes(*b"KVMK"));
    }

    #[test]
    fn without_the_service_there_is_no_block() {
        let id = for_vcpu(&supported(), 0, 1, None).unwrap();
        assert_eq!(ServiceBlock::find_by_cpuid(|function| leaf(&id, function)), None);
        assert_eq!(leaf(&id, BLOCK_BASE), Leaf::default());
    }

    #[test]
    fn every_vcpu_has_its_own_apic_id() {
        let id = for_vcpu(&supported(), 3, 4, None).unwrap();
        assert_eq!(leaf(&id, 1).ebx, 0x0304_5678);
        assert_eq!(leaf(&id, 0x0b).edx, 3);
    }
}
