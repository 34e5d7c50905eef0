use std::ptr::NonNull;

use pvmsi_protocol::BufferPage;

use crate::arch::trace::{self, Access};
use crate::{Doorbell, MmioDoorbell};

#[test]
fn the_register_is_stored_to() {
    let mut register = 0u32;
    let pointer = NonNull::from(&mut register);
    // SAFETY: the register is a variable of this test.
    let doorbell = unsafe { MmioDoorbell::new(pointer) };
    trace::take();
    doorbell.ring(BufferPage(0x4711));
    assert_eq!(trace::take(), [Access::Write(pointer, 0x4711)]);
}

#[cfg(target_arch = "x86_64")]
mod by_cpuid {
    use pvmsi_protocol::{Features, Limits, ServiceBlock, Version};

    use super::*;
    use crate::{AnyDoorbell, Offer, discover};

    fn offer(port: Option<u16>, address: Option<u64>) -> Offer {
        let block = ServiceBlock {
            version: Version::CURRENT,
            features: Features::all(),
            doorbell_port: port,
            doorbell_address: address,
            limits: Limits { buffer_bytes: 65536, vectors: 2048 },
        };
        Offer { block, transport: () }
    }

    #[test]
    fn discovery_is_harmless_wherever_the_tests_run() {
        let _ = discover();
    }

    #[test]
    fn the_port_is_preferred_and_nothing_is_mapped() {
        let offer = offer(Some(0x5650), Some(0xfebf_f000));
        // SAFETY: it is not rung.
        let doorbell = unsafe { AnyDoorbell::from_offer(&offer, |_| panic!("mapped")) };
        assert!(matches!(doorbell, Some(AnyDoorbell::Native(_))));
    }

    #[test]
    fn the_register_is_mapped_where_there_is_no_port() {
        let mut register = 0u32;
        let pointer = NonNull::from(&mut register);
        let with_register = offer(None, Some(0xfebf_f000));
        let map = |address| (address == 0xfebf_f000).then_some(pointer);
        // SAFETY: the register is a variable of this test.
        let doorbell = unsafe { AnyDoorbell::from_offer(&with_register, map) };
        assert!(matches!(doorbell, Some(AnyDoorbell::Mmio(_))));

        // SAFETY: there is no doorbell to ring.
        assert!(unsafe { AnyDoorbell::from_offer(&with_register, |_| None) }.is_none());
        let without = offer(None, None);
        // SAFETY: as above.
        assert!(unsafe { AnyDoorbell::from_offer(&without, |_| Some(pointer)) }.is_none());
    }
}
