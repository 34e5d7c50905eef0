//! Machines on this host's KVM: what only an x86_64 guest sees.

use vm_memory::{Bytes, GuestAddress};

use super::boot;
use crate::control::End;
use crate::test_guest::run;

#[test]
fn every_vcpu_starts_with_its_index_and_start_info() {
    // mov [rsi*8 + 0x8000], rdi; cmp rsi, 1; jne forever; wait for vCPU 0; out 0xf4
    let code = [
        0x48, 0x89, 0x3c, 0xf5, 0x00, 0x80, 0x00, 0x00, // mov [rsi*8+0x8000], rdi
        0x48, 0x83, 0xfe, 0x01, // cmp rsi, 1
        0x75, 0xfe, // jne .
        0x48, 0x83, 0x3c, 0x25, 0x00, 0x80, 0x00, 0x00, 0x00, // cmp qword [0x8000], 0
        0x74, 0xf5, // je back
        0x30, 0xc0, 0xe6, 0xf4, // exit 0
    ];
    let Some((machine, end)) = run(&code, |config| config.cpus = 2) else { return };
    assert_eq!(end, End::Exited(0));
    for slot in 0..2 {
        let start: u64 = machine.memory().read_obj(GuestAddress(0x8000 + 8 * slot)).unwrap();
        assert_eq!(start, boot::START_INFO);
    }
}
