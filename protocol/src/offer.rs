//! What a host says of its service before the first call.
//!
//! One block of four *leaves* of 16 bytes, whatever carries it: CPUID on x86
//! ([`CPUID_SCAN`](crate::CPUID_SCAN)), an SMCCC call on arm64
//! ([`SMCCC_DISCOVER`](crate::SMCCC_DISCOVER)). A leaf is four 32-bit words,
//! named as the registers of CPUID.
//!
//! | leaf | EAX | EBX | ECX | EDX |
//! |---|---|---|---|---|
//! | base | highest leaf | signature, bytes 0..4 | bytes 4..8 | bytes 8..12 |
//! | base + 1 | version: major 31..16, minor 15..0 | features | 0 | 0 |
//! | base + 2 | doorbell port, 0 for none | MMIO doorbell address, low half | high half; both 0 for none | 0 |
//! | base + 3 | largest call buffer in bytes | most vectors of one function | 0 | 0 |

use crate::{Features, Limits, Version};

/// EBX, ECX and EDX of the first leaf, in this order.
pub const SIGNATURE: [u8; 12] = *b"PV-MSI\0\0\0\0\0\0";

/// The four words of one leaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
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
pub struct ServiceBlock {
    /// The highest version that the host speaks.
    pub version: Version,
    /// What the host offers.
    pub features: Features,
    /// The I/O port that takes 32-bit writes of a buffer's page number (x86).
    pub doorbell_port: Option<u16>,
    /// The guest physical address of a 32-bit register that takes the same.
    pub doorbell_address: Option<u64>,
    /// The host's limits.
    pub limits: Limits,
}

impl ServiceBlock {
    /// Number of leaves from the base on.
    pub const LEAVES: u32 = 4;

    /// All leaves of a block at `base`, with their numbers.
    pub fn leaves(&self, base: u32) -> [(u32, Leaf); Self::LEAVES as usize] {
        let [ebx, ecx, edx] = SIGNATURE_WORDS;
        let address = self.doorbell_address.unwrap_or(0).to_le_bytes();
        let [a0, a1, a2, a3, a4, a5, a6, a7] = address;
        let leaf = |number: u32| base.saturating_add(number);
        [
            (leaf(0), Leaf { eax: leaf(Self::LEAVES.saturating_sub(1)), ebx, ecx, edx }),
            (
                leaf(1),
                Leaf {
                    eax: u32::from(self.version.major) << 16 | u32::from(self.version.minor),
                    ebx: self.features.bits(),
                    ..Leaf::default()
                },
            ),
            (
                leaf(2),
                Leaf {
                    eax: u32::from(self.doorbell_port.unwrap_or(0)),
                    ebx: u32::from_le_bytes([a0, a1, a2, a3]),
                    ecx: u32::from_le_bytes([a4, a5, a6, a7]),
                    edx: 0,
                },
            ),
            (
                leaf(3),
                Leaf {
                    eax: self.limits.buffer_bytes,
                    ebx: u32::from(self.limits.vectors),
                    ..Leaf::default()
                },
            ),
        ]
    }

    /// Reads the block whose first leaf is `base`, with a function that reads a leaf. `None` when there is none, or one of another major version, or of a form that this version cannot read.
    pub fn read(base: u32, mut leaf: impl FnMut(u32) -> Leaf) -> Option<Self> {
        let first = leaf(base);
        if !is_signature(first) || first.eax < base.checked_add(Self::LEAVES.checked_sub(1)?)? {
            return None;
        }
        let second = leaf(base.checked_add(1)?);
        let [minor0, minor1, major0, major1] = second.eax.to_le_bytes();
        let version = Version {
            major: u16::from_le_bytes([major0, major1]),
            minor: u16::from_le_bytes([minor0, minor1]),
        };
        // Another major may mean something else by its doorbell, so none is taken from it.
        version.common(Version::CURRENT)?;
        let doorbell = leaf(base.checked_add(2)?);
        let limits = leaf(base.checked_add(3)?);
        let address = u64::from(doorbell.ecx) << 32 | u64::from(doorbell.ebx);
        Some(Self {
            version,
            features: Features::from_bits_retain(second.ebx),
            doorbell_port: u16::try_from(doorbell.eax).ok().filter(|&port| port != 0),
            doorbell_address: Some(address).filter(|&address| address != 0),
            limits: Limits { buffer_bytes: limits.eax, vectors: u16::try_from(limits.ebx).ok()? },
        })
    }
}

/// [`SIGNATURE`] in EBX, ECX and EDX.
const SIGNATURE_WORDS: [u32; 3] = {
    let [b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3] = SIGNATURE;
    [
        u32::from_le_bytes([b0, b1, b2, b3]),
        u32::from_le_bytes([c0, c1, c2, c3]),
        u32::from_le_bytes([d0, d1, d2, d3]),
    ]
};

pub(crate) fn is_signature(leaf: Leaf) -> bool {
    let [ebx, ecx, edx] = SIGNATURE_WORDS;
    leaf.ebx == ebx && leaf.ecx == ecx && leaf.edx == edx
}
