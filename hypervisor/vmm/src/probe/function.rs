//! What one function must have.

use std::fs;
use std::ops::Range;
use std::path::Path;

use pvmsi_hypervisor::{
    Bar, BarIndex, HostPaths, Layout, LayoutError, MOVES_WRITE_MASKS, PendingBits,
    function_isolation, has_msi,
};
use pvmsi_protocol::FunctionId;

use super::attach::confined;
use super::check::Check;
use super::driver::{driver, group};
use super::host::HostProbe;
use super::interrupts;
use crate::host;

/// `struct resource` flags: the BAR is memory.
const IORESOURCE_MEM: u64 = 0x200;
/// The same: it has no address yet.
const IORESOURCE_UNSET: u64 = 0x2000_0000;
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
        .filter(|id: &FunctionId| {
            // Whatever the size of its pages.
            layout(&paths.function(&id.to_string()), host::page_size()) != Err(LayoutError::NoMsix)
        })
        .collect();
    ids.sort();
    ids
}

/// Looks at a function; stops where nothing more can be said.
pub(super) fn probe(id: FunctionId, paths: &HostPaths, host: &HostProbe) -> Found {
    let folder = paths.function(&id.to_string());
    match table_of(&folder, host.page_size) {
        Ok(layout) => with_table(id, paths, &folder, &layout, host),
        Err(check) => Found { checks: vec![check], isolated: None },
    }
}

/// The layout of a function that can be passed through.
///
/// # Errors
/// What keeps it from that whatever its driver is.
fn table_of(folder: &Path, page_size: u64) -> Result<Layout, Check> {
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
    layout(folder, page_size).map_err(|error| {
        let problem = match error {
            LayoutError::NoMsix => "no-msix",
            LayoutError::NotAssigned(_) => "bar-not-assigned",
            _ => "broken-table",
        };
        Check::bad("MSI-X", problem, error.to_string(), error.remedy())
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
    let mut checks = vec![table(layout), neighbours(layout)];
    checks.extend(msi(folder));
    checks.push(group);
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
        let layout = with_own_pages(paths, folder, layout.clone());
        // VFIO maps what is no smaller than a page.
        let size = layout.bar(layout.table().0).map_or(0, |bar| bar.size);
        checks.push(mapping(&layout, size >= layout.page_size(), folder));
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

pub(super) fn layout(folder: &Path, page_size: u64) -> Result<Layout, LayoutError> {
    // One that cannot be read has no capabilities.
    let config = fs::read(folder.join("config")).unwrap_or_default();
    let resources = resources(folder);
    let read = |offset: u64| {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = config.get(start..).and_then(|rest| rest.first_chunk::<4>());
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    };
    let size = |bar: BarIndex| {
        let memory = resources.get(bar.as_usize()).and_then(Option::as_ref);
        memory.map_or(0, |memory| memory.end.saturating_sub(memory.start))
    };
    Layout::read(read, size, page_size)
}

/// Where a function decodes memory: by BAR, and behind those what else it decodes.
fn resources(folder: &Path) -> Vec<Option<Range<u64>>> {
    let text = fs::read_to_string(folder.join("resource")).unwrap_or_default();
    text.lines().map(resource).collect()
}

/// The memory of a line `start end flags`, in hexadecimal; `None` for ports, and where the host has found no place.
fn resource(line: &str) -> Option<Range<u64>> {
    let mut numbers = line
        .split_whitespace()
        .map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok());
    let (start, end, flags) = (numbers.next()??, numbers.next()??, numbers.next()??);
    let placed = flags & IORESOURCE_MEM != 0 && flags & IORESOURCE_UNSET == 0;
    placed.then(|| start..end.saturating_add(1))
}

fn table(layout: &Layout) -> Check {
    let (bar, offset) = layout.table();
    let (pending_bar, pending) = layout.pending();
    let doubt = match layout.pending_bits() {
        PendingBits::InBar => "",
        PendingBits::Nowhere => ", as it says, where there is no memory",
        PendingBits::OverTable => ", as it says, where the table is",
    };
    Check::good(
        "MSI-X",
        format!(
            "{} vectors, table in BAR {} at {offset:#x}, pending bits in BAR {} at {pending:#x}{doubt}",
            layout.vectors(),
            bar.0,
            pending_bar.0
        ),
    )
}

/// MSI that the function has as well; `None` where it has none.
fn msi(folder: &Path) -> Option<Check> {
    let config = fs::read(folder.join("config")).unwrap_or_default();
    let byte = |at| usize::try_from(at).ok().and_then(|at| config.get(at).copied()).unwrap_or(0);
    has_msi(byte).then(|| {
        Check::good(
            "MSI",
            "hidden from guests at every policy, off included: their drivers find MSI-X alone",
        )
    })
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
            let size = layout.bar(bar).map_or(0, |bar| bar.size);
            layout
                .switched_pages(bar)
                .into_iter()
                .map(move |pages| pages.end.min(size).saturating_sub(pages.start))
        })
        .fold(0, u64::saturating_add);
    let pending = match layout.pending_bits() {
        PendingBits::InBar => layout.pending_bytes(),
        PendingBits::Nowhere | PendingBits::OverTable => 0,
    };
    let own = layout.table_bytes().saturating_add(pending);
    let others = trapped.saturating_sub(own);
    Check::good(
        "its pages",
        format!(
            "{trapped} bytes are trapped today, {others} of them beside table and pending bits"
        ),
    )
}

/// Without privileges the kernel shows the 64 bytes of the header only.
fn config_is_readable(folder: &Path) -> bool {
    const CAPABILITIES_END: usize = 256;
    fs::read(folder.join("config")).is_ok_and(|config| config.len() >= CAPABILITIES_END)
}

/// What becomes of the table; `window` says whether the pages that hold it can be mapped.
pub(super) fn mapping(layout: &Layout, window: bool, folder: &Path) -> Check {
    if let Some(why) = layout.not_mappable(window) {
        let address = folder.file_name().unwrap_or_default().to_string_lossy();
        return Check::bad("mapping", "not-mappable", why.to_string(), why.remedy(address));
    }
    let mut found = "the table's pages can be mapped".to_owned();
    let (bar, page) = (layout.table().0, layout.page_size());
    if layout.is_grown(bar) {
        found += &format!(": for the guest BAR {} is as large as a page, {page} bytes", bar.0);
    }
    let (bar, _) = layout.pending();
    if layout.pending_bits() == PendingBits::Nowhere {
        found += "; the pending bits cannot be where they are said to be, so nobody reads them";
    } else if layout.bar(bar).is_some_and(|bar| bar.size < page) {
        found += "; those of the pending bits cannot, so a guest that reads these exits";
    }
    Check::good("mapping", found)
}

/// Memory that functions of this host decode, by function and BAR.
fn memory_of_all(paths: &HostPaths) -> Vec<Range<u64>> {
    fs::read_dir(paths.sysfs.join("bus/pci/devices"))
        .into_iter()
        .flatten()
        .flatten()
        .flat_map(|entry| resources(&entry.path()))
        .flatten()
        .collect()
}

/// The same layout, where small BARs that VFIO can map have a page of their own: those that start one, where nobody is in the rest (Linux `vfio_pci_probe_mmaps`).
fn with_own_pages(paths: &HostPaths, folder: &Path, layout: Layout) -> Layout {
    let page = layout.page_size();
    let small = |bar: &Option<Bar>| bar.is_some_and(|bar| bar.size < page);
    if !layout.bars().iter().any(small) {
        return layout;
    }
    let (own, all) = (resources(folder), memory_of_all(paths));
    layout.with_own_pages(|bar| {
        let Some(memory) = own.get(bar.as_usize()).cloned().flatten() else { return false };
        let rest = memory.end..memory.start.saturating_add(page);
        // A bridge's window around it is where it lies, and nobody's registers.
        let around = |other: &Range<u64>| other.start <= memory.start && memory.end <= other.end;
        let apart = |other: &Range<u64>| other.end <= rest.start || rest.end <= other.start;
        memory.start.is_multiple_of(page) && all.iter().all(|other| around(other) || apart(other))
    })
}
