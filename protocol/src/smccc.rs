//! Discovery and doorbell on arm64: two calls of the SMC Calling Convention (Arm DEN 0028), in the range of vendor specific hypervisor services.
//!
//! Both are fast calls of the 64-bit convention; HVC and SMC are the same to
//! the host. A host that does not know them answers [`SmcccStatus::NOT_SUPPORTED`],
//! as the convention demands.
//!
//! | call | W0 | X1 | answer: X0 | X1 | X2 | X3 |
//! |---|---|---|---|---|---|---|
//! | discover | [`SMCCC_DISCOVER`] | number of a leaf, 0 to 3 | status | EAX, in bits 63..32 EBX | ECX, in bits 63..32 EDX | 0 |
//! | doorbell | [`SMCCC_CALL`] | page number of a call buffer | status | 0 | 0 | 0 |
//!
//! The status of the doorbell says only whether a buffer was there to be
//! answered; what became of the call stands in the buffer.

use crate::{Leaf, ServiceBlock};

/// Function id of discovery.
pub const SMCCC_DISCOVER: u32 = 0xc600_5650;

/// Function id of the doorbell.
pub const SMCCC_CALL: u32 = 0xc600_5651;

/// X0 after a call. Values are the convention's, as a signed 64-bit number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmcccStatus(pub u64);

impl SmcccStatus {
    /// Done.
    pub const SUCCESS: Self = Self(0);
    /// No such call: -1.
    pub const NOT_SUPPORTED: Self = Self(u64::MAX);
    /// An argument is wrong: -3.
    pub const INVALID_PARAMETER: Self = Self(u64::MAX - 2);
}

impl ServiceBlock {
    /// X0 to X3 of the answer to [`SMCCC_DISCOVER`] for a leaf, X1 of the call.
    pub fn smccc_answer(&self, leaf: u64) -> [u64; 4] {
        let found = self.leaves(0).into_iter().find(|(number, _)| u64::from(*number) == leaf);
        let Some((_, Leaf { eax, ebx, ecx, edx })) = found else {
            return [SmcccStatus::INVALID_PARAMETER.0, 0, 0, 0];
        };
        let pair = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
        [SmcccStatus::SUCCESS.0, pair(eax, ebx), pair(ecx, edx), 0]
    }

    /// Reads the block with a function that makes the call [`SMCCC_DISCOVER`] for a leaf and returns X0 to X3. `None` when the host does not know the call, or answers in a form that this version cannot read.
    pub fn find_by_smccc(mut discover: impl FnMut(u64) -> [u64; 4]) -> Option<Self> {
        Self::read(0, |number| match discover(u64::from(number)) {
            [status, low, high, _] if status == SmcccStatus::SUCCESS.0 => {
                let [a0, a1, a2, a3, b0, b1, b2, b3] = low.to_le_bytes();
                let [c0, c1, c2, c3, d0, d1, d2, d3] = high.to_le_bytes();
                Leaf {
                    eax: u32::from_le_bytes([a0, a1, a2, a3]),
                    ebx: u32::from_le_bytes([b0, b1, b2, b3]),
                    ecx: u32::from_le_bytes([c0, c1, c2, c3]),
                    edx: u32::from_le_bytes([d0, d1, d2, d3]),
                }
            }
            _ => Leaf::default(),
        })
    }
}
