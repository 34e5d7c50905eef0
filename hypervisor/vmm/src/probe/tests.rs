//! Probes of made-up hosts.

mod forwarding;
mod in_use;
mod interrupts;
mod layouts;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::attach::Attached;
use super::*;

/// A host that exists as a folder; removed in the end.
struct MadeUp(PathBuf);

impl Drop for MadeUp {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl MadeUp {
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("pvmsi-probe-{name}-{}", std::process::id()));
        let host = Self(root);
        host.write("dev/vfio/vfio", b"");
        host.write("proc/cmdline", b"ro quiet\n");
        host.write("sys/class/iommu/dmar0/name", b"");
        host.write("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", b"N\n");
        host.add_function("0000:01:00.0", "vfio-pci", "7");
        host
    }

    fn write(&self, path: &str, content: &[u8]) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// An NVMe drive: 65 vectors, BAR 0 of 16 KiB with the table at 0x2000.
    fn add_function(&self, id: &str, driver: &str, group: &str) {
        let mut config = [0_u8; 256];
        config[0x10] = 0x04;
        config[0x34] = 0x40;
        config[0x40..0x4c].copy_from_slice(&[0x11, 0, 64, 0, 0, 0x20, 0, 0, 0, 0x30, 0, 0]);
        let folder = format!("sys/bus/pci/devices/{id}");
        self.write(&format!("{folder}/config"), &config);
        self.write(&format!("{folder}/resource"), b"0xfe000000 0xfe003fff 0x140204\n0 0 0\n");
        let members = self.0.join(format!("sys/kernel/iommu_groups/{group}/devices"));
        fs::create_dir_all(&members).unwrap();
        symlink(self.0.join(&folder), members.join(id)).unwrap();
        symlink(members.parent().unwrap(), self.0.join(&folder).join("iommu_group")).unwrap();
        symlink(self.0.join("sys/class/iommu/dmar0"), self.0.join(&folder).join("iommu")).unwrap();
        self.link(&format!("{folder}/driver"), &format!("sys/bus/pci/drivers/{driver}"));
    }

    /// A link to a folder, which is made.
    fn link(&self, path: &str, target: &str) {
        let (path, target) = (self.0.join(path), self.0.join(target));
        fs::create_dir_all(&target).unwrap();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    fn paths(&self) -> HostPaths {
        let at = |name| self.0.join(name);
        HostPaths { sysfs: at("sys"), procfs: at("proc"), dev: at("dev") }
    }

    fn probe(&self, functions: &[&str]) -> Probe {
        probe(&ids(functions), &self.paths())
    }

    /// What the probe says of a function under this name.
    fn check(&self, function: &str, name: &str) -> Check {
        let mut functions = self.probe(&[function]).functions;
        let checks = functions.pop().unwrap().checks;
        checks.into_iter().find(|check| check.name == name).unwrap()
    }

    /// The problems that the probe names, but for KVM's: a made-up host has none.
    fn problems(&self, functions: &[&str]) -> Vec<&'static str> {
        let probe = self.probe(functions);
        let checks = probe.host.iter().chain(probe.functions.iter().flat_map(|f| &f.checks));
        let mut problems: Vec<_> = checks
            .filter_map(|check| check.problem)
            .filter(|problem| *problem != "no-kvm")
            .collect();
        problems.dedup();
        problems
    }
}

const DRIVE: &str = "0000:01:00.0";

fn ids(functions: &[&str]) -> Vec<FunctionId> {
    functions.iter().map(|id| id.parse().unwrap()).collect()
}

#[test]
fn a_host_that_is_ready_has_no_problem() {
    let host = MadeUp::new("ready");
    assert!(host.problems(&[DRIVE]).is_empty());
    let probe = host.probe(&[]);
    assert_eq!(probe.functions.len(), 1, "without an address, all functions with MSI-X");
    let found = &probe.functions[0].checks[0].found;
    assert!(found.contains("65 vectors, table in BAR 0 at 0x2000"), "{found}");
    assert!(!probe.ready, "a made-up host has no KVM");
}

#[test]
fn msi_is_said_to_be_hidden() {
    let host = MadeUp::new("msi");
    let says = || host.probe(&[DRIVE]).functions[0].checks.iter().any(|check| check.name == "MSI");
    assert!(!says(), "it has none");
    let path = format!("sys/bus/pci/devices/{DRIVE}/config");
    let mut config = fs::read(host.0.join(&path)).unwrap();
    // Behind MSI-X in the list.
    (config[0x41], config[0x50]) = (0x50, 0x05);
    host.write(&path, &config);
    assert!(says());
    let check = host.check(DRIVE, "MSI");
    assert!(check.ok && check.problem.is_none() && check.found.contains("off included"));
    assert!(host.problems(&[DRIVE]).is_empty());
}

#[test]
fn each_problem_has_its_name_and_a_remedy() {
    let host = MadeUp::new("unsafe");
    host.write("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", b"Y\n");
    assert_eq!(host.problems(&[DRIVE]), ["no-isolation"]);

    let host = MadeUp::new("driver");
    host.add_function("0000:02:00.0", "nvme", "8");
    assert_eq!(host.problems(&["0000:02:00.0"]), ["driver"]);

    let host = MadeUp::new("group");
    host.add_function("0000:01:00.1", "igb", "7");
    assert_eq!(host.problems(&[DRIVE]), ["group-not-viable"]);

    let host = MadeUp::new("iommu");
    fs::remove_dir_all(host.0.join("sys/class/iommu")).unwrap();
    fs::remove_dir_all(host.0.join("dev/vfio")).unwrap();
    assert_eq!(host.problems(&[DRIVE]), ["no-vfio", "no-iommu"]);

    let host = MadeUp::new("absent");
    assert_eq!(host.problems(&["0000:09:00.0"]), ["no-function"]);
    host.write("sys/bus/pci/devices/0000:03:00.0/config", &[0; 64]);
    assert_eq!(host.problems(&["0000:03:00.0"]), ["config-unreadable"]);
    host.write("sys/bus/pci/devices/0000:03:00.0/config", &[0; 256]);
    assert_eq!(host.problems(&["0000:03:00.0"]), ["no-msix"]);
    let probe = host.probe(&["0000:09:00.0"]);
    let bad = probe.host.iter().chain(&probe.functions[0].checks).filter(|check| !check.ok);
    assert!(bad.into_iter().all(|check| check.remedy.is_some()));
    let text = text(&probe, false);
    assert!(text.contains("->") && !text.contains('\x1b'), "{text}");
}

#[test]
fn interrupts_that_are_not_remapped_are_no_isolation() {
    let host = MadeUp::new("remapping");
    let chip = |name: &str| {
        host.write("sys/kernel/irq/24/chip_name", format!("{name}\n").as_bytes());
        host.problems(&[DRIVE])
    };
    assert!(chip("IR-PCI-MSIX-0000:00:1f.2").is_empty());
    assert!(chip("ITS-PCI-MSIX-0000:00:1f.2").is_empty());
    assert_eq!(chip("PCI-MSIX-0000:00:1f.2"), ["no-isolation"]);
    assert_eq!(chip("IO-APIC"), ["no-isolation"]);
    assert_eq!(chip("GICv2m-PCI-MSIX-0000:00:1f.2"), ["no-isolation"]);
    assert!(chip("chip of another kind").is_empty(), "unknown is no problem");
}

/// What the host and the function say of isolation.
fn isolation(host: &MadeUp) -> [bool; 2] {
    let probe = host.probe(&[DRIVE]);
    [&probe.host, &probe.functions[0].checks]
        .map(|checks| checks.iter().find(|check| check.name == "isolation").is_some_and(|c| c.ok))
}

#[test]
fn the_probe_contradicts_what_contradicts_isolation() {
    let host = MadeUp::new("contradiction");
    assert_eq!(isolation(&host), [true, true]);
    host.write("proc/cmdline", b"intremap=nosid\n");
    assert_eq!(isolation(&host), [false, false]);
    host.write("proc/cmdline", b"\n");
    host.write("dev/kmsg", b"3,1,1,-;AMD-Vi: Disabling interrupt remapping\n");
    assert_eq!(isolation(&host), [false, false]);
    host.write("dev/kmsg", b"");
    host.write("sys/module/iommufd/parameters/allow_unsafe_interrupts", b"Y\n");
    assert_eq!(isolation(&host), [false, false]);
}

#[test]
fn without_an_iommu_there_is_no_isolation() {
    let host = MadeUp::new("nothing");
    fs::remove_dir_all(host.0.join("sys/class/iommu")).unwrap();
    let folder = host.0.join("sys/bus/pci/devices").join(DRIVE);
    for link in ["iommu", "iommu_group"] {
        fs::remove_file(folder.join(link)).unwrap();
    }
    assert_eq!(host.problems(&[DRIVE]), ["no-iommu", "no-isolation", "no-group"]);
    assert_eq!(isolation(&host), [false, false]);
}

#[test]
fn a_function_in_no_iommu_mode_is_not_eligible() {
    let folder = format!("sys/bus/pci/devices/{DRIVE}");
    let host = MadeUp::new("noiommu-group");
    host.write("sys/kernel/iommu_groups/7/name", b"vfio-noiommu\n");
    assert_eq!(host.problems(&[DRIVE]), ["no-iommu"]);
    let host = MadeUp::new("noiommu-device");
    host.write(&format!("{folder}/vfio-dev/noiommu-vfio0/dev"), b"511:0\n");
    assert_eq!(host.problems(&[DRIVE]), ["no-iommu"]);
    let host = MadeUp::new("noiommu-link");
    fs::remove_file(host.0.join(&folder).join("iommu")).unwrap();
    assert_eq!(host.problems(&[DRIVE]), ["no-iommu"]);
}

#[test]
fn what_the_kernel_refuses_is_not_ok_on_the_host_either() {
    let host = MadeUp::new("refused");
    host.add_function("0000:02:00.0", "vfio-pci", "8");
    let host_says = |attach: fn(&Path) -> Attached| {
        let found = HostProbe { attach: Some(attach), ..host::probe(&host.paths()) };
        let probe = probe_on(found, &ids(&[DRIVE, "0000:02:00.0"]), &host.paths());
        probe.host.into_iter().find(|check| check.name == "isolation").unwrap()
    };
    assert!(host_says(|_| Attached { checks: Vec::new(), isolated: Some(true) }).ok);
    assert!(host_says(|_| Attached { checks: Vec::new(), isolated: None }).ok);
    let refused = host_says(|_| Attached { checks: Vec::new(), isolated: Some(false) });
    assert_eq!((refused.ok, refused.problem), (false, Some("no-isolation")));
    assert!(refused.found.contains(DRIVE), "{}", refused.found);
    // Of one function alone, where another is isolated.
    assert!(
        host_says(|folder| Attached {
            checks: Vec::new(),
            isolated: Some(folder.ends_with(DRIVE))
        })
        .ok
    );
}
