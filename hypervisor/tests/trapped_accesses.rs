//! Accesses that no driver makes, to the trapped table and around it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod fixture;

use fixture::*;

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
