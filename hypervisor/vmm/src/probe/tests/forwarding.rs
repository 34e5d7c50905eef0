//! Kernels that keep books of forwarded interrupts in their log.

use super::*;
use crate::probe::forwarding;

#[test]
fn a_kernel_whose_log_a_guest_can_fill_is_named() {
    let host = MadeUp::new("gicv4");
    let problem = |release: &str| {
        host.write("proc/sys/kernel/osrelease", format!("{release}\n").as_bytes());
        forwarding::gicv4(&host.paths()).map(|check| (check.ok, check.problem))
    };
    assert_eq!(problem("6.1.0-57-arm64"), None, "it is off");
    host.write("proc/cmdline", b"ro kvm-arm.vgic_v4_enable=1 quiet\n");
    let warned = Some((true, Some("gicv4-log")));
    for release in ["5.10.0", "6.1.0-57-arm64", "6.12.118+deb13-arm64", "6.15.9", "unreadable", ""]
    {
        assert_eq!(problem(release), warned, "{release}");
    }
    for release in ["6.16.0-rc1", "6.16.1", "7.0.0", "7.3.4+deb13-arm64"] {
        assert_eq!(problem(release), Some((true, None)), "{release}");
    }
    problem("6.12.118+deb13-arm64");
    let check = forwarding::gicv4(&host.paths()).unwrap();
    assert!(check.found.contains("6.12.118+deb13-arm64"), "{}", check.found);
    let remedy = check.remedy.unwrap();
    assert!(remedy.contains("6.16") && remedy.contains("kvm-arm.vgic_v4_enable"), "{remedy}");
    host.write("proc/cmdline", b"ro kvm-arm.vgic_v4_enable=0\n");
    assert_eq!(problem("6.1.0"), None);
}

#[test]
fn the_probe_says_it_on_arm64() {
    let host = MadeUp::new("gicv4-probe");
    host.write("proc/cmdline", b"kvm-arm.vgic_v4_enable=1\n");
    host.write("proc/sys/kernel/osrelease", b"6.12.118\n");
    let expected: &[&str] = if cfg!(target_arch = "aarch64") { &["gicv4-log"] } else { &[] };
    assert_eq!(host.problems(&[DRIVE]), expected);
    assert!(host.probe(&[DRIVE]).functions[0].ready, "the table can be direct");
}
