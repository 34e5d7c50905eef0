//! Discovery and doorbell of x86_64: CPUID, and a port.

use pvmsi_conformance::host::Platform as TestPlatform;
pub(crate) use pvmsi_guest_runtime::Platform;
use pvmsi_protocol::{SIGNATURE, ServiceBlock};
use x86_64::instructions::port::Port;

/// Where the reference machine puts its doorbell.
const REFERENCE_PORT: u16 = 0x5650;

/// Where BARs may be put.
pub(crate) const BARS: u64 = 0xc000_0000;

/// The platform of the tests.
pub(crate) fn platform() -> TestPlatform {
    TestPlatform::X86
}

/// The device tree that is not there.
pub(crate) fn described_register(_: Platform) -> Option<u64> {
    None
}

/// EAX to EDX of a leaf.
pub(crate) fn cpuid(leaf: u32) -> [u32; 4] {
    #[allow(unused_unsafe, reason = "safe since Rust 1.94, unsafe before")]
    // SAFETY: every x86_64 processor has CPUID.
    let leaf = unsafe { core::arch::x86_64::__cpuid(leaf) };
    [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
}

/// A leaf of the service block, 0 to 3; numbers of leaves count from its base.
pub(crate) fn block(_: Platform, leaf: u32) -> Option<[u32; 4]> {
    let base = (0x4000_0000..=0x4000_ff00).step_by(0x100).find(|&base| {
        let [_, signature @ ..] = cpuid(base);
        signature.map(u32::to_le_bytes).as_flattened() == SIGNATURE
    })?;
    let mut words = cpuid(base.checked_add(leaf)?);
    if let (0, [highest, ..]) = (leaf, &mut words) {
        *highest = highest.checked_sub(base)?;
    }
    Some(words)
}

/// There are no such calls.
pub(crate) fn smccc(_: Platform, _function: u32, _x1: u64) -> Option<[u64; 4]> {
    None
}

/// A port.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Native(u16);

impl Native {
    pub(crate) fn find(_: Platform, block: Option<&ServiceBlock>) -> Option<Self> {
        block?.doorbell_port.map(Self)
    }

    pub(crate) fn of_the_reference_machine(_: Platform) -> Self {
        Self(REFERENCE_PORT)
    }

    pub(crate) fn write(self, data: &[u8]) {
        match *data {
            // SAFETY: the doorbell, which takes anything.
            [a] => unsafe { Port::new(self.0).write(a) },
            // SAFETY: as above.
            [a, b] => unsafe { Port::new(self.0).write(u16::from_le_bytes([a, b])) },
            // SAFETY: as above.
            [a, b, c, d] => unsafe { Port::new(self.0).write(u32::from_le_bytes([a, b, c, d])) },
            _ => {}
        }
    }

    pub(crate) fn read(self, width: usize) {
        match width {
            // SAFETY: the doorbell, whose reads have no effect.
            1 => drop(unsafe { Port::<u8>::new(self.0).read() }),
            // SAFETY: as above.
            2 => drop(unsafe { Port::<u16>::new(self.0).read() }),
            // SAFETY: as above.
            4 => drop(unsafe { Port::<u32>::new(self.0).read() }),
            _ => {}
        }
    }
}
