//! Discovery on x86: a CPUID hypervisor leaf block of our own, beside KVM's.
//!
//! | leaf | EAX | EBX | ECX | EDX |
//! |---|---|---|---|---|
//! | base | highest leaf | signature, bytes 0..4 | bytes 4..8 | bytes 8..12 |
//! | base + 1 | version: major 31..16, minor 15..0 | features | 0 | 0 |
//! | base + 2 | doorbell port, 0 for none | MMIO doorbell address, low half | high half; both 0 for none | 0 |
//! | base + 3 | largest call buffer in bytes | most vectors of one function | 0 | 0 |

use core::ops::RangeInclusive;

use crate::{Features, Limits, Version};

/// EBX, ECX and EDX of the first leaf, in this order.
pub const CPUID_SIGNATURE: [u8; 12] = *b"PV-MSI\0\0\0\0\0\0";

/// Where a guest looks for the signature, in steps of 0x100.
pub const CPUID_SCAN: RangeInclusive<u32> = 0x4000_0000..=0x4000_ff00;

/// The registers that one CPUID leaf returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidLeaf {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// What the block says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidBlock {
    /// The highest version that the host speaks.
    pub version: Version,
    /// What the host offers.
    pub features: Features,
    /// The I/O port that takes 32-bit writes of a buffer's page number.
    pub doorbell_port: Option<u16>,
    /// The guest physical address of a 32-bit register that takes the same.
    pub doorbell_address: Option<u64>,
    /// The host's limits.
    pub limits: Limits,
}

impl CpuidBlock {
    /// Number of leaves from the base on.
    pub const LEAVES: u32 = 4;

    /// The registers of all leaves for a block at `base`, with their leaf numbers.
    pub fn leaves(&self, base: u32) -> [(u32, CpuidLeaf); Self::LEAVES as usize] {
        let [s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11] = CPUID_SIGNATURE;
        let address = self.doorbell_address.unwrap_or(0).to_le_bytes();
        let [a0, a1, a2, a3, a4, a5, a6, a7] = address;
        let leaf = |number: u32| base.saturating_add(number);
        [
            (
                leaf(0),
                CpuidLeaf {
                    eax: leaf(Self::LEAVES.saturating_sub(1)),
                    ebx: u32::from_le_bytes([s0, s1, s2, s3]),
                    ecx: u32::from_le_bytes([s4, s5, s6, s7]),
                    edx: u32::from_le_bytes([s8, s9, s10, s11]),
                },
            ),
            (
                leaf(1),
                CpuidLeaf {
                    eax: u32::from(self.version.major) << 16 | u32::from(self.version.minor),
                    ebx: self.features.bits(),
                    ..CpuidLeaf::default()
                },
            ),
            (
                leaf(2),
                CpuidLeaf {
                    eax: u32::from(self.doorbell_port.unwrap_or(0)),
                    ebx: u32::from_le_bytes([a0, a1, a2, a3]),
                    ecx: u32::from_le_bytes([a4, a5, a6, a7]),
                    edx: 0,
                },
            ),
            (
                leaf(3),
                CpuidLeaf {
                    eax: self.limits.buffer_bytes,
                    ebx: u32::from(self.limits.vectors),
                    ..CpuidLeaf::default()
                },
            ),
        ]
    }

    /// Scans for the block with a function that executes CPUID. `None` when the host has none, or one of a form that this version cannot read.
    pub fn find(mut cpuid: impl FnMut(u32) -> CpuidLeaf) -> Option<Self> {
        let base = CPUID_SCAN.step_by(0x100).find(|&base| is_signature(cpuid(base)))?;
        let highest = cpuid(base).eax;
        if highest < base.checked_add(Self::LEAVES.checked_sub(1)?)? {
            return None;
        }
        let version = cpuid(base.checked_add(1)?);
        let doorbell = cpuid(base.checked_add(2)?);
        let limits = cpuid(base.checked_add(3)?);
        let [minor0, minor1, major0, major1] = version.eax.to_le_bytes();
        let address = u64::from(doorbell.ecx) << 32 | u64::from(doorbell.ebx);
        Some(Self {
            version: Version {
                major: u16::from_le_bytes([major0, major1]),
                minor: u16::from_le_bytes([minor0, minor1]),
            },
            features: Features::from_bits_retain(version.ebx),
            doorbell_port: u16::try_from(doorbell.eax).ok().filter(|&port| port != 0),
            doorbell_address: Some(address).filter(|&address| address != 0),
            limits: Limits { buffer_bytes: limits.eax, vectors: u16::try_from(limits.ebx).ok()? },
        })
    }
}

fn is_signature(leaf: CpuidLeaf) -> bool {
    let mut signature = [0; 12];
    for (chunk, register) in signature.chunks_exact_mut(4).zip([leaf.ebx, leaf.ecx, leaf.edx]) {
        chunk.copy_from_slice(&register.to_le_bytes());
    }
    signature == CPUID_SIGNATURE
}
