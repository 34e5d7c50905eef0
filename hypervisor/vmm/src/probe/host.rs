//! What every function needs of the host.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kvm_ioctls::{Cap, Kvm};
use pvmsi_hypervisor::{
    HostPaths, Isolation, MOVES_WRITE_MASKS, Remapping, VfioBackend, host_isolation,
    interrupt_remapping,
};

use super::attach::{Attached, attach};
use super::check::Check;
use super::forwarding;
use super::interrupts::irqbalance;
use crate::{arch, file_limit, host};

/// What was found of the host, and how functions would be attached.
pub(super) struct HostProbe {
    pub(super) checks: Vec<Check>,
    pub(super) backend: Option<VfioBackend>,
    /// Of the host.
    pub(super) page_size: u64,
    /// What attaches a function and says what that shows; a made-up host has nothing to attach.
    pub(super) attach: Option<fn(&Path) -> Attached>,
}

pub(super) fn probe(paths: &HostPaths) -> HostProbe {
    let backend = backend(paths);
    let found = format!("{}, pages of {} bytes", host::kernel(), host::page_size());
    let mut checks = vec![Check::good("kernel", found)];
    checks.extend(kvm(paths));
    checks.extend([vfio(&paths.dev, backend), iommu(&paths.sysfs)]);
    checks.extend(backend.map(|backend| isolation(host_isolation(paths, backend))));
    checks.extend(remapping(paths));
    checks.extend(MOVES_WRITE_MASKS.then(|| irqbalance(paths)));
    if forwarding::IS_LOGGED {
        checks.extend(forwarding::gicv4(paths));
    }
    // Not a condition: a small limit leads to a short grant.
    checks.push(Check::good("open files", format!("at most {}", file_limit::hard())));
    let attach = paths.are_of_this_machine().then_some(attach as fn(&Path) -> Attached);
    HostProbe { checks, backend, page_size: host::page_size(), attach }
}

impl HostProbe {
    /// The kernel has refused to attach functions for want of isolation, and has attached none with it: its word counts for more than that of the parameters.
    pub(super) fn isolation_was_refused(&mut self, function: &str) {
        for check in self.checks.iter_mut().filter(|check| check.name == "isolation" && check.ok) {
            *check = isolation(Isolation::NotIsolated(format!(
                "the kernel refuses to attach {function}, for it knows of nothing that isolates its interrupts; {}",
                arch::REMAPPING.remedy
            )));
        }
    }
}

/// How functions are attached: as the machine chooses. A made-up host has no more than the names.
fn backend(paths: &HostPaths) -> Option<VfioBackend> {
    if paths.are_of_this_machine() {
        return VfioBackend::usable();
    }
    let opens =
        |name: &str| OpenOptions::new().read(true).write(true).open(paths.dev.join(name)).is_ok();
    if opens("vfio/vfio") {
        Some(VfioBackend::Group)
    } else if opens("iommu") {
        Some(VfioBackend::Iommufd)
    } else {
        None
    }
}

fn kvm(paths: &HostPaths) -> Vec<Check> {
    let path = paths.dev.join("kvm");
    let opened = CString::new(path.as_os_str().as_bytes())
        .map_err(|error| error.to_string())
        .and_then(|path| Kvm::new_with_path(path.as_c_str()).map_err(|error| error.to_string()));
    match opened {
        Ok(kvm) => {
            let routes = kvm.check_extension_int(Cap::IrqRouting);
            let module = host::kvm_module(&paths.sysfs);
            let found = format!("{module}, {routes} interrupt routes for each VM");
            let mut checks = vec![Check::good("KVM", found)];
            checks.extend(arch::kvm_checks(&kvm));
            checks
        }
        Err(error) => vec![Check::bad(
            "KVM",
            "no-kvm",
            format!("{} cannot be opened: {error}", path.display()),
            format!("join the group kvm; {}", arch::KVM_REMEDY),
        )],
    }
}

fn vfio(dev: &Path, backend: Option<VfioBackend>) -> Check {
    match backend {
        Some(VfioBackend::Group) => Check::good("VFIO", "groups"),
        Some(VfioBackend::Iommufd) => Check::good("VFIO", "iommufd"),
        None => Check::bad(
            "VFIO",
            "no-vfio",
            format!("neither {0}/vfio/vfio nor {0}/iommu can be used", dev.display()),
            "modprobe vfio-pci, and run as a user that may open it",
        ),
    }
}

fn iommu(sysfs: &Path) -> Check {
    let mut names: Vec<_> = fs::read_dir(sysfs.join("class/iommu"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    if names.is_empty() {
        return Check::bad("IOMMU", "no-iommu", "none is in use", arch::IOMMU_REMEDY);
    }
    Check::good("IOMMU", names.join(", "))
}

fn isolation(verdict: Isolation) -> Check {
    let good = "functions are attached only where the host confines them to their own interrupts";
    Check::isolation(verdict, good)
}

/// Whether the host's own interrupts are remapped, as far as the names of its interrupt chips tell; `None` where they do not.
fn remapping(paths: &HostPaths) -> Option<Check> {
    let words = arch::REMAPPING;
    match interrupt_remapping(paths) {
        Remapping::Seen => Some(Check::good("remapping", words.good)),
        Remapping::Missing { chip, .. } => {
            let found = format!("{} ({chip})", words.bad);
            Some(Check::bad("remapping", "no-isolation", found, words.remedy))
        }
        Remapping::Unknown => None,
    }
}
