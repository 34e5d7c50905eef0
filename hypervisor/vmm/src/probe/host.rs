//! What every function needs of the host.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kvm_ioctls::{Cap, Kvm};
use pvmsi_hypervisor::{Isolation, VfioBackend, host_isolation};

use super::Check;
use crate::{file_limit, host};

/// What was found of the host, and how functions would be attached.
pub(super) struct HostProbe {
    pub(super) checks: Vec<Check>,
    pub(super) backend: Option<VfioBackend>,
}

pub(super) fn probe(sysfs: &Path, dev: &Path) -> HostProbe {
    let backend = backend(dev);
    let found = format!("{}, pages of {} bytes", host::kernel(), host::page_size());
    let mut checks = vec![Check::good("kernel", found), kvm(sysfs, dev), vfio(dev, backend)];
    checks.push(iommu(sysfs));
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

fn kvm(sysfs: &Path, dev: &Path) -> Check {
    let path = dev.join("kvm");
    let opened = CString::new(path.as_os_str().as_bytes())
        .map_err(|error| error.to_string())
        .and_then(|path| Kvm::new_with_path(path.as_c_str()).map_err(|error| error.to_string()));
    match opened {
        Ok(kvm) => {
            let routes = kvm.check_extension_int(Cap::IrqRouting);
            let module = host::kvm_module(sysfs);
            Check::good("KVM", format!("{module}, {routes} interrupt routes for each VM"))
        }
        Err(error) => Check::bad(
            "KVM",
            "no-kvm",
            format!("{} cannot be opened: {error}", path.display()),
            "switch virtualisation on in the firmware, load kvm_intel or kvm_amd, and join the group kvm",
        ),
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
        return Check::bad(
            "IOMMU",
            "no-iommu",
            "none is in use",
            "switch VT-d or AMD-Vi on in the firmware; on Intel, boot with intel_iommu=on",
        );
    }
    Check::good("IOMMU", names.join(", "))
}

fn isolation(sysfs: &Path, backend: VfioBackend) -> Check {
    match host_isolation(sysfs, backend) {
        Isolation::Isolated => Check::good(
            "isolation",
            "functions are attached only where interrupt remapping confines them",
        ),
        Isolation::NotIsolated(why) => {
            // The verdict names the remedy after a semicolon.
            let (found, remedy) = why.split_once("; ").unwrap_or((why.as_str(), ""));
            Check::bad("isolation", "no-isolation", found, remedy)
        }
    }
}

/// Whether the host's own interrupts are remapped. On x86 the chips of remapped ones have names that start with `IR-`; elsewhere nobody can tell from here.
fn interrupt_remapping(sysfs: &Path) -> Option<Check> {
    let chips: Vec<String> = fs::read_dir(sysfs.join("kernel/irq"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("chip_name")).ok())
        .collect();
    let some = |start: &str| chips.iter().any(|chip| chip.starts_with(start));
    if some("IR-") {
        Some(Check::good("remapping", "the host's interrupts are remapped"))
    } else if some("IO-APIC") || some("PCI-MSI") {
        Some(Check::bad(
            "remapping",
            "no-isolation",
            "interrupts are not remapped",
            "switch interrupt remapping on in the firmware (VT-d, AMD-Vi), and take intremap=off or nointremap off the \
             kernel's command line; without it the kernel refuses to attach functions, or they stay trapped",
        ))
    } else {
        None
    }
}
