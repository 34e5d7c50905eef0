//! Counts that need no valgrind, against their bounds, and that both halves do the same.

#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]

use std::collections::BTreeMap;

use pvmsi_bench::guest::{Memory, Traffic, with_guest};
use pvmsi_bench::{Line, Side, VECTORS, counts, host};

/// The bounds of all architectures.
fn bounds() -> BTreeMap<&'static str, f64> {
    include_str!("../bounds.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
            [name, most] => Some((name, most.parse().unwrap())),
            _ => None,
        })
        .collect()
}

fn lines() -> Vec<Line> {
    host::raise_file_limit().unwrap();
    counts::lines().unwrap()
}

fn value(lines: &[Line], name: &str, side: Side) -> f64 {
    lines.iter().find(|line| line.name == name && line.side == side).unwrap().value.unwrap()
}

#[test]
fn no_count_is_over_its_bound() {
    let bounds = bounds();
    let lines = lines();
    for line in lines.iter().filter(|line| line.side == Side::PvMsi) {
        let value = line.value.unwrap();
        let most = bounds.get(&*line.name);
        assert!(most.is_some_and(|most| value <= *most), "{}: {value}, {most:?}", line.name);
    }
}

#[test]
fn the_standard_way_costs_exits_for_each_entry() {
    let lines = lines();
    let count = |name| value(&lines, name, Side::Standard);
    let vectors = f64::from(VECTORS);
    // Vector control read, three words written, the mask bit cleared; message control.
    assert_eq!(count("set_up.exits"), 5.0 * vectors + 5.0);
    assert_eq!(count("set_up.routing_updates"), vectors);
    assert_eq!(count("affinity_change.exits"), 6.0);
    assert_eq!(count("mask_unmask.exits"), 3.0);
    assert_eq!(count("write_beside_table.exits"), 1.0);
}

/// The host is exercised by a sequence of this crate, the guest half against a script: what the
/// figures say of the one must be true of the other.
#[test]
fn the_guest_half_makes_the_exits_and_sends_the_bytes_that_are_counted_of_the_host() {
    let lines = lines();
    let count = |name, side| value(&lines, name, side);
    let mut memory = Memory::new(VECTORS);
    let (set_up, affinity_change, mask_unmask) = with_guest(VECTORS, &mut memory, |guest| {
        let none = guest.traffic();
        guest.enable(true)?;
        for vector in 0..VECTORS {
            guest.unmask(vector)?;
        }
        let set_up = guest.traffic();
        guest.set(0, 1)?;
        let moved = guest.traffic();
        guest.mask(0)?;
        guest.unmask(0)?;
        let done = guest.traffic();
        Ok((set_up.since(none), moved.since(set_up), done.since(moved)))
    })
    .unwrap();
    let exits = |traffic: Traffic| (traffic.rings + traffic.config_accesses) as f64;
    assert_eq!(exits(set_up), count("set_up.exits", Side::PvMsi));
    assert_eq!(set_up.bytes as f64, count("set_up.bytes", Side::PvMsi));
    assert_eq!(exits(affinity_change), count("affinity_change.exits", Side::PvMsi));
    assert_eq!(affinity_change.bytes as f64, count("affinity_change.bytes", Side::PvMsi));
    assert_eq!(exits(mask_unmask), count("mask_unmask.exits", Side::PvMsi));
}
