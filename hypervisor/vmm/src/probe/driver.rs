//! Which driver has a function, and how it gets to VFIO and back without harm to the host.

use std::fs;
use std::path::{Path, PathBuf};

use pvmsi_hypervisor::{HostPaths, NoIommu, behind_iommu};
use pvmsi_protocol::FunctionId;

use super::check::Check;
use super::in_use::{self, Uses};

/// Who hands functions out besides the drivers of VFIO, or does not keep VFIO from it (`driver_managed_dma`).
const HARMLESS: &[&str] = &["pci-stub", "pcieport"];

/// What was found of the driver.
pub(super) struct Driver {
    pub(super) checks: Vec<Check>,
    /// VFIO has the function.
    pub(super) is_vfio: bool,
}

/// Looks at a function's driver, and where it is the host's, at what it does.
pub(super) fn driver(paths: &HostPaths, folder: &Path, id: FunctionId) -> Driver {
    let name = name(folder);
    if let Some(name) = &name
        && is_vfio(folder, name)
    {
        let found = match name.as_str() {
            "vfio-pci" => name.clone(),
            _ => format!("{name}, which is VFIO's for this kind of function"),
        };
        let check = Check::good("driver", found).with_undo(give_back(id));
        return Driver { checks: vec![check], is_vfio: true };
    }
    let found = format!("{}, not one of VFIO", name.as_deref().unwrap_or("none"));
    // Without a driver nothing of the host is on it.
    let uses = name.as_ref().map(|_| in_use::of(paths, folder)).unwrap_or_default();
    let bind = if uses.vital.is_empty() {
        Check::bad("driver", "driver", found, bind(id, name.is_some())).with_undo(give_back(id))
    } else {
        let remedy = "leave it to the host, or free it first: see what uses it";
        Check::bad("driver", "driver", found, remedy)
    };
    let mut checks = vec![bind];
    checks.extend(in_use(uses));
    Driver { checks, is_vfio: false }
}

fn in_use(uses: Uses) -> Option<Check> {
    if !uses.vital.is_empty() {
        return Some(Check::bad(
            "in use",
            "in-use",
            uses.vital.join("; "),
            "the host would lose that, so no command is given here; take another function, or unmount, switch swap \
             off, give the traffic to another card, and ask again",
        ));
    }
    let others = uses.others.join("; ");
    (!others.is_empty()).then(|| Check::good("in use", format!("{others}; goes with the driver")))
}

/// The commands that give a function to vfio-pci.
fn bind(id: FunctionId, has_driver: bool) -> String {
    let unbind = if has_driver {
        format!("echo {id} > /sys/bus/pci/devices/{id}/driver/unbind; ")
    } else {
        String::new()
    };
    format!(
        "modprobe vfio-pci; echo vfio-pci > /sys/bus/pci/devices/{id}/driver_override; \
         {unbind}echo {id} > /sys/bus/pci/drivers_probe"
    )
}

/// The commands that give it back to the host's driver. An empty line clears the override.
fn give_back(id: FunctionId) -> String {
    format!(
        "echo {id} > /sys/bus/pci/devices/{id}/driver/unbind; \
         echo > /sys/bus/pci/devices/{id}/driver_override; echo {id} > /sys/bus/pci/drivers_probe"
    )
}

/// Whether an IOMMU serves the function, and whether its group can be had whole.
pub(super) fn group(paths: &HostPaths, folder: &Path) -> Check {
    const NAME: &str = "IOMMU group";
    if let Err(error) = behind_iommu(paths, folder) {
        let problem = match error {
            NoIommu::NoGroup => "no-group",
            NoIommu::Mode(_) | NoIommu::NoLink(_) => "no-iommu",
        };
        let error = error.to_string();
        let (found, remedy) = error.split_once("; ").unwrap_or((&error, ""));
        return Check::bad(NAME, problem, found, format!("{remedy} (see host)"));
    }
    let group = fs::read_link(folder.join("iommu_group")).unwrap_or_default();
    let group = group.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let others = others(folder);
    if others.is_empty() {
        return Check::good(NAME, group);
    }
    let (mut names, mut vital) = (Vec::new(), Vec::new());
    for other in others {
        let name = other.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let uses = in_use::of(paths, &other).vital;
        if !uses.is_empty() {
            vital.push(format!("{name} ({})", uses.join("; ")));
        }
        names.push(name);
    }
    let found = format!("{group}, shared with {}, which the host uses", names.join(", "));
    let remedy = if vital.is_empty() {
        "bind these to vfio-pci too, or unbind them; or move the device to another slot".to_owned()
    } else {
        format!("move the device to another slot: the host cannot do without {}", vital.join(", "))
    };
    Check::bad(NAME, "group-not-viable", found, remedy)
}

/// The other functions of a group that drivers of the host have, in order.
fn others(folder: &Path) -> Vec<PathBuf> {
    let mut others: Vec<PathBuf> = fs::read_dir(folder.join("iommu_group/devices"))
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name() != folder.file_name().unwrap_or_default())
        .map(|entry| entry.path())
        .filter(|other| {
            name(other)
                .is_some_and(|name| !HARMLESS.contains(&name.as_str()) && !is_vfio(other, &name))
        })
        .collect();
    others.sort();
    others
}

/// Whether a driver hands functions out. Each that does gives them a folder `vfio-dev` (since Linux 6.1); those of one kind of function (variant drivers) are named like `mlx5_vfio_pci`.
fn is_vfio(folder: &Path, driver: &str) -> bool {
    let name = driver.replace('-', "_");
    name == "vfio_pci" || name.ends_with("_vfio_pci") || folder.join("vfio-dev").exists()
}

fn name(folder: &Path) -> Option<String> {
    let driver = fs::read_link(folder.join("driver")).ok()?;
    Some(driver.file_name()?.to_string_lossy().into_owned())
}
