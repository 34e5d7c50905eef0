//! Discovery and doorbell of arm64: SMCCC calls.

use pvmsi_conformance::host::Platform as TestPlatform;
use pvmsi_guest_runtime::Conduit;
pub(crate) use pvmsi_guest_runtime::Platform;
use pvmsi_guest_runtime::msi;
use pvmsi_protocol::{SMCCC_CALL, SMCCC_DISCOVER, ServiceBlock};

use crate::arrivals;

/// Where BARs may be put.
pub(crate) const BARS: u64 = 0x1000_0000;

/// The platform of the tests.
pub(crate) fn platform() -> TestPlatform {
    let (its_doorbell, _) = msi::message(0, arrivals::route(0));
    TestPlatform::Arm64 { its_doorbell }
}

/// The doorbell's register, where the device tree names one.
pub(crate) fn described_register(platform: Platform) -> Option<u64> {
    platform.doorbell_register
}

/// A leaf of the service block, 0 to 3.
pub(crate) fn block(platform: Platform, leaf: u32) -> Option<[u32; 4]> {
    let [status, low, high, _] = call(platform.conduit, SMCCC_DISCOVER, leaf.into());
    let halves = |pair: u64| {
        let [a, b, c, d, e, f, g, h] = pair.to_le_bytes();
        [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
    };
    let ([a, b], [c, d]) = (halves(low), halves(high));
    (status == 0).then_some([a, b, c, d])
}

/// A call: X0 to X3.
pub(crate) fn smccc(platform: Platform, function: u32, x1: u64) -> Option<[u64; 4]> {
    Some(call(platform.conduit, function, x1))
}

fn call(conduit: Conduit, function: u32, x1: u64) -> [u64; 4] {
    let mut arguments = [0; 17];
    let [first, ..] = &mut arguments;
    *first = x1;
    let [x0, x1, x2, x3, ..] = match conduit {
        Conduit::Hvc => smccc::hvc64(function, arguments),
        Conduit::Smc => smccc::smc64(function, arguments),
    };
    [x0, x1, x2, x3]
}

/// A call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Native(Conduit);

impl Native {
    /// Where the device tree names no register, and the host answers calls.
    pub(crate) fn find(platform: Platform, block: Option<&ServiceBlock>) -> Option<Self> {
        let by_call = block.is_some() && platform.doorbell_register.is_none();
        by_call.then_some(Self(platform.conduit))
    }

    pub(crate) fn of_the_reference_machine(platform: Platform) -> Self {
        Self(platform.conduit)
    }

    /// A call takes a page number, and nothing of another width.
    pub(crate) fn write(self, data: &[u8]) {
        if let [a, b, c, d] = *data {
            call(self.0, SMCCC_CALL, u32::from_le_bytes([a, b, c, d]).into());
        }
    }

    /// There is nothing to read.
    pub(crate) fn read(self, _width: usize) {}
}
