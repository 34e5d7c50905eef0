//! A made-up host for tests: a folder that looks like sysfs, procfs and devices.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::vfio::host_paths::HostPaths;

/// A host whose kernel isolates its one function, by all that it shows. Removed in the end.
pub(crate) struct MadeUp(PathBuf);

impl Drop for MadeUp {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl MadeUp {
    pub(crate) fn new(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = format!("pvmsi-host-{name}-{}-{number}", std::process::id());
        let host = Self(std::env::temp_dir().join(folder));
        host.write("dev/vfio/vfio", "");
        host.write("proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/sda1 ro quiet intel_iommu=on\n");
        host.write("sys/class/iommu/dmar0/devices/0000:01:00.0", "");
        host.write("sys/kernel/irq/24/chip_name", "IR-PCI-MSIX-0000:00:1f.2\n");
        host.set_type1("N");
        host.link("sys/bus/pci/devices/0000:01:00.0/iommu_group", "sys/kernel/iommu_groups/7");
        host.link("sys/bus/pci/devices/0000:01:00.0/iommu", "sys/class/iommu/dmar0");
        host
    }

    pub(crate) fn paths(&self) -> HostPaths {
        let at = |name| self.0.join(name);
        HostPaths { sysfs: at("sys"), procfs: at("proc"), dev: at("dev") }
    }

    pub(crate) fn function(&self) -> PathBuf {
        self.paths().function("0000:01:00.0")
    }

    pub(crate) fn write(&self, path: &str, content: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// A link to a folder, which is made.
    fn link(&self, path: &str, target: &str) {
        let (path, target) = (self.0.join(path), self.0.join(target));
        fs::create_dir_all(&target).unwrap();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    pub(crate) fn remove(&self, path: &str) {
        let path = self.0.join(path);
        if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    }

    pub(crate) fn set_type1(&self, value: &str) {
        self.set_parameter("vfio_iommu_type1", value);
    }

    pub(crate) fn set_iommufd(&self, value: &str) {
        self.set_parameter("iommufd", value);
    }

    fn set_parameter(&self, module: &str, value: &str) {
        let path = Path::new("sys/module").join(module).join("parameters/allow_unsafe_interrupts");
        self.write(path.to_str().unwrap(), &format!("{value}\n"));
    }
}
