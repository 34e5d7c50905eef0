//! What one function must have.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvm_ioctls::Kvm;
use pvmsi_hypervisor::{
    BarIndex, HostPaths, Isolation, KvmWindow, Layout, MemorySlots, PciFunction, VfioFunction,
    VfioHost, Window, host_isolation,
};
use pvmsi_protocol::FunctionId;

use super::check::Check;
use super::host::HostProbe;
use crate::host;

/// `struct resource` flags: the BAR is memory.
const IORESOURCE_MEM: u64 = 0x200;

/// The functions with an MSI-X capability, in order. Without the right to read configuration space there are none.
pub(super) fn with_msix(sysfs: &Path) -> Vec<FunctionId> {
    let mut ids: Vec<FunctionId> = fs::read_dir(sysfs.join("bus/pci/devices"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&id| layout(&folder(sysfs, id)).is_ok())
        .collect();
    ids.sort();
    ids
}

/// Looks at a function; stops where nothing more can be said.
pub(super) fn probe(id: FunctionId, sysfs: &Path, dev: &Path, host: &HostProbe) -> Vec<Check> {
    let folder = folder(sysfs, id);
    if !folder.exists() {
        return vec![Check::bad(
            "function",
            "no-function",
            "there is none at this address",
            "lspci -D lists the functions of this host",
        )];
    }
    if !config_is_readable(&folder) {
        return vec![Check::bad(
            "config space",
            "config-unreadable",
            "this user may not read it beyond its header, so the vector table is unknown",
            "run as root",
        )];
    }
    let layout = match layout(&folder) {
        Ok(layout) => layout,
        Err(error) => {
            return vec![Check::bad(
                "MSI-X",
                "no-msix",
                error,
                "without a vector table nothing can be done, nor need be",
            )];
        }
    };
    let mut checks = vec![table(&layout), neighbours(&layout), group(&folder)];
    let driver = driver(&folder, id);
    let bound = driver.ok;
    checks.push(driver);
    // The truth is what attaching the function shows; a made-up tree has nothing to attach.
    let attachable = bound && sysfs == Path::new("/sys") && dev == Path::new("/dev");
    if attachable {
        checks.extend(attach(&folder));
    } else if let Some(backend) = host.backend {
        let paths = HostPaths { sysfs: sysfs.to_owned(), ..HostPaths::default() };
        checks.push(isolation(host_isolation(&paths, backend)));
        checks.push(mappable(small_bar(&folder, &layout).is_none(), &layout));
    }
    checks
}

fn folder(sysfs: &Path, id: FunctionId) -> PathBuf {
    sysfs.join("bus/pci/devices").join(id.to_string())
}

fn layout(folder: &Path) -> Result<Layout, String> {
    let config = fs::read(folder.join("config")).map_err(|error| error.to_string())?;
    let resources = fs::read_to_string(folder.join("resource")).unwrap_or_default();
    let sizes: Vec<u64> = resources.lines().map(resource_size).collect();
    let read = |offset: u64| {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = config.get(start..).and_then(|rest| rest.first_chunk::<4>());
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    };
    let size = |bar: BarIndex| sizes.get(bar.as_usize()).copied().unwrap_or(0);
    Layout::read(read, size, host::page_size()).map_err(|error| error.to_string())
}

/// The size of a memory resource from a line `start end flags`, in hexadecimal.
fn resource_size(line: &str) -> u64 {
    let numbers: Vec<u64> = line
        .split_whitespace()
        .filter_map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok())
        .collect();
    match numbers.as_slice() {
        [start, end, flags] if flags & IORESOURCE_MEM != 0 => {
            end.saturating_sub(*start).saturating_add(1)
        }
        _ => 0,
    }
}

fn table(layout: &Layout) -> Check {
    let (bar, offset) = layout.table();
    let (pending_bar, pending) = layout.pending();
    Check::good(
        "MSI-X",
        format!(
            "{} vectors, table in BAR {} at {offset:#x}, pending bits in BAR {} at {pending:#x}",
            layout.vectors(),
            bar.0,
            pending_bar.0
        ),
    )
}

/// What the trap takes away from the guest besides the table.
fn neighbours(layout: &Layout) -> Check {
    let mut bars = vec![layout.table().0];
    if layout.pending().0 != layout.table().0 {
        bars.push(layout.pending().0);
    }
    let trapped: u64 = bars
        .iter()
        .flat_map(|&bar| {
            let size = layout.bars().get(bar.as_usize()).copied().flatten().map_or(0, |b| b.size);
            layout
                .switched_pages(bar)
                .into_iter()
                .map(move |pages| pages.end.min(size).saturating_sub(pages.start))
        })
        .fold(0, u64::saturating_add);
    let own = layout.table_bytes().saturating_add(layout.pending_bytes());
    let others = trapped.saturating_sub(own);
    Check::good(
        "its pages",
        format!(
            "{trapped} bytes are trapped today, {others} of them beside table and pending bits"
        ),
    )
}

fn group(folder: &Path) -> Check {
    let Ok(group) = fs::read_link(folder.join("iommu_group")) else {
        return Check::bad(
            "IOMMU group",
            "no-group",
            "the function is in none",
            "switch the IOMMU on (see host)",
        );
    };
    let name = group.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut others: Vec<String> = fs::read_dir(folder.join("iommu_group/devices"))
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name() != folder.file_name().unwrap_or_default())
        .filter(|entry| !is_harmless(&entry.path()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    others.sort();
    if others.is_empty() {
        return Check::good("IOMMU group", name);
    }
    Check::bad(
        "IOMMU group",
        "group-not-viable",
        format!("{name}, shared with {}, which the host uses", others.join(", ")),
        "bind these to vfio-pci too, or unbind them; or move the device to another slot",
    )
}

/// Whether a member of a group does not keep VFIO from using it.
fn is_harmless(folder: &Path) -> bool {
    matches!(driver_name(folder).as_deref(), None | Some("vfio-pci" | "pci-stub" | "pcieport"))
}

fn driver_name(folder: &Path) -> Option<String> {
    let driver = fs::read_link(folder.join("driver")).ok()?;
    Some(driver.file_name()?.to_string_lossy().into_owned())
}

fn driver(folder: &Path, id: FunctionId) -> Check {
    match driver_name(folder) {
        Some(name) if name == "vfio-pci" => Check::good("driver", name),
        other => {
            let name = other.as_deref().unwrap_or("none");
            let unbind = match other {
                Some(_) => format!("echo {id} > /sys/bus/pci/devices/{id}/driver/unbind; "),
                None => String::new(),
            };
            Check::bad(
                "driver",
                "driver",
                format!("{name}, not vfio-pci"),
                format!(
                    "modprobe vfio-pci; echo vfio-pci > /sys/bus/pci/devices/{id}/driver_override; \
                     {unbind}echo {id} > /sys/bus/pci/drivers_probe"
                ),
            )
        }
    }
}

fn isolation(verdict: Isolation) -> Check {
    match verdict {
        Isolation::Isolated => Check::good("isolation", "confined to its own interrupts"),
        Isolation::NotIsolated(why) => {
            let (found, remedy) = why.split_once("; ").unwrap_or((why.as_str(), ""));
            Check::bad("isolation", "no-isolation", found, remedy)
        }
    }
}

/// A BAR with a switched page that is smaller than a page and does not start one: VFIO cannot keep the rest of the page free.
fn small_bar(folder: &Path, layout: &Layout) -> Option<BarIndex> {
    let resources = fs::read_to_string(folder.join("resource")).unwrap_or_default();
    let starts: Vec<u64> = resources
        .lines()
        .map(|line| {
            let start = line.split_whitespace().next().unwrap_or_default();
            u64::from_str_radix(start.trim_start_matches("0x"), 16).unwrap_or(0)
        })
        .collect();
    [layout.table().0, layout.pending().0].into_iter().find(|bar| {
        let size = layout.bars().get(bar.as_usize()).copied().flatten().map_or(0, |bar| bar.size);
        let start = starts.get(bar.as_usize()).copied().unwrap_or(0);
        size < layout.page_size() && !start.is_multiple_of(layout.page_size())
    })
}

/// Without privileges the kernel shows the 64 bytes of the header only.
fn config_is_readable(folder: &Path) -> bool {
    const CAPABILITIES_END: usize = 256;
    fs::read(folder.join("config")).is_ok_and(|config| config.len() >= CAPABILITIES_END)
}

fn mappable(can: bool, layout: &Layout) -> Check {
    if can {
        return Check::good("mapping", "the table's pages can be mapped");
    }
    let page = layout.page_size();
    Check::bad(
        "mapping",
        "not-mappable",
        format!(
            "the table's pages of {page} bytes are not the function's alone, or VFIO refuses to map them"
        ),
        "use a kernel with smaller pages, or ask the firmware to align BARs to pages (pci=resource_alignment=)",
    )
}

/// Attaches the function, without starting a guest, and looks at what can be mapped.
fn attach(folder: &Path) -> Vec<Check> {
    let attached = || -> Result<Vec<Check>, String> {
        let text = |error: kvm_ioctls::Error| error.to_string();
        let vm = Arc::new(Kvm::new().map_err(text)?.create_vm().map_err(text)?);
        let host = VfioHost::new(&vm).map_err(|error| error.to_string())?;
        let function = VfioFunction::open(&host, folder).map_err(|error| error.to_string())?;
        let mappings = function.mappings().map_err(|error| error.to_string())?;
        let slots = Arc::new(MemorySlots::new(vm, 0..1));
        let window = KvmWindow::new(slots, function.layout(), mappings);
        Ok(vec![
            Check::good("attach", "VFIO hands the function out"),
            isolation(function.isolation()),
            mappable(window.table_can_be_direct(), function.layout()),
        ])
    };
    attached().unwrap_or_else(|error| {
        vec![Check::bad(
            "attach",
            "attach",
            error,
            "see that no other process uses the function's IOMMU group; where the kernel log speaks of \
             interrupt remapping, switch that on in the firmware",
        )]
    })
}
