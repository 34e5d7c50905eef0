//! Where the host's kernel shows itself.

use std::path::{Path, PathBuf};

/// Where a host's kernel shows itself; by default where every Linux has it. Other roots are for tests and for trees that were copied from another machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPaths {
    /// Where sysfs is mounted.
    pub sysfs: PathBuf,
    /// Where procfs is mounted.
    pub procfs: PathBuf,
    /// Where the device nodes are.
    pub dev: PathBuf,
}

impl HostPaths {
    /// Whether they are this machine's own, so that what is found there can be opened and attached.
    pub fn are_of_this_machine(&self) -> bool {
        *self == Self::default()
    }

    /// The folder of a PCI function in sysfs, by its address as `0000:01:00.0`.
    pub fn function(&self, address: &str) -> PathBuf {
        self.sysfs.join("bus/pci/devices").join(address)
    }
}

impl Default for HostPaths {
    fn default() -> Self {
        Self {
            sysfs: Path::new("/sys").to_owned(),
            procfs: Path::new("/proc").to_owned(),
            dev: Path::new("/dev").to_owned(),
        }
    }
}
