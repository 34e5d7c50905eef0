//! Whether a function is behind an IOMMU at all.
//!
//! VFIO hands out functions without one (`enable_unsafe_noiommu_mode`), and asks
//! about the isolation of their interrupts in none of its interfaces. Such a
//! function reaches all of the host's memory, so it is not attached, whatever the
//! operator allows. The kernel tells by names: a group that VFIO has made up is
//! called `vfio-noiommu` and its device `/dev/vfio/noiommu-N`; the character
//! device of a function is `noiommu-vfioN` (Linux 7.3, `IOMMUFD_NOIOMMU`).
//! Between 6.6 and 7.2 it is `vfioN` and cannot be opened. A function that an IOMMU
//! driver has taken up has the links `iommu_group` and `iommu`; one in a group that
//! VFIO has made up has no `iommu`.
//!
//! Source: Linux `drivers/vfio/group.c`, `vfio_noiommu_group_alloc`;
//! `drivers/vfio/vfio_main.c`, `vfio_device_set_noiommu_and_name`;
//! `drivers/iommu/iommu-sysfs.c`, `iommu_device_link`.

use std::fs;
use std::path::Path;

use thiserror::Error;

use crate::vfio::host_paths::HostPaths;

/// What names of devices in no-IOMMU mode begin with.
const NO_IOMMU: &str = "noiommu-";
/// The name of a group that VFIO has made up.
const NO_IOMMU_GROUP: &str = "vfio-noiommu";

/// A function is not behind an IOMMU.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NoIommu {
    /// It is in no group.
    #[error("the function is in no IOMMU group; switch the IOMMU on")]
    NoGroup,
    /// VFIO would hand it out all the same.
    #[error(
        "VFIO has the function in no-IOMMU mode ({0}): nothing keeps it away from the host's memory and interrupts; \
         switch the IOMMU on, and vfio.enable_unsafe_noiommu_mode off"
    )]
    Mode(String),
    /// It has a group, and no IOMMU.
    #[error("no IOMMU serves the function, although it is in group {0}; switch the IOMMU on")]
    NoLink(String),
}

/// Looks whether a function, by its folder in sysfs, is behind an IOMMU. Functions that are not are refused by [`VfioFunction::open`](crate::VfioFunction::open).
///
/// # Errors
/// When it is not.
pub fn behind_iommu(paths: &HostPaths, function: &Path) -> Result<(), NoIommu> {
    if let Some(device) = no_iommu_device(function) {
        return Err(NoIommu::Mode(device));
    }
    let group = fs::read_link(function.join("iommu_group")).map_err(|_| NoIommu::NoGroup)?;
    let group = group.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = fs::read_to_string(function.join("iommu_group/name")).unwrap_or_default();
    if name.trim() == NO_IOMMU_GROUP {
        return Err(NoIommu::Mode(format!("group {group} is named {NO_IOMMU_GROUP}")));
    }
    let device = paths.dev.join("vfio").join(format!("{NO_IOMMU}{group}"));
    if device.exists() {
        return Err(NoIommu::Mode(device.display().to_string()));
    }
    if !function.join("iommu").exists() {
        return Err(NoIommu::NoLink(group));
    }
    Ok(())
}

/// The function's character device, where its name says that there is no IOMMU.
fn no_iommu_device(function: &Path) -> Option<String> {
    let devices = fs::read_dir(function.join("vfio-dev")).ok()?;
    devices
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .find(|name| name.starts_with(NO_IOMMU))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfio::made_up::MadeUp;

    #[test]
    fn a_function_behind_an_iommu_passes() {
        let host = MadeUp::new("iommu");
        let function = host.function();
        assert_eq!(behind_iommu(&host.paths(), &function), Ok(()));
        host.write("sys/bus/pci/devices/0000:01:00.0/vfio-dev/vfio0/dev", "511:0");
        assert_eq!(behind_iommu(&host.paths(), &function), Ok(()));
    }

    #[test]
    fn each_sign_of_no_iommu_mode_is_enough() {
        let refused = |change: &dyn Fn(&MadeUp)| {
            let host = MadeUp::new("no-iommu");
            change(&host);
            let error = behind_iommu(&host.paths(), &host.function()).unwrap_err();
            assert!(error.to_string().contains("switch the IOMMU on"), "{error}");
            error
        };
        let mode = |error: NoIommu| assert!(matches!(error, NoIommu::Mode(_)), "{error}");
        mode(refused(&|host| host.write("sys/kernel/iommu_groups/7/name", "vfio-noiommu\n")));
        mode(refused(&|host| host.write("dev/vfio/noiommu-7", "")));
        mode(refused(&|host| {
            host.write("sys/bus/pci/devices/0000:01:00.0/vfio-dev/noiommu-vfio3/dev", "511:3");
        }));
        let gone = |link: &str| {
            refused(&|host| host.remove(&format!("sys/bus/pci/devices/0000:01:00.0/{link}")))
        };
        assert_eq!(gone("iommu"), NoIommu::NoLink("7".to_owned()));
        assert_eq!(gone("iommu_group"), NoIommu::NoGroup);
    }
}
