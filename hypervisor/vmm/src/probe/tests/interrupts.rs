//! Who moves a function's interrupts, and how many there are.

use super::*;
use crate::probe::interrupts;

fn irqbalance(host: &MadeUp, arguments: &[u8]) -> Check {
    host.write("proc/812/comm", b"irqbalance\n");
    host.write("proc/812/cmdline", arguments);
    interrupts::irqbalance(&host.paths())
}

/// An interrupt of the drive that a VMM has set up.
fn set_up(host: &MadeUp, number: u32, affinity: &str) {
    host.write(&format!("sys/bus/pci/devices/{DRIVE}/msi_irqs/{number}"), b"msix\n");
    host.write(&format!("sys/kernel/irq/{number}/actions"), b"vfio-msix[0](0000:01:00.0)\n");
    host.write(&format!("sys/kernel/irq/{number}/chip_name"), b"IR-PCI-MSIX-0000:01:00.0\n");
    host.write(&format!("proc/irq/{number}/smp_affinity_list"), affinity.as_bytes());
}

fn affinity(host: &MadeUp) -> Option<Check> {
    interrupts::affinity(&host.paths(), &host.paths().function(DRIVE), DRIVE.parse().unwrap())
}

#[test]
fn irqbalance_is_named_with_what_keeps_it_off() {
    let host = MadeUp::new("balance");
    let check = interrupts::irqbalance(&host.paths());
    assert_eq!((check.ok, check.problem), (true, None));
    let check = irqbalance(&host, b"/usr/sbin/irqbalance\0");
    assert_eq!((check.ok, check.problem), (true, Some("irqbalance")), "direct mode is possible");
    assert!(check.found.contains("process 812"), "{}", check.found);
    let remedy = check.remedy.unwrap();
    assert!(remedy.contains("--banmod=vfio") && remedy.contains("disable"), "{remedy}");
    let check = irqbalance(&host, b"irqbalance\0--policyscript=/etc/policy\0");
    assert!(check.problem.is_some() && check.found.contains("script"), "{}", check.found);
    let check = irqbalance(&host, b"irqbalance\0--banmod=vfio\0");
    assert_eq!((check.ok, check.problem), (true, None));
}

#[test]
fn interrupts_that_are_not_pinned_are_counted() {
    let host = MadeUp::new("affinity");
    assert!(affinity(&host).is_none(), "none are set up");
    set_up(&host, 40, "3\n");
    let check = affinity(&host).unwrap();
    assert_eq!((check.ok, check.problem), (true, None));
    set_up(&host, 41, "0-3\n");
    let check = affinity(&host).unwrap();
    assert_eq!((check.ok, check.problem), (true, Some("not-pinned")));
    assert!(check.found.starts_with("1 of 2 interrupts"), "{}", check.found);
    assert!(check.remedy.unwrap().contains("/sys/bus/pci/devices/0000:01:00.0/msi_irqs"));
    // There the table stays trapped, and the same write would mask an entry.
    host.write("sys/kernel/irq/9/chip_name", b"IO-APIC\n");
    assert!(affinity(&host).is_none());
}

#[test]
fn a_table_that_is_larger_than_what_the_host_has_left_is_named() {
    let host = MadeUp::new("room");
    let room = || {
        let folder = host.paths().function(DRIVE);
        let layout = function::layout(&folder, 4096).unwrap();
        interrupts::room(&host.paths(), &folder, &layout)
    };
    assert!(room().is_none(), "nobody can tell");
    let used = |lines: u32| {
        let text: String = (0..lines).map(|n| format!("{n:>4}:  0  IR-PCI-MSI  x\n")).collect();
        host.write("proc/interrupts", format!("   CPU0\n{text} NMI:  0\n").as_bytes());
    };
    host.write("sys/devices/system/cpu/online", b"0\n");
    used(136);
    assert!(room().is_none(), "65 of 201 are left, and the drive has 65");
    used(137);
    let check = room().unwrap();
    assert_eq!((check.ok, check.problem), (true, Some("few-interrupts")));
    assert!(check.found.contains("about 64 of its 65 vectors"), "{}", check.found);
    assert!(check.remedy.unwrap().contains("most-vectors"));
    set_up(&host, 5, "0\n");
    assert!(room().is_none(), "one of those in use is its own");
    host.write("sys/devices/system/cpu/online", b"0-1\n");
    used(200);
    assert!(room().is_none());
}

/// Elsewhere nothing of this matters.
#[test]
fn the_probe_says_all_of_it_on_x86() {
    let host = MadeUp::new("moves");
    host.write("proc/812/comm", b"irqbalance\n");
    set_up(&host, 40, "0-3\n");
    host.write("sys/devices/system/cpu/online", b"0\n");
    let lines: String = (0..200).map(|n| format!("{n}: 0\n")).collect();
    host.write("proc/interrupts", lines.as_bytes());
    let expected: &[&str] = if cfg!(target_arch = "x86_64") {
        &["irqbalance", "few-interrupts", "not-pinned"]
    } else {
        &[]
    };
    assert_eq!(host.problems(&[DRIVE]), expected);
    let probe = host.probe(&[DRIVE]);
    assert!(probe.functions[0].ready, "none of it keeps the table from being direct");
    let text = text(&probe, false);
    assert_eq!(text.contains("  !!  irqbalance "), !expected.is_empty(), "{text}");
}
