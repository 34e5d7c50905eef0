//! What one function must have.

use std::fs;
use std::path::Path;

use pvmsi_hypervisor::{BarIndex, HostPaths, Layout, MOVES_WRITE_MASKS, function_isolation};
use pvmsi_protocol::FunctionId;

use super::attach::confined;
use super::check::Check;
use super::driver::{driver, group};
use super::host::HostProbe;
use super::interrupts;
use crate::host;

/// `struct resource` flags: the BAR is memory.
const IORESOURCE_MEM: u64 = 0x200;
/// Offsets of configuration space: class code, and the layout of the header. PCI Code and ID Assignment; PCI 3.0, 6.1.
const SUB_CLASS: usize = 0x0a;
const BASE_CLASS: usize = 0x0b;
const HEADER_TYPE: usize = 0x0e;
const BRIDGES: u8 = 0x06;
const SYSTEM_PERIPHERALS: u8 = 0x08;
const IOMMUS: u8 = 0x06;

/// What was found of a function.
pub(super) struct Found {
    pub(super) checks: Vec<Check>,
    /// Whether the kernel has attached it as isolated, or refused it for want of isolation; `None` where it did neither.
    pub(super) isolated: Option<bool>,
}

/// The functions with an MSI-X capability, in order. Without the right to read configuration space there are none.
pub(super) fn with_msix(paths: &HostPaths) -> Vec<FunctionId> {
    let mut ids: Vec<FunctionId> = fs::read_dir(paths.sysfs.join("bus/pci/devices"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|id: &FunctionId| layout(&paths.function(&id.to_string())).is_ok())
        .collect();
    ids.sort();
    ids
}

/// Looks at a function; stops where nothing more can be said.
pub(super) fn probe(id: FunctionId, paths: &HostPaths, host: &HostProbe) -> Found {
    let folder = paths.function(&id.to_string());
    match table_of(&folder) {
        Ok(layout) => with_table(id, paths, &folder, &layout, host),
        Err(check) => Found { checks: vec![check], isolated: None },
    }
}

/// The layout of a function that can be passed through.
///
/// # Errors
/// What keeps it from that whatever its driver is.
fn table_of(folder: &Path) -> Result<Layout, Check> {
    if !folder.exists() {
        return Err(Check::bad(
            "function",
            "no-function",
            "there is none at this address",
            "lspci -D lists the functions of this host",
        ));
    }
    if let Some(what) = belongs_to_the_host(folder) {
        return Err(Check::bad(
            "function",
            "host-function",
            what,
            "leave it alone, for others depend on it; VFIO hands out what is below it",
        ));
    }
    if !config_is_readable(folder) {
        return Err(Check::bad(
            "config space",
            "config-unreadable",
            "this user may not read it beyond its header, so the vector table is unknown",
            "run as root",
        ));
    }
    layout(folder).map_err(|error| {
        let remedy = "without a vector table nothing can be done, nor need be";
        Check::bad("MSI-X", "no-msix", error, remedy)
    })
}

fn with_table(
    id: FunctionId,
    paths: &HostPaths,
    folder: &Path,
    layout: &Layout,
    host: &HostProbe,
) -> Found {
    let group = group(paths, folder);
    let driver = driver(paths, folder, id);
    // Without an IOMMU there is nothing that it could be attached to.
    let has_iommu = !matches!(group.problem, Some("no-group" | "no-iommu"));
    let mut checks = vec![table(layout), neighbours(layout), group];
    checks.extend(driver.checks);
    if MOVES_WRITE_MASKS {
        checks.extend(interrupts::room(paths, folder, layout));
        // A driver of the host's leaves its interrupts to the kernel.
        checks.extend(driver.is_vfio.then(|| interrupts::affinity(paths, folder, id)).flatten());
    }
    let mut isolated = None;
    // The truth is what attaching the function shows.
    let attach = host.attach.filter(|_| has_iommu && driver.is_vfio);
    if let Some(attach) = attach {
        let attached = attach(folder);
        checks.extend(attached.checks);
        isolated = attached.isolated;
    } else if let Some(backend) = host.backend {
        if has_iommu {
            checks.push(confined(function_isolation(paths, backend, folder)));
        }
        checks.push(mappable(small_bar(folder, layout).is_none(), layout));
    }
    Found { checks, isolated }
}

/// What a function is that VFIO does not hand out, or that the host needs for others. The header can be read by everybody.
fn belongs_to_the_host(folder: &Path) -> Option<String> {
    let config = fs::read(folder.join("config")).ok()?;
    let byte = |offset: usize| config.get(offset).copied();
    let (header, class) = (byte(HEADER_TYPE)? & 0x7f, byte(BASE_CLASS)?);
    if header != 0 || class == BRIDGES {
        Some("it is a port or a bridge".to_owned())
    } else if (class, byte(SUB_CLASS)?) == (SYSTEM_PERIPHERALS, IOMMUS) {
        Some("it is an IOMMU".to_owned())
    } else {
        None
    }
}

pub(super) fn layout(folder: &Path) -> Result<Layout, String> {
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

pub(super) fn mappable(can: bool, layout: &Layout) -> Check {
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
