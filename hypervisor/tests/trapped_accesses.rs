//! Accesses that no driver makes, to the trapped table and around it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![allow(clippy::cast_possible_truncation)]

mod fixture;

use fixture::function::{Behind, behind, claim, never_reset, with_msi};
use fixture::*;
use pvmsi_hypervisor::Policy;
use pvmsi_protocol::{CallId, TableMode};
use vm_memory::VolatileMemory;

/// Where the MSI-X capability of the software function starts.
const MSIX_CAPABILITY: u64 = pvmsi_software::config::MSIX;

#[test]
fn an_access_that_spans_the_pending_bits_does_not_reach_them() {
    let guest = Guest::with_vectors(1);
    assert!(guest.router.mmio_write(BAR + PENDING - 4, &[0xff; 16]));
    assert!(!guest.pending(0), "a pending bit is read-only");
    let mut data = [0; 16];
    assert!(guest.router.mmio_read(BAR + PENDING - 4, &mut data));
    assert_eq!(data, [0xff; 16], "what nobody answers reads as ones");
}

#[test]
fn nothing_lies_behind_configuration_space() {
    let guest = Guest::with_vectors(1);
    for offset in [4096, u64::MAX - 1, u64::MAX] {
        guest.config_write(offset, &[0; 4]);
        assert_eq!(guest.config_read(offset), u32::MAX, "{offset:#x}");
    }
    assert_eq!(guest.config_read(0), 0x5650_fffe, "and it does not begin again there");
}

/// A word of an entry in the function's own table.
fn own_word(guest: &Guest, vector: u16, word: u64) -> vm_memory::VolatileRef<'_, u32> {
    guest.bar.get_ref(Guest::entry(vector, word) as usize).unwrap()
}

/// Vector control of an entry in the function's own table.
fn own_control(guest: &Guest, vector: u16) -> u32 {
    own_word(guest, vector, 3).load()
}

#[test]
fn bits_beside_the_mask_bit_are_the_functions_own() {
    // Steering tags of a function with TPH, and bits that have no meaning yet.
    const TAGS: u32 = 0xabcd_0000;
    const MORE: u32 = 0x00fe;
    let guest = Guest::with_vectors(4);
    let control = |vector| guest.load(Guest::entry(vector, 3));
    let store = |vector, value| guest.store(Guest::entry(vector, 3), value);
    // Every bit, while the rest of the entry says that somebody answers.
    store(3, u32::MAX);
    assert_eq!((control(3), own_control(&guest, 3) & !1), (u32::MAX, u32::MAX - 1));
    store(3, 1);
    assert_eq!(control(3), 1);
    // What the function has at the start, and what the guest writes, before it calls.
    guest.bar.get_ref::<u32>(Guest::entry(1, 3) as usize).unwrap().store(TAGS | 1);
    assert_eq!((control(0), control(1)), (1, TAGS | 1));
    store(0, MORE | 1);
    assert_eq!((control(0), own_control(&guest, 0) & !1), (MORE | 1, MORE));
    guest.control(ENABLE);
    // A driver that has read the word once writes all of it when it masks and unmasks.
    assert_eq!(guest.configure(4).mode, TableMode::Direct);
    assert_eq!((control(0), control(1)), (MORE, TAGS));
    store(1, TAGS | 1);
    store(2, MORE);
    guest.function.revoke().unwrap();
    assert!(!guest.is_direct());
    assert_eq!([0, 1, 2, 3].map(control), [MORE, TAGS | 1, MORE, 0]);
    store(1, TAGS);
    store(0, 1);
    store(3, TAGS | 1);
    assert_eq!([0, 1, 2, 3].map(control), [1, TAGS, MORE, TAGS | 1]);
    // What is masked waits, and what is not arrives, whatever the other bits are.
    guest.raise(1);
    guest.raise(3);
    assert_eq!(guest.interrupts(), [1]);
    guest.function.allow().unwrap();
    assert!(!guest.is_direct(), "an event waits");
    store(3, TAGS);
    assert_eq!(guest.interrupts(), [3]);
    assert!(guest.is_direct());
    assert_eq!([0, 1, 2, 3].map(|vector| own_control(&guest, vector)), [1, TAGS, MORE, TAGS]);
    // Wide writes as well; and a release leaves them.
    guest.call(CallId::Release, &[]).unwrap();
    assert!(guest.router.mmio_write(BAR + Guest::entry(2, 2), &[0x55, 0, 0, 0, 1, 0, 0x77, 0]));
    assert_eq!([1, 2].map(control), [TAGS | 1, 0x77_0001]);
    assert_eq!(guest.load(Guest::entry(2, 2)), 0x55);
}

#[test]
fn a_table_message_written_back_while_trapped_reaches_the_function() {
    let guest = Guest::with_vectors(4);
    guest.control(ENABLE);
    guest.configure(3);
    guest.function.revoke().unwrap();
    let own = |vector| [0, 1, 2, 3].map(|word| own_word(&guest, vector, word).load());
    let before = own(1);
    assert!(!guest.is_direct() && before[2] != 0 && before[3] == 0);
    behind(&guest.bar, Behind::Reset);
    assert_eq!(own(1), [0, 0, 0, 1]);
    // As a kernel that restores MSI-X does: masked, written, and the mask bit as it was.
    guest.control(ENABLE | FUNCTION_MASK);
    for (word, value) in before.into_iter().enumerate().take(3) {
        guest.store(Guest::entry(1, word as u64), value);
    }
    guest.store(Guest::entry(1, 3), 0);
    guest.control(ENABLE);
    assert_eq!(own(1), before);
    guest.raise(1);
    assert_eq!(guest.interrupts(), [1]);
    // In stores of 8 bytes, of something else, and masked: the message is the host's all the same.
    let second = before[2] + 1;
    assert!(guest.router.mmio_write(BAR + Guest::entry(2, 2), &[0x77, 0, 0, 0, 1, 0, 0, 0]));
    assert_eq!(own(2), [before[0], before[1], second, 0]);
    assert_eq!(guest.load(Guest::entry(2, 2)), second);
    guest.raise(2);
    assert_eq!(guest.interrupts(), [0_u16; 0]);
    guest.store(Guest::entry(2, 3), 0);
    assert_eq!(guest.interrupts(), [2]);
    // What the guest was not given, and a table that goes back to it.
    guest.store(Guest::entry(3, 2), second);
    assert_eq!(own(3), [0, 0, 0, 1]);
    guest.function.allow().unwrap();
    assert!(guest.is_direct());
    assert_eq!(own(1), before);
}

#[test]
fn a_table_size_that_changes_is_not_shown() {
    let guest = Guest::with_vectors(16);
    let capability = || [0, 4, 8].map(|at| guest.config_read(MSIX_CAPABILITY + at));
    let served = capability();
    assert_eq!(served[0] >> 16 & 0x7ff, 15);
    claim(22);
    assert_eq!(capability(), served);
    assert_eq!(guest.service.functions()[0].status().unwrap().vectors, 16);
    // Enable and Function Mask are the guest's as before.
    guest.control(ENABLE | FUNCTION_MASK);
    assert_eq!(capability()[0] >> 16, u32::from(ENABLE | FUNCTION_MASK) | 15);
}

#[test]
fn a_reset_that_the_function_does_not_have_changes_nothing() {
    const DEVICE_CONTROL: u64 = pvmsi_software::config::DEVICE_CONTROL;
    never_reset();
    let guest = Guest::with_vectors(4);
    guest.control(ENABLE);
    guest.program(2, message(2));
    guest.config_write(DEVICE_CONTROL, &0x8000_u16.to_le_bytes());
    assert_eq!(guest.config_read(MSIX_CAPABILITY) >> 16 & 0xc000, u32::from(ENABLE));
    guest.raise(2);
    assert_eq!(guest.interrupts(), [2]);
    assert_eq!(guest.configure(4).mode, TableMode::Direct);
    let generation = guest.query().generation;
    guest.config_write(DEVICE_CONTROL, &0x8000_u16.to_le_bytes());
    assert!(guest.is_direct());
    assert_eq!(guest.query().generation, generation);
}

/// The ids of a function's capabilities, as the guest finds them.
fn capabilities(guest: &Guest) -> Vec<u32> {
    let mut ids = Vec::new();
    let mut at = guest.config_read(0x34) & 0xfc;
    while at != 0 {
        let header = guest.config_read(at.into());
        ids.push(header & 0xff);
        at = header >> 8 & 0xfc;
    }
    ids
}

#[test]
fn msi_is_hidden_at_every_policy_and_nothing_else_is() {
    let without = capabilities(&Guest::with_vectors(1));
    with_msi();
    for policy in [Policy::Off, Policy::Trapped, Policy::Direct] {
        let guest = Guest::new(Options { policy, ..Options::default() });
        assert_eq!(capabilities(&guest), without, "{policy:?}");
        guest.control(ENABLE);
        guest.program(0, message(0));
        assert_eq!(capabilities(&guest), without, "{policy:?}, with MSI-X enabled");
    }
}
