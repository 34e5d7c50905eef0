//! Discovery on x86: a CPUID hypervisor leaf block of our own, beside KVM's.

use core::ops::RangeInclusive;

use crate::offer::is_signature;
use crate::{Leaf, ServiceBlock};

/// Where a guest looks for the signature, in steps of 0x100.
pub const CPUID_SCAN: RangeInclusive<u32> = 0x4000_0000..=0x4000_ff00;

impl ServiceBlock {
    /// Scans for the block with a function that executes CPUID. `None` when the host has none, or one of a form that this version cannot read.
    pub fn find_by_cpuid(mut cpuid: impl FnMut(u32) -> Leaf) -> Option<Self> {
        let mut base = *CPUID_SCAN.start();
        while !is_signature(cpuid(base)) {
            base = base.checked_add(0x100).filter(|base| CPUID_SCAN.contains(base))?;
        }
        Self::read(base, cpuid)
    }
}
