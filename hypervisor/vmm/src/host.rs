//! What can be known of the host.

use std::path::Path;

/// The host's page size in bytes.
pub(crate) fn page_size() -> u64 {
    u64::try_from(rustix::param::page_size()).unwrap_or(4096)
}

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
