//! What the probe says of functions as vendors build them, on hosts with pages of 4K, 16K and 64K.

use pvmsi_hypervisor::{BarIndex, LayoutError, NotMappable};
use pvmsi_test_doubles::layouts::{PAGE_SIZES, Serves, VENDOR_LAYOUTS, VendorLayout};

use super::*;

impl MadeUp {
    /// The drive is this function instead, with its BARs at these addresses.
    fn be(&self, function: &VendorLayout, starts: [u64; BarIndex::COUNT]) {
        let folder = format!("sys/bus/pci/devices/{DRIVE}");
        self.write(&format!("{folder}/config"), &function.config_space(starts));
        self.write(&format!("{folder}/resource"), function.resources(starts).as_bytes());
    }

    /// What the probe finds of the drive with pages of this size.
    fn checks(&self, page_size: u64) -> Vec<Check> {
        let found = HostProbe { page_size, ..host::probe(&self.paths()) };
        let mut probe = probe_on(found, &ids(&[DRIVE]), &self.paths());
        probe.functions.pop().unwrap().checks
    }

    /// The check with this name.
    fn check_at(&self, page_size: u64, name: &str) -> Check {
        self.checks(page_size).into_iter().find(|check| check.name == name).unwrap()
    }
}

/// Asserts that the probe says so, and what to do.
fn says(checks: &[Check], expected: Serves, what: &str) {
    let find = |name| checks.iter().find(|check| check.name == name);
    let problems: Vec<_> = checks.iter().filter_map(|check| check.problem).collect();
    let said = |check: &Check| {
        (check.found.clone(), check.remedy.clone().expect("each problem has a remedy"))
    };
    match expected {
        Serves::Direct => {
            assert!(problems.is_empty(), "{what}: {problems:?}");
            let mapping = find("mapping").unwrap();
            assert!(mapping.ok && mapping.found.contains("can be mapped"), "{what}");
        }
        Serves::Trapped(why) => {
            assert_eq!(problems, ["not-mappable"], "{what}");
            let (found, remedy) = said(find("mapping").unwrap());
            assert_eq!(found, why.to_string(), "{what}");
            if let NotMappable::SmallBar { page_size, .. } = why {
                let order = page_size.trailing_zeros();
                let parameter = format!("pci=resource_alignment={order}@{DRIVE}");
                assert!(remedy.contains(&parameter), "{what}: {remedy}");
            }
        }
        Serves::Refused(why) => {
            let (problem, words) = match why {
                LayoutError::NotAssigned(_) => ("bar-not-assigned", "pci=realloc"),
                _ => ("broken-table", "nobody"),
            };
            assert_eq!(problems, [problem], "{what}");
            let (found, remedy) = said(find("MSI-X").unwrap());
            assert_eq!(found, why.to_string(), "{what}");
            assert!(remedy.contains(words), "{what}: {remedy}");
        }
    }
}

#[test]
fn the_probe_is_right_of_each() {
    let host = MadeUp::new("layouts");
    for function in VENDOR_LAYOUTS {
        for (page_size, apart) in PAGE_SIZES.into_iter().zip(function.serves) {
            let what = format!("{} with pages of {page_size:#x}", function.name);
            host.be(function, function.starts_apart());
            says(&host.checks(page_size), apart, &what);
            // Where small BARs start no page, VFIO maps none of them.
            let (bar, _) = function.table;
            let table = function.bars.iter().find(|found| found.index == bar);
            let inside = match (apart, table.map_or(0, |bar| bar.size)) {
                (Serves::Direct, size) if size < page_size => {
                    let bar = BarIndex(bar);
                    Serves::Trapped(NotMappable::SmallBar { bar, size, page_size })
                }
                _ => apart,
            };
            host.be(function, function.starts_inside_pages());
            says(&host.checks(page_size), inside, &format!("{what}, inside them"));
        }
    }
}

fn named(name: &str) -> &'static VendorLayout {
    VENDOR_LAYOUTS.iter().find(|function| function.name.contains(name)).unwrap()
}

#[test]
fn a_page_that_is_shared_is_not_its_own() {
    let host = MadeUp::new("shared-page");
    host.add_function("0000:02:00.0", "vfio-pci", "8");
    let memory = |start: u64, size: u64| {
        let line = format!("{start:#x} {:#x} 0x40200\n", start + size - 1);
        host.write("sys/bus/pci/devices/0000:02:00.0/resource", line.as_bytes());
    };
    let other = |start| memory(start, 0x100);
    let lan = named("LAN7430");
    let mut starts = lan.starts_apart();
    host.be(lan, starts);
    let table = starts[2];
    for (start, shared) in [(table - 0x100, false), (table + 0x100, true), (table + 0xf00, true)] {
        other(start);
        let problem = host.check_at(4096, "mapping").problem;
        assert_eq!(problem, shared.then_some("not-mappable"), "{start:#x}");
    }
    other(table + 0x1000);
    assert_eq!(host.check_at(4096, "mapping").problem, None);
    assert_eq!(host.check_at(0x4000, "mapping").problem, Some("not-mappable"));
    // A bridge above it, and one beside it.
    memory(table & !0xf_ffff, 0x10_0000);
    assert_eq!(host.check_at(0x4000, "mapping").problem, None);
    memory(table + 0x1000, 0x10_0000);
    assert_eq!(host.check_at(0x4000, "mapping").problem, Some("not-mappable"));
    // Two of its own.
    other(0x1000);
    starts[4] = table + 0x100;
    host.be(lan, starts);
    let mapping = host.check_at(4096, "mapping");
    assert_eq!(mapping.problem, Some("not-mappable"));
    assert!(mapping.found.contains("BAR 2 of 256 bytes"), "{}", mapping.found);
}

#[test]
fn the_probe_says_what_becomes_of_pending_bits() {
    let host = MadeUp::new("pending-bits");
    let drive = named("SN750");
    let mut starts = drive.starts_apart();
    host.be(drive, starts);
    let found = host.check_at(4096, "mapping").found;
    assert_eq!(found, "the table's pages can be mapped");
    let found = host.check_at(0x1_0000, "mapping").found;
    assert!(found.ends_with("for the guest BAR 0 is as large as a page, 65536 bytes"), "{found}");
    starts[4] += 0x100;
    host.be(drive, starts);
    let mapping = host.check_at(4096, "mapping");
    assert!(mapping.ok && mapping.found.contains("a guest that reads these exits"));
    let kunlun = named("Kunlun");
    host.be(kunlun, kunlun.starts_apart());
    let mapping = host.check_at(4096, "mapping");
    assert!(mapping.ok && mapping.found.contains("nobody reads them"), "{}", mapping.found);
    assert!(host.check_at(4096, "MSI-X").found.contains("where there is no memory"));
    let wifi = named("AR5008");
    host.be(wifi, wifi.starts_apart());
    assert!(host.check_at(4096, "MSI-X").found.contains("where the table is"));
}

#[test]
fn a_bar_without_an_address_is_named_and_listed() {
    let host = MadeUp::new("unset");
    let folder = format!("sys/bus/pci/devices/{DRIVE}");
    // As Linux prints a BAR that has a size and no place.
    host.write(&format!("{folder}/resource"), b"0 0x3fff 0x20140204\n");
    let probe = host.probe(&[]);
    assert_eq!(probe.functions.len(), 1, "it has MSI-X");
    let check = &probe.functions[0].checks[0];
    assert_eq!(check.problem, Some("bar-not-assigned"));
    assert!(check.found.contains("BAR 0"), "{}", check.found);
    let remedy = check.remedy.as_deref().unwrap();
    assert!(remedy.contains("pci=realloc") && remedy.contains("window for MMIO"), "{remedy}");
}
