//! Layouts: BARs, table, pending bit array and page size of every kind, with and without pages of their own; and configuration spaces.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use pvmsi_hypervisor::{Bar, BarIndex, Layout, PendingBits, Target};
use pvmsi_protocol::VectorIndex;

/// What is laid out.
#[derive(Arbitrary, Debug)]
struct Plan {
    bars: [Option<(u8, bool, bool)>; BarIndex::COUNT],
    vectors: u16,
    table: Spot,
    pending: Spot,
    page: Page,
    mapped: [(u16, u16); 2],
    /// Which BARs have a page of their own, where they are smaller than one.
    own_pages: u8,
    looks: Vec<(u8, Spot)>,
    /// A configuration space instead, whose words repeat.
    config: Option<Vec<u32>>,
}

/// A place in a BAR.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Spot {
    bar: u8,
    offset: Offset,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Offset {
    Small(u16),
    Page(u8, i8),
    Any(u64),
}

impl Spot {
    fn at(self) -> (BarIndex, u64) {
        let offset = match self.offset {
            Offset::Small(offset) => offset.into(),
            Offset::Page(page, offset) => {
                (u64::from(page) << 12).wrapping_add_signed(offset.into())
            }
            Offset::Any(offset) => offset,
        };
        (BarIndex(self.bar % 8), offset)
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Page {
    Of4K,
    Of16K,
    Of64K,
    Any(u64),
}

fuzz_target!(|plan: Plan| {
    let page = match plan.page {
        Page::Of4K => 0x1000,
        Page::Of16K => 0x4000,
        Page::Of64K => 0x1_0000,
        Page::Any(size) => size,
    };
    let layout = match &plan.config {
        Some(words) => {
            let read = |offset: u64| {
                let word = usize::try_from(offset / 4).ok().and_then(|word| words.get(word));
                // Unaligned reads are answered as by a bus that knows them.
                word.copied().unwrap_or(u32::MAX).rotate_right(offset as u32 % 4 * 8)
            };
            let size =
                |bar: BarIndex| plan.bars[bar.as_usize()].map_or(0, |(size, ..)| 1 << (size % 64));
            let Ok(layout) = Layout::read(read, size, page) else { return };
            layout
        }
        None => {
            let bars = plan.bars.map(|bar| {
                bar.map(|(size, is_64bit, prefetchable)| Bar {
                    size: 1 << (4 + size % 60),
                    is_64bit,
                    prefetchable,
                })
            });
            let (table, pending) = (plan.table.at(), plan.pending.at());
            let layout = Layout::new(bars, plan.vectors, table, pending, page);
            assert_eq!(layout.is_ok(), is_good(&bars, plan.vectors, table, page));
            let Ok(layout) = layout else { return };
            assert_eq!((layout.table(), layout.pending()), (table, pending));
            assert_eq!(layout.pending_bits(), judged(&bars, plan.vectors, table, pending));
            layout
        }
    };
    let has_page = |bar: BarIndex| plan.own_pages >> bar.as_usize() & 1 != 0;
    let grown = layout.clone().with_own_pages(has_page);
    grow(&layout, &grown, has_page);
    let layout = grown;
    pages(&layout, plan.mapped);
    for (bar, spot) in plan.looks {
        look(&layout, BarIndex(bar % 6), spot.at().1);
    }
    // Around both ends of both structures.
    for ((bar, start), length) in structures(&layout) {
        let (last, end) = (start.wrapping_add(length - 1), start.wrapping_add(length));
        for at in [start.wrapping_sub(1), start, last, end] {
            look(&layout, bar, at);
        }
    }
});

fn structures(layout: &Layout) -> [((BarIndex, u64), u64); 2] {
    let vectors = u64::from(layout.vectors());
    [(layout.table(), vectors * 16), (layout.pending(), vectors.div_ceil(64) * 8)]
}

/// The rules of the specification, in numbers that cannot overflow.
fn is_good(bars: &[Option<Bar>], vectors: u16, table: (BarIndex, u64), page: u64) -> bool {
    (1..=2048).contains(&vectors)
        && page >= 4096
        && page.count_ones() == 1
        && inside(bars, table.0, u128::from(table.1) + u128::from(vectors) * 16)
}

fn inside(bars: &[Option<Bar>], bar: BarIndex, end: u128) -> bool {
    bars.get(bar.as_usize()).copied().flatten().is_some_and(|bar| end <= bar.size.into())
}

fn judged(
    bars: &[Option<Bar>],
    vectors: u16,
    table: (BarIndex, u64),
    pending: (BarIndex, u64),
) -> PendingBits {
    let table_end = u128::from(table.1) + u128::from(vectors) * 16;
    let pending_end = u128::from(pending.1) + u128::from(vectors).div_ceil(64) * 8;
    let apart =
        table.0 != pending.0 || table_end <= pending.1.into() || pending_end <= table.1.into();
    match (apart, inside(bars, pending.0, pending_end)) {
        (false, _) => PendingBits::OverTable,
        (true, true) => PendingBits::InBar,
        (true, false) => PendingBits::Nowhere,
    }
}

/// Pages of their own change nothing but the size of small BARs.
fn grow(before: &Layout, after: &Layout, has_page: impl Fn(BarIndex) -> bool) {
    for (number, (old, new)) in (0..).map(BarIndex).zip(before.bars().iter().zip(after.bars())) {
        let small = old.is_some_and(|bar| bar.size < before.page_size()) && has_page(number);
        assert_eq!(after.is_grown(number), small);
        let size = if small { Some(before.page_size()) } else { old.map(|bar| bar.size) };
        assert_eq!(new.map(|bar| bar.size), size);
    }
    assert_eq!(before.pending_bits(), after.pending_bits());
    assert_eq!((before.table(), before.pending()), (after.table(), after.pending()));
}

/// Whether these pages hold a byte of the table, or of the part of the pending bit array that lies in its BAR.
fn is_switched(layout: &Layout, bar: BarIndex, pages: &std::ops::Range<u64>) -> [bool; 2] {
    let size = layout.bar(bar).map_or(0, |bar| bar.size);
    structures(layout).map(|((owner, start), length)| {
        let end = start.saturating_add(length).min(size);
        owner == bar && start < end && start < pages.end && pages.start < end
    })
}

fn pages(layout: &Layout, mapped: [(u16, u16); 2]) {
    let page = layout.page_size();
    let mut pieces = Vec::new();
    for (number, bar) in (0..).map(BarIndex).zip(layout.bars()) {
        for switched in layout.switched_pages(number) {
            assert!(switched.start.is_multiple_of(page) && switched.end.is_multiple_of(page));
            let first = switched.start..switched.start + page;
            let last = switched.end - page..switched.end;
            assert_ne!(is_switched(layout, number, &first), [false; 2], "a page too many at first");
            assert_ne!(is_switched(layout, number, &last), [false; 2], "a page too many at last");
        }
        let Some(bar) = bar else {
            assert!(layout.pages(number, 0..page).is_empty(), "pages of a BAR that is not there");
            continue;
        };
        // Two mappings, as VFIO gives them where a part cannot be mapped.
        let mut start = 0;
        for (gap, length) in mapped {
            let Some((from, end)) = page.checked_mul(u64::from(gap) % 64).and_then(|gap| {
                let from = gap.checked_add(start)?;
                Some((from, from.checked_add(page.checked_mul(length.into())?)?))
            }) else {
                continue;
            };
            start = end;
            let mut next = from;
            for piece in layout.pages(number, from..end) {
                assert_eq!(piece.pages.start, next, "a gap or an overlap");
                assert!(piece.pages.start < piece.pages.end);
                assert!(piece.pages.end.is_multiple_of(page), "half a page");
                assert!(piece.pages.end <= bar.size, "a page that is not the BAR's alone");
                let holds = is_switched(layout, number, &piece.pages);
                assert_eq!(
                    piece.switched,
                    holds != [false; 2],
                    "shown at the wrong time: {piece:?}"
                );
                assert_eq!(piece.table, holds[0], "not known for what it is: {piece:?}");
                next = piece.pages.end;
                pieces.push((number, piece));
            }
            assert_eq!(next, end.min(bar.size / page * page).max(from), "pages are missing");
        }
    }
    let direct = layout.can_be_direct(pieces.iter().map(|(bar, piece)| (*bar, piece)));
    let [((bar, start), length), _] = structures(layout);
    let shown = pieces.iter().any(|(owner, piece)| {
        *owner == bar && piece.pages.start <= start && start + length <= piece.pages.end
    });
    let sound = layout.pending_bits() != PendingBits::OverTable;
    assert_eq!(
        direct,
        shown && sound,
        "direct, and not all of the table can be shown, or the other way round"
    );
    assert_eq!(layout.not_mappable(direct).is_none(), direct);
}

fn look(layout: &Layout, bar: BarIndex, offset: u64) {
    let within = |((owner, start), length): ((BarIndex, u64), u64)| {
        (owner == bar && offset >= start && offset - start < length).then(|| offset - start)
    };
    let [table, pending] = structures(layout).map(within);
    let expected = match (table, pending) {
        // Where both are claimed, too.
        (Some(at), _) => Target::Table { vector: VectorIndex((at / 16) as u16), offset: at % 16 },
        (None, Some(offset)) => Target::Pending { offset },
        (None, None) => Target::Neighbour,
    };
    assert_eq!(layout.target(bar, offset), expected);
    if let Target::Table { vector, offset: inner } = expected {
        assert!(layout.has(vector));
        assert_eq!(layout.entry_offset(vector).map(|start| start + inner), Some(offset));
    }
}
