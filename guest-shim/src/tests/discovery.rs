use std::ptr::NonNull;

use pvmsi_protocol::{BufferPage, CpuidBlock, Features, Limits, Version};

use crate::arch::trace::{self, Access};
use crate::{AnyDoorbell, Doorbell, discover};

fn block(port: Option<u16>, address: Option<u64>) -> CpuidBlock {
    CpuidBlock {
        version: Version::CURRENT,
        features: Features::all(),
        doorbell_port: port,
        doorbell_address: address,
        limits: Limits { buffer_bytes: 65536, vectors: 2048 },
    }
}

#[test]
fn discovery_is_harmless_wherever_the_tests_run() {
    let _ = discover();
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_port_is_preferred_and_nothing_is_mapped() {
    let block = block(Some(0x5650), Some(0xfebf_f000));
    // SAFETY: it is not rung.
    let doorbell = unsafe { AnyDoorbell::from_block(&block, |_| panic!("mapped")) };
    assert!(matches!(doorbell, Some(AnyDoorbell::Port(_))));
}

#[test]
fn the_register_is_mapped_and_stored_to() {
    let mut register = 0u32;
    let pointer = NonNull::from(&mut register);
    let block_with_register = block(None, Some(0xfebf_f000));
    let map = |address| (address == 0xfebf_f000).then_some(pointer);
    // SAFETY: the register is a variable of this test.
    let doorbell = unsafe { AnyDoorbell::from_block(&block_with_register, map) }.unwrap();
    trace::take();
    doorbell.ring(BufferPage(0x4711));
    assert_eq!(trace::take(), [Access::Write(pointer, 0x4711)]);

    // SAFETY: there is no doorbell to ring.
    assert!(unsafe { AnyDoorbell::from_block(&block_with_register, |_| None) }.is_none());
    // SAFETY: as above.
    assert!(unsafe { AnyDoorbell::from_block(&block(None, None), |_| Some(pointer)) }.is_none());
}
