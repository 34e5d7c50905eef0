//! Functions as vendors build them: what each is on hosts with pages of 4K, 16K and 64K, and what a guest finds.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![allow(clippy::cast_possible_truncation)]

mod fixture;

use fixture::*;
use pvmsi_hypervisor::{BarIndex, BarPages, Layout, NotMappable, PendingBits};
use pvmsi_protocol::{Reasons, TableMode};
use pvmsi_software::registers::BAR_BYTES;
use pvmsi_test_doubles::layouts::{PAGE_SIZES, Serves, VENDOR_LAYOUTS, VendorLayout};

/// The pages that a guest can be shown, where VFIO maps these BARs.
fn pieces(layout: &Layout, maps: impl Fn(BarIndex) -> bool) -> Vec<(BarIndex, BarPages)> {
    let mut pieces = Vec::new();
    for (index, bar) in (0..).map(BarIndex).zip(layout.bars()) {
        if let Some(bar) = bar.filter(|_| maps(index)) {
            let mapped = 0..bar.size.next_multiple_of(layout.page_size());
            pieces.extend(layout.pages(index, mapped).into_iter().map(|pages| (index, pages)));
        }
    }
    pieces
}

/// What a function is where VFIO maps the BARs that are smaller than a page only if `maps` says so.
fn serves(function: &VendorLayout, page_size: u64, maps: impl Fn(BarIndex) -> bool) -> Serves {
    let layout = match function.layout(page_size) {
        Ok(layout) => layout,
        Err(error) => return Serves::Refused(error),
    };
    let maps = |bar| layout.bar(bar).is_some_and(|found| found.size >= page_size) || maps(bar);
    let grown = layout.clone().with_own_pages(maps);
    let pieces = pieces(&grown, maps);
    let direct = grown.can_be_direct(pieces.iter().map(|(bar, pages)| (*bar, pages)));
    grown.not_mappable(direct).map_or(Serves::Direct, Serves::Trapped)
}

#[test]
fn each_is_direct_trapped_or_refused_and_why() {
    assert_eq!(VENDOR_LAYOUTS.len(), 31);
    for function in VENDOR_LAYOUTS {
        for (page_size, expected) in PAGE_SIZES.into_iter().zip(function.serves) {
            let found = serves(function, page_size, |_| true);
            assert_eq!(found, expected, "{} with pages of {page_size:#x}", function.name);
        }
    }
}

#[test]
fn a_table_in_a_page_that_vfio_does_not_map_says_so() {
    for function in VENDOR_LAYOUTS {
        for (page_size, apart) in PAGE_SIZES.into_iter().zip(function.serves) {
            let (bar, _) = function.table;
            let own = function.bars.iter().find(|found| found.index == bar);
            let expected = match (apart, own.map_or(0, |bar| bar.size)) {
                (Serves::Direct, size) if size < page_size => {
                    let bar = BarIndex(bar);
                    Serves::Trapped(NotMappable::SmallBar { bar, size, page_size })
                }
                _ => apart,
            };
            let found = serves(function, page_size, |_| false);
            assert_eq!(found, expected, "{} with pages of {page_size:#x}", function.name);
        }
    }
}

fn named(name: &str) -> &'static VendorLayout {
    VENDOR_LAYOUTS.iter().find(|function| function.name.contains(name)).unwrap()
}

#[test]
fn pending_bits_in_a_small_bar_do_not_keep_the_table() {
    // 65 vectors at 0x2000 of 16K, pending bits in 256 bytes of their own.
    let drive = named("SN750");
    let table_alone = |bar| bar == BarIndex(0);
    for (page_size, name) in [(0x1000, "4K"), (0x4000, "16K"), (0x1_0000, "64K")] {
        assert_eq!(serves(drive, page_size, table_alone), Serves::Direct, "{name}");
        let layout = drive.layout(page_size).unwrap().with_own_pages(table_alone);
        let pieces = pieces(&layout, table_alone);
        assert!(pieces.iter().all(|(bar, _)| *bar == BarIndex(0)), "nothing else is shown");
        assert!(pieces.iter().any(|(_, pages)| pages.table && pages.switched));
    }
    // With a page of their own they come and go with the table.
    let layout = drive.layout(0x1000).unwrap().with_own_pages(|_| true);
    let expected = BarPages { pages: 0..0x1000, switched: true, table: false };
    assert!(pieces(&layout, |_| true).contains(&(BarIndex(4), expected)));
}

#[test]
fn other_small_bars_get_pages_too() {
    let drive = named("1c5c:174a");
    let layout = drive.layout(0x1_0000).unwrap().with_own_pages(|_| true);
    let unused = BarPages { pages: 0..0x1_0000, switched: false, table: false };
    for bar in [2, 3].map(BarIndex) {
        assert!(layout.is_grown(bar));
        assert!(pieces(&layout, |_| true).contains(&(bar, unused.clone())));
    }
}

/// What the fixture's function says of itself.
fn claiming(layout: &Layout, vectors: u16, pending: (BarIndex, u64)) -> Layout {
    Layout::new(*layout.bars(), vectors, layout.table(), pending, layout.page_size()).unwrap()
}

#[test]
fn a_table_that_runs_over_the_pending_bits_is_served_trapped() {
    let guest = Guest::new(Options {
        // One entry short, as DesignWare endpoints had it.
        layout: |own| claiming(own, own.vectors(), (BarIndex(0), TABLE + 7 * 16)),
        ..Options::default()
    });
    guest.control(ENABLE);
    let configured = guest.configure(8);
    assert_eq!((configured.granted, configured.mode), (8, TableMode::Trapped));
    assert_eq!(configured.reasons, Reasons::NOT_MAPPABLE);
    assert_eq!(guest.status().not_mappable, Some(NotMappable::OverPendingBits));
    assert!(guest.status().not_mappable.unwrap().to_string().contains("where its table is"));
    // The last entry is an entry, and works as one.
    let own = configured.vectors[7].table_message.unwrap();
    let read = [0, 1, 2].map(|word| guest.load(Guest::entry(7, word)));
    assert_eq!(read, [own.address as u32, (own.address >> 32) as u32, own.data]);
    guest.mask(7);
    guest.raise(7);
    assert_eq!(guest.interrupts(), NONE);
    guest.unmask(7);
    assert_eq!(guest.interrupts(), [7]);
    // What the function has there is none of its pending bits.
    let states = guest.query_vectors(0, 8).unwrap();
    assert!(states.iter().all(|state| !state.pending), "{states:?}");
}

#[test]
fn pending_bits_outside_their_bar_do_not_keep_the_table() {
    let guest = Guest::new(Options {
        layout: |own| claiming(own, own.vectors(), (BarIndex(0), 0x46_0000)),
        ..Options::default()
    });
    guest.control(ENABLE);
    let configured = guest.configure(8);
    assert_eq!((configured.mode, configured.reasons), (TableMode::Direct, Reasons::empty()));
    assert_eq!(guest.status().not_mappable, None);
    guest.mask(3);
    guest.raise(3);
    assert!(!guest.query_vectors(3, 1).unwrap()[0].pending, "nobody knows where to look");
    guest.unmask(3);
    assert_eq!(guest.interrupts(), [3]);
    // Trapped, the service knows what it holds.
    guest.function.revoke().unwrap();
    guest.mask(3);
    guest.raise(3);
    assert!(guest.query_vectors(3, 1).unwrap()[0].pending);
    guest.unmask(3);
    assert_eq!(guest.interrupts(), [3]);
}

#[test]
fn pending_bits_that_exit_are_the_functions_own() {
    let guest = Guest::with_vectors(8);
    guest.control(ENABLE);
    assert_eq!(guest.configure(8).mode, TableMode::Direct);
    let read = || {
        let mut data = [0; 8];
        assert!(guest.router.mmio_read(BAR + PENDING, &mut data));
        u64::from_le_bytes(data)
    };
    guest.mask(5);
    guest.raise(5);
    assert_eq!(read(), 1 << 5);
    guest.unmask(5);
    assert_eq!((guest.interrupts(), read()), (vec![5], 0));
    assert!(guest.is_direct());
}

/// A page of the host that is larger than the fixture's BAR.
const LARGE_PAGE: u64 = 2 * BAR_BYTES;

#[test]
fn a_bar_with_a_page_of_its_own_is_as_large_as_that_for_the_guest() {
    let guest = Guest::new(Options {
        layout: |own| {
            let (table, pending) = (own.table(), own.pending());
            Layout::new(*own.bars(), own.vectors(), table, pending, LARGE_PAGE)
                .unwrap()
                .with_own_pages(|_| true)
        },
        ..Options::default()
    });
    guest.control(ENABLE);
    assert_eq!(guest.configure(8).mode, TableMode::Direct);
    let [Some((address, size)), ..] = guest.function.bars() else { panic!("it is decoded") };
    assert_eq!((address.0, size), (BAR, LARGE_PAGE));
    // Sized as enumeration does it, by words and by bytes.
    guest.config_write(0x04, &[0, 0]);
    guest.config_write(0x10, &[0xff; 4]);
    assert_eq!(guest.config_read(0x10), !(LARGE_PAGE as u32 - 1));
    let mut byte = [0];
    guest.function.config_read(0x12, &mut byte).unwrap();
    assert_eq!(byte, [0xfc]);
    // What is none of the sizes is no address either.
    let moved = BAR as u32 + 4 * LARGE_PAGE as u32;
    guest.config_write(0x10, &(moved + BAR_BYTES as u32).to_le_bytes());
    assert_eq!(guest.config_read(0x10), moved);
    guest.config_write(0x04, &[6, 0]);
    let [Some((address, _)), ..] = guest.function.bars() else { panic!("it is decoded again") };
    assert_eq!(address.0, u64::from(moved));
    assert_eq!(guest.view().bars[0], Some(address));
    assert!(guest.is_direct());
    // Behind the function's own end nobody answers.
    let mut data = [0; 4];
    assert!(guest.router.mmio_read(address.0 + BAR_BYTES, &mut data));
    assert_eq!(data, [0xff; 4]);
    assert!(guest.router.mmio_write(address.0 + BAR_BYTES, &data));
    assert!(!guest.router.mmio_read(address.0 + LARGE_PAGE, &mut data));
}

#[test]
fn a_bar_without_a_page_of_its_own_stays_as_it_is() {
    let guest = Guest::new(Options {
        layout: |own| {
            let (table, pending) = (own.table(), own.pending());
            Layout::new(*own.bars(), own.vectors(), table, pending, LARGE_PAGE).unwrap()
        },
        ..Options::default()
    });
    guest.config_write(0x10, &[0xff; 4]);
    assert_eq!(guest.config_read(0x10), !(BAR_BYTES as u32 - 1));
}

#[test]
fn pending_bits_are_judged_by_the_functions_own_size() {
    let own = Layout::new(
        *named("FCH").layout(0x4000).unwrap().bars(),
        8,
        (BarIndex(5), 0),
        (BarIndex(5), 0x1000),
        0x4000,
    );
    let grown = own.unwrap().with_own_pages(|_| true);
    assert_eq!(grown.pending_bits(), PendingBits::Nowhere);
    assert_eq!(grown.switched_pages(BarIndex(5)), vec![0..0x4000]);
}
