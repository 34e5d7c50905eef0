//! What can be known of the host.

use std::path::Path;

pub(crate) use pvmsi_hypervisor::host_page_size as page_size;

/// The kernel's release.
pub(crate) fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The module behind `/dev/kvm`, `kvm` where it cannot be told.
pub(crate) fn kvm_module(sysfs: &Path) -> String {
    ["kvm_intel", "kvm_amd", "kvm_pvm"]
        .into_iter()
        .find(|module| sysfs.join("module").join(module).exists())
        .unwrap_or("kvm")
        .to_owned()
}
