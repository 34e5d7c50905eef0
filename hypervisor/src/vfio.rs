//! PCI functions behind Linux VFIO, attached through a group or an iommufd.
//!
//! The host kernel owns the hardware table: it writes the entries when vectors
//! are set up, and after resets that it knows of. On x86 it also writes mask bits when it moves an
//! interrupt to another processor. With interrupt remapping it does so for microseconds and only when a move has to
//! wait for the next interrupt (a second move in a row, `__irq_move_irq`), or when one arrives while its handler runs
//! elsewhere (`handle_edge_irq`); messages stay. Without remapping each move writes another message as well: the
//! service follows the message while the table is trapped, and the operator who
//! lets a guest have such a table keeps the interrupts where they are. The table is read
//! and masked through a mapping of its page, because the kernel gives ones for reads
//! and drops writes of it through the region file (`do_io_rw`).

mod affinity;
mod backend;
mod host_paths;
mod iommu;
mod irqs;
mod isolation;
#[cfg(test)]
mod made_up;
mod regions;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{kvm_create_device, kvm_device_type_KVM_DEV_TYPE_VFIO};
use kvm_ioctls::VmFd;
use pvmsi_protocol::VectorIndex;
use thiserror::Error;
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_NORESIZE, VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
    VFIO_PCI_REQ_IRQ_INDEX, VFIO_REGION_INFO_FLAG_MMAP,
};
use vfio_ioctls::{
    VfioContainer, VfioDevice, VfioDeviceFd, VfioIommufd, VfioOps, VfioRegionInfoCap,
};
use vm_memory::{
    Address, FileOffset, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress, MmapRegion,
};
use vmm_sys_util::eventfd::EventFd;

use crate::function::{BarMapping, Isolation, PciFunction, SetUpError};
use crate::layout::{BarIndex, Layout, LayoutError};
use crate::page_size::host_page_size;
use crate::vector_table::{MappedTable, VectorTable};
use crate::vfio::affinity::Pinning;
use crate::vfio::isolation::Attachments;
use crate::vfio::regions::Regions;

pub use affinity::{
    HostInterrupt, Irqbalance, MOVES_WRITE_MASKS, PinnedInterrupts, function_interrupts,
};
pub use backend::VfioBackend;
pub use host_paths::HostPaths;
pub use iommu::{NoIommu, behind_iommu};
pub use isolation::{Remapping, function_isolation, host_isolation, interrupt_remapping};

/// A function could not be had from VFIO.
#[derive(Debug, Error)]
pub enum VfioError {
    /// Neither interface can be opened.
    #[error(
        "VFIO cannot be used: {0}; load vfio-pci, and see that /dev/vfio/vfio or /dev/iommu can be opened"
    )]
    Unavailable(#[source] vfio_ioctls::VfioError),
    /// The function is not behind an IOMMU.
    #[error(transparent)]
    NoIommu(#[from] NoIommu),
    /// KVM has no VFIO device.
    #[error("KVM refuses to create its VFIO device")]
    KvmDevice(#[source] io::Error),
    /// A VFIO request failed.
    #[error("{operation} failed: {source}")]
    Request {
        /// What was tried.
        operation: &'static str,
        /// Why not.
        #[source]
        source: vfio_ioctls::VfioError,
    },
    /// The function's layout makes no sense.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// No event can be had.
    #[error("an eventfd cannot be created")]
    Event(#[source] io::Error),
    /// The BARs cannot be mapped.
    #[error("a BAR cannot be mapped")]
    Map(#[source] io::Error),
    /// No descriptor is left.
    #[error("the function's file cannot be opened once more")]
    File(#[source] io::Error),
}

impl VfioError {
    /// Whether it is the answer of a kernel that does not attach the function because nothing isolates its interrupts: `EPERM` where the container gets its first group, or the function is bound to an iommufd. The latter answers the same where another process owns the function's group. A later group of a container that is refused cannot be told from others: vfio-ioctls drops the number.
    pub fn refuses_isolation(&self) -> bool {
        use vfio_ioctls::VfioError as Source;
        let Self::Request { source, .. } = self else { return false };
        let (Source::ContainerSetIOMMU(error)
        | Source::VfioDeviceBindIommufd(error)
        | Source::GroupGetDeviceFD(error)) = source
        else {
            return false;
        };
        error.errno() == libc::EPERM
    }
}

/// The VFIO side of a VM: one address space for DMA, and KVM's account of the functions.
///
/// It also keeps account of their [`Isolation`]: the worst verdict of any function that was attached goes for all, until the value is dropped.
pub struct VfioHost {
    ops: Arc<dyn VfioOps>,
    attachments: Attachments,
}

impl VfioHost {
    /// Through groups where the kernel has them, through an iommufd otherwise. For a VMM that uses VFIO for nothing else.
    ///
    /// # Errors
    /// [`VfioError::Unavailable`] when there is neither, [`VfioError::KvmDevice`] when KVM does not take part: a VM has one VFIO device, and a VMM that has created it (`EBUSY`) gives it to [`with_kvm_device`](Self::with_kvm_device).
    pub fn new(vm: &VmFd) -> Result<Self, VfioError> {
        let device = kvm_device(vm)?;
        Self::with_kvm_device(Arc::clone(&device), VfioBackend::Group)
            .or_else(|error| Self::with_kvm_device(device, VfioBackend::Iommufd).map_err(|_| error))
    }

    /// Through the interface that is named.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_backend(vm: &VmFd, backend: VfioBackend) -> Result<Self, VfioError> {
        Self::with_kvm_device(kvm_device(vm)?, backend)
    }

    /// With the VFIO device of the VM in KVM that the VMM has created, and an address space of its own.
    ///
    /// # Errors
    /// [`VfioError::Unavailable`] when the interface cannot be opened.
    pub fn with_kvm_device(
        device: Arc<VfioDeviceFd>,
        backend: VfioBackend,
    ) -> Result<Self, VfioError> {
        let device = Some(device);
        match backend {
            VfioBackend::Group => {
                let container = VfioContainer::new(device).map_err(VfioError::Unavailable)?;
                Ok(Self::with_nothing_attached(Arc::new(container), backend))
            }
            VfioBackend::Iommufd => {
                let iommufd = iommufd_ioctls::IommuFd::new().map_err(|error| {
                    VfioError::Unavailable(vfio_ioctls::VfioError::NewVfioIommufd(error))
                })?;
                let iommufd = VfioIommufd::new(Arc::new(iommufd), None, device)
                    .map_err(VfioError::Unavailable)?;
                Ok(Self::with_nothing_attached(Arc::new(iommufd), backend))
            }
        }
    }

    fn with_nothing_attached(ops: Arc<dyn VfioOps>, backend: VfioBackend) -> Self {
        Self { ops, attachments: Attachments::new(HostPaths::default(), backend) }
    }

    /// The VMM's own container, with the KVM device that it was given and the RAM that the VMM maps: functions are attached beside those that the VMM has there. Make this before the VMM attaches anything: what the host isolates is looked at here, before, and by [`VfioFunction::new`], after.
    pub fn from_container(container: Arc<VfioContainer>) -> Self {
        let attachments = Attachments::of_the_vmm(HostPaths::default(), VfioBackend::Group);
        Self { ops: container, attachments }
    }

    /// The VMM's own iommufd, likewise.
    pub fn from_iommufd(iommufd: Arc<VfioIommufd>) -> Self {
        let attachments = Attachments::of_the_vmm(HostPaths::default(), VfioBackend::Iommufd);
        Self { ops: iommufd, attachments }
    }

    /// How functions are attached.
    pub fn backend(&self) -> VfioBackend {
        self.attachments.backend()
    }

    /// Lets attached functions reach all of the guest's RAM by DMA, at its guest physical addresses: [`map_region`](Self::map_region) for each region.
    ///
    /// # Errors
    /// [`VfioError::Request`] when a region cannot be mapped; those before it are unmapped again.
    ///
    /// # Safety
    /// That of [`map_region`](Self::map_region), for each region; also after an error, for the kernel may have refused to unmap one.
    pub unsafe fn map_memory<M: GuestMemoryBackend>(&self, memory: &M) -> Result<(), VfioError> {
        for (index, region) in memory.iter().enumerate() {
            // SAFETY: the caller keeps the contract for each region.
            if let Err(error) = unsafe { self.map_region(region) } {
                for mapped in memory.iter().take(index) {
                    // What stays was mapped under the same contract.
                    let _ = self.unmap_region(mapped);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Lets attached functions reach a region of RAM by DMA, at its guest physical address; also one that is plugged while the guest runs. Waits until the kernel has pinned all its pages, which count against the limit of locked memory. With groups, at least one function must be attached before.
    ///
    /// # Errors
    /// [`VfioError::Request`]; the region is not mapped then.
    ///
    /// # Safety
    /// From now on functions read and write `region` at any time, until [`unmap_region`](Self::unmap_region) has succeeded for it, or until the last of them, this value and whatever the VMM itself has of its container or iommufd are dropped. The caller
    /// 1. keeps the region mapped for that long, and
    /// 2. creates no Rust reference into it: only volatile and atomic accesses.
    pub unsafe fn map_region<R: GuestMemoryRegion>(&self, region: &R) -> Result<(), VfioError> {
        let failed = |source| VfioError::Request { operation: "mapping RAM for DMA", source };
        let address = region
            .get_host_address(MemoryRegionAddress(0))
            .map_err(|_| failed(vfio_ioctls::VfioError::GetHostAddress))?;
        let length = usize::try_from(region.len())
            .map_err(|_| failed(vfio_ioctls::VfioError::InvalidDmaUnmapSize))?;
        // SAFETY: the region is mapped at `address` for `length` bytes; the caller keeps it
        // so (1) and accesses it in the ways that the contract of vfio_dma_map names (2).
        unsafe { self.ops.vfio_dma_map(region.start_addr().raw_value(), length, address) }
            .map_err(failed)
    }

    /// Takes a region back that was mapped. On return no function reaches it. Waits until the IOMMU has forgotten it.
    ///
    /// # Errors
    /// [`VfioError::Request`] when the kernel refuses, as for a region that was not mapped as it is; functions may still reach it.
    pub fn unmap_region<R: GuestMemoryRegion>(&self, region: &R) -> Result<(), VfioError> {
        let failed = |source| VfioError::Request { operation: "unmapping RAM from DMA", source };
        let length = usize::try_from(region.len())
            .map_err(|_| failed(vfio_ioctls::VfioError::InvalidDmaUnmapSize))?;
        self.ops.vfio_dma_unmap(region.start_addr().raw_value(), length).map_err(failed)
    }
}

impl fmt::Debug for VfioHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VfioHost").field("attachments", &self.attachments).finish_non_exhaustive()
    }
}

/// The VFIO device of a VM, by which KVM knows its functions.
fn kvm_device(vm: &VmFd) -> Result<Arc<VfioDeviceFd>, VfioError> {
    let mut device =
        kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_VFIO, fd: 0, flags: 0 };
    let device = vm
        .create_device(&mut device)
        .map_err(|error| VfioError::KvmDevice(io::Error::from_raw_os_error(error.errno())))?;
    Ok(Arc::new(VfioDeviceFd::new_from_kvm(device)))
}

/// A PCI function that is bound to vfio-pci, or to another driver of VFIO's.
pub struct VfioFunction {
    /// Go before the device: each keeps its file open, and an open file keeps the group busy.
    mappings: Vec<BarMapping>,
    table: MappedTable,
    regions: Arc<Regions>,
    device: Arc<VfioDevice>,
    layout: Layout,
    /// The worst of all functions of its address space.
    isolation: Arc<Mutex<Isolation>>,
    grows: bool,
    threaded_handlers: bool,
    /// Vectors that the kernel has allocated, from 0 on, each with the descriptor of its event or what [`irqs`] has in place of one. Empty where MSI-X is off.
    set_up: Vec<i32>,
    /// Its folder.
    sysfs: PathBuf,
    pinning: Option<Pinning>,
}

impl VfioFunction {
    /// Attaches the function with this sysfs folder, as `/sys/bus/pci/devices/0000:01:00.0`.
    ///
    /// # Errors
    /// See [`VfioError`]; [`NoIommu`](VfioError::NoIommu) before anything was asked of VFIO.
    pub fn open(host: &VfioHost, sysfs: &Path) -> Result<Self, VfioError> {
        let device = host.attachments.attach(sysfs, || {
            VfioDevice::new(sysfs, Arc::clone(&host.ops), true).map_err(|source| {
                VfioError::Request { operation: "attaching the function", source }
            })
        })?;
        Self::of(host, sysfs, Arc::new(device))
    }

    /// The function, with its folder in sysfs, of a device that the VMM has attached itself, to the container or iommufd of `host` and after that was made: how the host was then and is now says whether it is isolated. MSI-X is off, and its interrupts, configuration space and BARs are this value's from now on; the VMM may keep a clone for what is none of these, as the state of a migration. The function's files are closed when that is gone, too.
    ///
    /// # Errors
    /// See [`VfioError`]; with [`NoIommu`](VfioError::NoIommu) the VMM lets the device go.
    pub fn new(
        host: &VfioHost,
        sysfs: &Path,
        device: impl Into<Arc<VfioDevice>>,
    ) -> Result<Self, VfioError> {
        let device = host.attachments.attach(sysfs, || Ok(device.into()))?;
        Self::of(host, sysfs, device)
    }

    fn of(host: &VfioHost, sysfs: &Path, device: Arc<VfioDevice>) -> Result<Self, VfioError> {
        let regions = Arc::new(Regions::of(&device).map_err(VfioError::File)?);
        let layout = read_layout(&device, &regions)?;
        let mappings = map_bars(&device, &layout).map_err(VfioError::Map)?;
        let layout = layout.with_own_pages(|bar| {
            mappings.iter().any(|mapping| mapping.bar == bar && mapping.offset == 0)
        });
        let unmapped = Arc::clone(&regions);
        let table = MappedTable::new(layout.clone(), mappings.clone())
            .reading_unmapped(move |bar, offset| unmapped.bar_word(bar, offset));
        let grows = device
            .get_irq_info(VFIO_PCI_MSIX_IRQ_INDEX)
            .is_some_and(|info| info.flags & VFIO_IRQ_INFO_NORESIZE == 0);
        let threaded_handlers = irqs::handlers_are_threaded(Path::new("/"));
        Ok(Self {
            table,
            mappings,
            regions,
            device,
            layout,
            isolation: host.attachments.worst(),
            grows,
            threaded_handlers,
            set_up: Vec::new(),
            sysfs: sysfs.to_owned(),
            pinning: None,
        })
    }

    /// From now on, gives each interrupt that is set up the processor that serves it as its only one, before the vector table can be direct: the host's kernel then moves none by itself, and touches no mask bit of the table (H-517 of the specification). The answer says what became of them.
    ///
    /// Nothing is moved by that. Interrupts that have one processor are left as they are, so an affinity of the VMM's own is written before; each is looked at once, so it may be written afterwards. Does nothing but on x86, the only architecture where moves write the table ([`MOVES_WRITE_MASKS`]); interrupts that are not remapped are not touched.
    ///
    /// Writing `/proc/irq/N/smp_affinity_list` takes root. What cannot be pinned is a warning in the log and a count ([`PinnedInterrupts::not_pinned`]), and no call fails for it. Root, and an [`Irqbalance`] that was not told to leave VFIO's interrupts alone, can move them nevertheless.
    pub fn pin_interrupts(&mut self) -> PinnedInterrupts {
        let pinning = Pinning::new(HostPaths::default(), &self.sysfs);
        let counts = pinning.counts();
        self.pinning = MOVES_WRITE_MASKS.then_some(pinning);
        counts
    }

    /// An event that the kernel signals when it wants the function back: somebody unbinds its driver or removes it, and waits until nobody has it open. The kernel repeats that every ten seconds. Revoke the function's table, and take it out of the service: dropping it lets it go.
    ///
    /// # Errors
    /// No descriptor is left, or [`VfioError::Request`].
    pub fn watch_requests(&self) -> Result<EventFd, VfioError> {
        self.watch(VFIO_PCI_REQ_IRQ_INDEX, "watching for its removal")
    }

    /// An event that the kernel signals when the function, or one above it on its bus, has reported an error that it could not correct. `None` where the function has no such thing: it is no PCI Express function. The kernel does not say how bad it was, and signals *before* it resets a link that has failed: BARs and table may be lost a moment later, and nobody says when that is over. [Freeze](crate::FunctionHandle::freeze) the function at once, and [repair](crate::FunctionHandle::repair) it when no more has come for some seconds.
    ///
    /// Source: Linux `vfio_pci_core_aer_err_detected`, `pcie_do_recovery`.
    ///
    /// # Errors
    /// No descriptor is left, or [`VfioError::Request`].
    pub fn watch_errors(&self) -> Result<Option<EventFd>, VfioError> {
        let there = self.device.get_irq_info(VFIO_PCI_ERR_IRQ_INDEX);
        there
            .is_some_and(|info| info.count > 0)
            .then(|| self.watch(VFIO_PCI_ERR_IRQ_INDEX, "watching for its errors"))
            .transpose()
    }

    /// An event for an interrupt of the kernel's own.
    fn watch(&self, interrupt: u32, operation: &'static str) -> Result<EventFd, VfioError> {
        let failed = |source| VfioError::Request { operation, source };
        let event = crate::event::new().map_err(VfioError::Event)?;
        self.device.enable_irq(interrupt, vec![&event]).map_err(failed)?;
        Ok(event)
    }
}

impl fmt::Debug for VfioFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VfioFunction")
            .field("layout", &self.layout)
            .field("isolation", &self.isolation)
            .field("grows", &self.grows)
            .field("set_up", &self.set_up.len())
            .finish_non_exhaustive()
    }
}

impl PciFunction for VfioFunction {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn isolation(&self) -> Isolation {
        self.isolation.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn mappings(&self) -> io::Result<Vec<BarMapping>> {
        Ok(self.mappings.clone())
    }

    fn set_up_count(&self, wanted: u16) -> u16 {
        let now = u16::try_from(self.set_up.len()).unwrap_or(u16::MAX);
        irqs::set_up_count(self.grows, now, wanted, self.layout.vectors())
    }

    fn set_enabled(&mut self, enabled: bool) -> Result<(), SetUpError> {
        match (enabled, self.set_up.is_empty()) {
            (true, true) => {
                // Where vectors cannot be added later without clearing Enable, all are there from the start.
                let count = if self.grows { 1 } else { usize::from(self.layout.vectors()) };
                let allocated = irqs::enable(&self.device, count)?;
                self.set_up = vec![irqs::NONE; allocated];
            }
            (false, false) => {
                if let Err(error) = irqs::disable(&self.device) {
                    self.set_up.fill(irqs::UNKNOWN);
                    return Err(error);
                }
                self.set_up.clear();
                if let Some(pinning) = &mut self.pinning {
                    pinning.forget();
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn set_up_interrupts(
        &mut self,
        first: VectorIndex,
        events: &[&EventFd],
    ) -> Result<(), SetUpError> {
        let mut wanted = self.set_up.clone();
        wanted.truncate(first.as_usize());
        wanted.extend(irqs::descriptors(events));
        if !self.grows && !self.set_up.is_empty() && wanted.len() > self.set_up.len() {
            let available = u16::try_from(self.set_up.len()).unwrap_or(u16::MAX);
            return Err(SetUpError::TooFew { available, guess: false });
        }
        let Some((start, fds)) = irqs::change(&self.set_up, &wanted) else { return Ok(()) };
        let done = irqs::set_up(&self.device, start, &fds);
        let known = self.set_up.len().saturating_sub(start);
        for (now, &fd) in self.set_up.iter_mut().skip(start).zip(&fds) {
            // The kernel takes down what it was asked to change, but not all of it.
            *now = if done.is_ok() { fd } else { irqs::UNKNOWN };
        }
        if done.is_ok() {
            self.set_up.extend(fds.iter().skip(known));
            if let Some(pinning) = &mut self.pinning {
                // Only now does a processor serve them.
                pinning.pin_new(fds.iter().filter(|&&fd| fd >= 0).count());
            }
        }
        done
    }

    fn table(&mut self) -> &mut dyn VectorTable {
        &mut self.table
    }

    fn settle(&mut self) {
        irqs::wait_for_running_handlers(self.threaded_handlers);
    }

    fn config_read(&mut self, offset: u64, data: &mut [u8]) {
        self.regions.config_read(offset, data);
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) {
        self.regions.config_write(offset, data);
    }

    fn bar_read(&mut self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        self.regions.bar_read(bar, offset, data);
    }

    fn bar_write(&mut self, bar: BarIndex, offset: u64, data: &[u8]) {
        self.regions.bar_write(bar, offset, data);
    }

    fn reset(&mut self) -> io::Result<()> {
        self.regions.reset()
    }
}

/// Reads BARs and MSI-X capability, once.
fn read_layout(device: &VfioDevice, regions: &Regions) -> Result<Layout, LayoutError> {
    let read = |offset| {
        let mut data = [0xff; 4];
        regions.config_read(offset, &mut data);
        u32::from_le_bytes(data)
    };
    let size = |bar: BarIndex| device.get_region_size(u32::from(bar.0));
    Layout::read(read, size, host_page_size())
}

fn map_bars(device: &VfioDevice, layout: &Layout) -> io::Result<Vec<BarMapping>> {
    let mut mappings = Vec::new();
    for (index, bar) in (0_u8..).zip(layout.bars()) {
        let region = u32::from(index);
        let Some(bar) = bar else { continue };
        if device.get_region_flags(region) & VFIO_REGION_INFO_FLAG_MMAP == 0 {
            continue;
        }
        let capabilities = device.get_region_caps(region);
        let sparse: Vec<_> = capabilities
            .iter()
            .filter_map(|capability| match capability {
                VfioRegionInfoCap::SparseMmap(sparse) => Some(&sparse.areas),
                _ => None,
            })
            .flatten()
            .map(|area| (area.offset, area.size))
            .collect();
        // Without sparse areas the whole BAR can be mapped, rounded up to a page: the kernel
        // offers small BARs only where nothing else shares their page.
        let whole = bar.size.next_multiple_of(layout.page_size());
        let areas = if sparse.is_empty() { vec![(0, whole)] } else { sparse };
        for (offset, length) in areas {
            mappings.push(BarMapping {
                bar: BarIndex(index),
                offset,
                memory: Arc::new(map(device, region, offset, length)?),
            });
        }
    }
    Ok(mappings)
}

fn map(device: &VfioDevice, region: u32, offset: u64, length: u64) -> io::Result<MmapRegion> {
    let file = regions::file(device)?;
    let start = device.get_region_offset(region).saturating_add(offset);
    let length = usize::try_from(length).map_err(io::Error::other)?;
    MmapRegion::build(
        Some(FileOffset::new(file, start)),
        length,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_SHARED,
    )
    .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;

    const REGIONS: [(GuestAddress, usize); 3] = [
        (GuestAddress(0), 0x1000),
        (GuestAddress(0x10_0000), 0x3000),
        (GuestAddress(1 << 32), 0x2000),
    ];

    /// An address space that takes so many regions.
    struct AddressSpace {
        room: usize,
        mapped: Mutex<Vec<(u64, usize)>>,
    }

    impl VfioOps for AddressSpace {
        unsafe fn vfio_dma_map(
            &self,
            address: u64,
            size: usize,
            _: *mut u8,
        ) -> Result<(), vfio_ioctls::VfioError> {
            let mut mapped = self.mapped.lock().unwrap();
            if mapped.len() == self.room {
                return Err(vfio_ioctls::VfioError::InvalidDmaUnmapSize);
            }
            mapped.push((address, size));
            Ok(())
        }

        fn vfio_dma_unmap(&self, address: u64, size: usize) -> Result<(), vfio_ioctls::VfioError> {
            let mut mapped = self.mapped.lock().unwrap();
            let found = mapped.iter().position(|&region| region == (address, size));
            let found = found.ok_or(vfio_ioctls::VfioError::InvalidDmaUnmapSize)?;
            mapped.remove(found);
            Ok(())
        }
    }

    fn host(room: usize) -> (VfioHost, Arc<AddressSpace>) {
        let space = Arc::new(AddressSpace { room, mapped: Mutex::default() });
        let ops: Arc<dyn VfioOps> = Arc::<AddressSpace>::clone(&space);
        (VfioHost::with_nothing_attached(ops, VfioBackend::Group), space)
    }

    #[test]
    fn ram_is_mapped_and_unmapped_by_region() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&REGIONS).unwrap();
        let (host, space) = host(3);
        let mapped = || space.mapped.lock().unwrap().clone();
        // SAFETY: nobody accesses the memory.
        unsafe { host.map_memory(&memory) }.unwrap();
        assert_eq!(mapped(), [(0, 0x1000), (0x10_0000, 0x3000), (1 << 32, 0x2000)]);
        let second = memory.iter().nth(1).unwrap();
        host.unmap_region(second).unwrap();
        assert_eq!(mapped(), [(0, 0x1000), (1 << 32, 0x2000)]);
        host.unmap_region(second).unwrap_err();
        // SAFETY: nobody accesses the memory.
        unsafe { host.map_region(second) }.unwrap();
        assert_eq!(mapped(), [(0, 0x1000), (1 << 32, 0x2000), (0x10_0000, 0x3000)]);
    }

    #[test]
    fn a_region_that_cannot_be_mapped_leaves_none_behind() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&REGIONS).unwrap();
        for room in 0..REGIONS.len() {
            let (host, space) = host(room);
            // SAFETY: nobody accesses the memory.
            let error = unsafe { host.map_memory(&memory) }.unwrap_err();
            assert!(matches!(error, VfioError::Request { operation: "mapping RAM for DMA", .. }));
            assert_eq!(*space.mapped.lock().unwrap(), []);
        }
    }
}
