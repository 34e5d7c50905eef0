//! What every function needs of the host.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kvm_ioctls::{Cap, Kvm};
use pvmsi_hypervisor::{HostPaths, Isolation, VfioBackend, host_isolation};

use super::check::Check;
use crate::{arch, file_limit, host};

/// What was found of the host, and how functions would be attached.
pub(super) struct HostProbe {
    pub(super) checks: Vec<Check>,
    pub(super) backend: Option<VfioBackend>,
}

pub(super) fn probe(sysfs: &Path, dev: &Path) -> HostProbe {
    let backend = backend(dev);
    let found = format!("{}, pages of {} bytes", host::kernel(), host::page_size());
    let mut checks = vec![Check::good("kernel", found)];
    checks.extend(kvm(sysfs, dev));
    checks.extend([vfio(dev, backend), iommu(sysfs)]);
    if let Some(backend) = backend {
        checks.push(isolation(sysfs, backend));
    }
    checks.extend(interrupt_remapping(sysfs));
    // Not a condition: a small limit leads to a short grant.
    checks.push(Check::good("open files", format!("at most {}", file_limit::hard())));
    HostProbe { checks, backend }
}

/// How functions are attached: as the machine chooses.
fn backend(dev: &Path) -> Option<VfioBackend> {
    let opens = |name: &str| OpenOptions::new().read(true).write(true).open(dev.join(name)).is_ok();
    if opens("vfio/vfio") {
        Some(VfioBackend::Group)
    } else if opens("iommu") {
        Some(VfioBackend::Iommufd)
    } else {
        None
    }
}

fn kvm(sysfs: &Path, dev: &Path) -> Vec<Check> {
    let path = dev.join("kvm");
    let opened = CString::new(path.as_os_str().as_bytes())
        .map_err(|error| error.to_string())
        .and_then(|path| Kvm::new_with_path(path.as_c_str()).map_err(|error| error.to_string()));
    match opened {
        Ok(kvm) => {
            let routes = kvm.check_extension_int(Cap::IrqRouting);
            let module = host::kvm_module(sysfs);
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
            format!("neither {0}/vfio/vfio nor {0}/iommu can be opened", dev.display()),
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

fn isolation(sysfs: &Path, backend: VfioBackend) -> Check {
    match host_isolation(&HostPaths { sysfs: sysfs.to_owned(), ..HostPaths::default() }, backend) {
        Isolation::Isolated => Check::good(
            "isolation",
            "functions are attached only where the host confines them to their own interrupts",
        ),
        Isolation::NotIsolated(why) => {
            // The verdict names the remedy after a semicolon.
            let (found, remedy) = why.split_once("; ").unwrap_or((why.as_str(), ""));
            Check::bad("isolation", "no-isolation", found, remedy)
        }
    }
}

/// Whether the host's own interrupts are confined, as far as the names of its interrupt chips tell; `None` where they do not.
fn interrupt_remapping(sysfs: &Path) -> Option<Check> {
    let chips: Vec<String> = fs::read_dir(sysfs.join("kernel/irq"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("chip_name")).ok())
        .collect();
    let some = |starts: &[&str]| {
        chips.iter().any(|chip| starts.iter().any(|start| chip.starts_with(start)))
    };
    if some(arch::REMAPPING.confined) {
        Some(Check::good("remapping", arch::REMAPPING.good))
    } else if some(arch::REMAPPING.free) {
        Some(Check::bad("remapping", "no-isolation", arch::REMAPPING.bad, arch::REMAPPING.remedy))
    } else {
        None
    }
}
