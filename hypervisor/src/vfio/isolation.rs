//! Whether the host confines functions to their own interrupts.
//!
//! Attaching a function to a type1 container or to an iommufd succeeds only
//! where its MSIs are isolated (`iommu_group_has_isolated_msi`), *unless* the
//! module parameter `allow_unsafe_interrupts` is set. So an attached function is
//! isolated where the parameter was off when it was attached. The kernel keeps no
//! record of that, and the parameter can be written at any time: it is read before
//! and after the attach, and has to be off both times.
//!
//! There are two such parameters, of two modules. `/dev/vfio/vfio` is the
//! container of `vfio_iommu_type1`, or where the kernel is built so
//! (`IOMMUFD_VFIO_CONTAINER`), or the node leads to `/dev/iommu`, iommufd's. The
//! one that is used has to be there, and each that is there has to be off.
//!
//! The kernel asks no more than once for a group in a container, and with what it
//! knows: told to remap without looking at the source (`intremap=nosid`), it takes
//! functions for isolated that can raise each other's interrupts. So what else it shows
//! is looked at as well ([`signs`]), and where something contradicts, the function is not
//! isolated. What isolates differs (VT-d or AMD-Vi interrupt remapping, on arm64 a GICv3
//! translation service behind the SMMU), the question does not.
//!
//! The kernel's "MSI-X mappable" capability is always reported and says nothing.
//!
//! Source: Linux 6.1 to 7.3, `drivers/vfio/vfio_iommu_type1.c`,
//! `vfio_iommu_type1_attach_group`; `drivers/iommu/iommufd/device.c`,
//! `iommufd_device_bind`; `drivers/iommu/iommufd/main.c`, `vfio_misc_dev`.

mod attachments;
mod signs;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::function::Isolation;
use crate::vfio::backend::VfioBackend;
use crate::vfio::host_paths::HostPaths;

pub(super) use attachments::Attachments;
use signs::Told;
pub(super) use signs::remaps;
pub use signs::{Remapping, interrupt_remapping};

const TYPE1: &str = "vfio_iommu_type1";
const IOMMUFD: &str = "iommufd";
/// The parameter of both that lets functions without isolation be attached.
const PARAMETER: &str = "allow_unsafe_interrupts";

const CONFINES: &str =
    "the IOMMU's interrupt remapping, on arm64 a GICv3 translation service behind the SMMU";

/// What can be said of a host without attaching anything. A function that is isolated there is still only one whose attach says so.
pub fn host_isolation(paths: &HostPaths, backend: VfioBackend) -> Isolation {
    verdict(of_host(paths, None).and_then(|()| parameters(paths, backend)))
}

/// The verdict for a function, by its folder in sysfs, that is attached through `backend`, or could be. [`VfioFunction::open`](crate::VfioFunction::open) asks this before and after it attaches, and takes the worse answer.
pub fn function_isolation(paths: &HostPaths, backend: VfioBackend, function: &Path) -> Isolation {
    let address = function.file_name().and_then(|name| name.to_str());
    verdict(of_host(paths, address).and_then(|()| parameters(paths, backend)))
}

fn verdict(found: Result<(), String>) -> Isolation {
    match found {
        Ok(()) => Isolation::Isolated,
        Err(why) => Isolation::NotIsolated(why),
    }
}

/// What was decided when the host was started. Each error is what was found; and what to do, after the first semicolon.
fn of_host(paths: &HostPaths, function: Option<&str>) -> Result<(), String> {
    let iommus = fs::read_dir(paths.sysfs.join("class/iommu"));
    if iommus.into_iter().flatten().flatten().next().is_none() {
        return Err("no IOMMU is in use; switch it on in the firmware and in the kernel".to_owned());
    }
    let command_line = fs::read_to_string(paths.procfs.join("cmdline")).map_err(|error| {
        format!(
            "the kernel's command line cannot be read ({error}), so nobody can tell; mount procfs at {}",
            paths.procfs.display()
        )
    })?;
    match signs::told(&command_line) {
        Told::Nothing => {}
        Told::Off => {
            return Err("interrupt remapping was switched off on the kernel's command line; \
                        take intremap=off or nointremap off it"
                .to_owned());
        }
        Told::AnySource => {
            return Err("interrupts are remapped without a look at who sends them, so a function can raise the \
                        interrupts of others; take intremap=nosid off the kernel's command line"
                .to_owned());
        }
    }
    if let Remapping::Missing { chip, interrupt } = interrupt_remapping(paths) {
        return Err(format!(
            "interrupt {interrupt} of the host is not remapped (its chip is {chip}); switch on what confines \
             functions: {CONFINES}"
        ));
    }
    if let Some(words) = signs::kernel_words(paths, function) {
        return Err(format!(
            "the kernel's log says {words:?}; switch on what confines functions: {CONFINES}"
        ));
    }
    Ok(())
}

/// The parameters, as they are at this moment.
fn parameters(paths: &HostPaths, backend: VfioBackend) -> Result<(), String> {
    let mut there = Vec::new();
    for module in [TYPE1, IOMMUFD] {
        match is_set(paths, module)? {
            Some(true) => {
                return Err(format!(
                    "the kernel was told to attach functions without isolated interrupts ({module}.{PARAMETER}=1); \
                     switch the parameter off and attach them anew; where they cannot be attached then, switch on \
                     what confines them: {CONFINES}"
                ));
            }
            Some(false) => there.push(module),
            None => {}
        }
    }
    // The container's node is that of the module which made it, and both modules have one.
    let usable: &[&str] = match backend {
        VfioBackend::Group if !container_is_iommufd(paths) => &[TYPE1, IOMMUFD],
        _ => &[IOMMUFD],
    };
    if usable.iter().any(|module| there.contains(module)) {
        return Ok(());
    }
    let modules = usable.join(" or ");
    Err(format!("{PARAMETER} of {modules} cannot be read, so nobody can tell; load the module"))
}

/// Whether a module's parameter is set; `None` where it does not exist.
fn is_set(paths: &HostPaths, module: &str) -> Result<Option<bool>, String> {
    let unknown = |what: String| {
        Err(format!(
            "{module}.{PARAMETER} {what}, so nobody can tell; see what hides or overlays sysfs"
        ))
    };
    let path = paths.sysfs.join("module").join(module).join("parameters").join(PARAMETER);
    match fs::read_to_string(path) {
        Ok(value) => match value.trim() {
            "Y" | "1" => Ok(Some(true)),
            "N" | "0" => Ok(Some(false)),
            other => unknown(format!("is {other:?}")),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => unknown(format!("cannot be read ({error})")),
    }
}

/// Whether `/dev/vfio/vfio` leads to iommufd's own device.
fn container_is_iommufd(paths: &HostPaths) -> bool {
    let iommufd = fs::read_to_string(paths.sysfs.join("class/misc/iommu/dev"));
    let container = fs::metadata(paths.dev.join("vfio/vfio")).map(|node| node.rdev());
    let (Ok(iommufd), Ok(container)) = (iommufd, container) else { return false };
    iommufd.trim() == format!("{}:{}", libc::major(container), libc::minor(container))
}

#[cfg(test)]
mod tests;
