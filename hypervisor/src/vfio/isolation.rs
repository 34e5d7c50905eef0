//! Whether the host confines functions to their own interrupts.
//!
//! Attaching a function to a type1 container or to an iommufd succeeds only
//! where its MSIs are isolated (`iommu_group_has_isolated_msi`), *unless* the
//! module parameter `allow_unsafe_interrupts` is set. So an attached function is
//! isolated exactly when the parameter was off, and the parameter is read here.
//! What isolates differs (VT-d or AMD-Vi interrupt remapping, on arm64 a GICv3
//! translation service behind the SMMU), the question and the parameter do not.
//! The kernel's "MSI-X mappable" capability is always reported and says nothing.

use std::fs;
use std::path::Path;

use crate::function::Isolation;
use crate::vfio::backend::VfioBackend;

/// A kernel parameter that lets functions without isolation be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnsafeInterrupts {
    /// The kernel module.
    pub module: &'static str,
    /// Its parameter.
    pub parameter: &'static str,
}

impl UnsafeInterrupts {
    /// The parameter that counts for functions that are attached this way.
    pub const fn of(backend: VfioBackend) -> Self {
        let module = match backend {
            VfioBackend::Group => "vfio_iommu_type1",
            VfioBackend::Iommufd => "iommufd",
        };
        Self { module, parameter: "allow_unsafe_interrupts" }
    }

    /// Whether it is set; `None` when the module is not loaded or the value cannot be read.
    pub fn is_set(self, sysfs: &Path) -> Option<bool> {
        let path = sysfs.join("module").join(self.module).join("parameters").join(self.parameter);
        let value = fs::read_to_string(path).ok()?;
        match value.trim() {
            "Y" | "1" => Some(true),
            "N" | "0" => Some(false),
            _ => None,
        }
    }
}

/// The verdict for functions that are, or could be, attached through `backend`. `sysfs` is where sysfs is mounted, usually `/sys`.
pub fn host_isolation(sysfs: &Path, backend: VfioBackend) -> Isolation {
    let UnsafeInterrupts { module, parameter } = UnsafeInterrupts::of(backend);
    match UnsafeInterrupts::of(backend).is_set(sysfs) {
        Some(false) => Isolation::Isolated,
        Some(true) => Isolation::NotIsolated(format!(
            "the kernel was told to attach functions without isolated interrupts ({module}.{parameter}=1); \
             switch the parameter off; where functions cannot be attached then, switch on what confines them: the \
             IOMMU's interrupt remapping, on arm64 a GICv3 translation service behind the SMMU"
        )),
        None => Isolation::NotIsolated(format!(
            "{module}.{parameter} cannot be read, so nobody can tell; load the module {module}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sysfs(name: &str, value: Option<&str>) -> std::path::PathBuf {
        let root =
            std::env::temp_dir().join(format!("pvmsi-isolation-{name}-{}", std::process::id()));
        let parameters = root.join("module/vfio_iommu_type1/parameters");
        fs::create_dir_all(&parameters).unwrap();
        if let Some(value) = value {
            fs::write(parameters.join("allow_unsafe_interrupts"), value).unwrap();
        }
        root
    }

    #[test]
    fn a_function_is_isolated_only_while_the_parameter_is_off() {
        for (name, value, isolated) in
            [("off", Some("N\n"), true), ("on", Some("Y\n"), false), ("absent", None, false)]
        {
            let root = sysfs(name, value);
            let verdict = host_isolation(&root, VfioBackend::Group);
            assert_eq!(verdict == Isolation::Isolated, isolated, "{name}: {verdict:?}");
            fs::remove_dir_all(root).unwrap();
        }
    }
}
