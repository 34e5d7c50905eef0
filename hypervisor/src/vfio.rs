//! PCI functions behind Linux VFIO, attached through a group or an iommufd.
//!
//! The host kernel owns the hardware table: it writes the entries when vectors
//! are set up, after resets that it knows of, and with interrupt remapping no others, since
//! an affinity change on the host then touches the remapping table only. Without it (x86)
//! the kernel writes another message, and its own idea of the mask bit: the
//! service follows the message while the table is trapped, and the operator who
//! lets a guest have such a table keeps the interrupts where they are. The table is read
//! and masked through a mapping of its page, because the kernel refuses reads
//! and drops writes of it through the region file.

mod irqs;
mod regions;

use std::io;
use std::path::Path;
use std::sync::Arc;

use kvm_bindings::{kvm_create_device, kvm_device_type_KVM_DEV_TYPE_VFIO};
use kvm_ioctls::VmFd;
use pvmsi_protocol::{TableMessage, VectorIndex};
use thiserror::Error;
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_NORESIZE, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX,
    VFIO_REGION_INFO_FLAG_MMAP,
};
use vfio_ioctls::{
    VfioContainer, VfioDevice, VfioDeviceFd, VfioIommufd, VfioOps, VfioRegionInfoCap,
};
use vm_memory::{
    Address, FileOffset, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress, MmapRegion,
    VolatileMemory,
};
use vmm_sys_util::eventfd::EventFd;

use crate::function::{BarMapping, Isolation, PciFunction, TooFewInterrupts};
use crate::isolation::host_isolation;
use crate::layout::{BarIndex, Layout, LayoutError};
use crate::page_size::host_page_size;
use crate::vfio::regions::Regions;

/// How functions are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VfioBackend {
    /// `/dev/vfio/vfio` and IOMMU groups.
    Group,
    /// `/dev/iommu` and `/dev/vfio/devices`.
    Iommufd,
}

/// A function could not be had from VFIO.
#[derive(Debug, Error)]
pub enum VfioError {
    /// Neither interface can be opened.
    #[error(
        "VFIO cannot be used: {0}; load vfio-pci, and see that /dev/vfio/vfio or /dev/iommu can be opened"
    )]
    Unavailable(#[source] vfio_ioctls::VfioError),
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

/// The VFIO side of a VM: one address space for DMA, and KVM's account of the functions.
pub struct VfioHost {
    ops: Arc<dyn VfioOps>,
    backend: VfioBackend,
}

impl VfioHost {
    /// Through groups where the kernel has them, through an iommufd otherwise.
    ///
    /// # Errors
    /// [`VfioError::Unavailable`] when there is neither.
    pub fn new(vm: &VmFd) -> Result<Self, VfioError> {
        Self::with_backend(vm, VfioBackend::Group)
            .or_else(|error| Self::with_backend(vm, VfioBackend::Iommufd).map_err(|_| error))
    }

    /// Through the interface that is named.
    ///
    /// # Errors
    /// [`VfioError::Unavailable`] when it cannot be opened, [`VfioError::KvmDevice`] when KVM does not take part.
    pub fn with_backend(vm: &VmFd, backend: VfioBackend) -> Result<Self, VfioError> {
        let mut device =
            kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_VFIO, fd: 0, flags: 0 };
        let device = vm
            .create_device(&mut device)
            .map_err(|error| VfioError::KvmDevice(io::Error::from_raw_os_error(error.errno())))?;
        let device = Some(Arc::new(VfioDeviceFd::new_from_kvm(device)));
        let ops: Arc<dyn VfioOps> = match backend {
            VfioBackend::Group => {
                Arc::new(VfioContainer::new(device).map_err(VfioError::Unavailable)?)
            }
            VfioBackend::Iommufd => {
                let iommufd = iommufd_ioctls::IommuFd::new().map_err(|error| {
                    VfioError::Unavailable(vfio_ioctls::VfioError::NewVfioIommufd(error))
                })?;
                Arc::new(
                    VfioIommufd::new(Arc::new(iommufd), None, device)
                        .map_err(VfioError::Unavailable)?,
                )
            }
        };
        Ok(Self { ops, backend })
    }

    /// How functions are attached.
    pub fn backend(&self) -> VfioBackend {
        self.backend
    }

    /// Lets attached functions reach all of the guest's RAM by DMA, at its guest physical addresses. With groups, at least one function must be attached before.
    ///
    /// # Errors
    /// [`VfioError::Request`] when a region cannot be mapped.
    ///
    /// # Safety
    /// From now on functions read and write `memory` at any time, until the last of them and this value are dropped. The caller
    /// 1. keeps all regions of `memory` mapped for that long, and
    /// 2. creates no Rust reference into them: only volatile and atomic accesses.
    pub unsafe fn map_memory<M: GuestMemoryBackend>(&self, memory: &M) -> Result<(), VfioError> {
        for region in memory.iter() {
            let failed = |source| VfioError::Request { operation: "mapping RAM for DMA", source };
            let address = region
                .get_host_address(MemoryRegionAddress(0))
                .map_err(|_| failed(vfio_ioctls::VfioError::GetHostAddress))?;
            let length = usize::try_from(region.len())
                .map_err(|_| failed(vfio_ioctls::VfioError::InvalidDmaUnmapSize))?;
            // SAFETY: the region is mapped at `address` for `length` bytes; the caller keeps it
            // so (1) and accesses it in the ways that the contract of vfio_dma_map names (2).
            unsafe { self.ops.vfio_dma_map(region.start_addr().raw_value(), length, address) }
                .map_err(failed)?;
        }
        Ok(())
    }
}

/// A PCI function that is bound to vfio-pci.
pub struct VfioFunction {
    /// Go before the device: each keeps its file open, and an open file keeps the group busy.
    mappings: Vec<BarMapping>,
    regions: Regions,
    device: VfioDevice,
    layout: Layout,
    isolation: Isolation,
    grows: bool,
    threaded_handlers: bool,
    /// Vectors that the kernel has allocated, from 0 on, each with the descriptor of its event or what [`irqs`] has in place of one. Empty where MSI-X is off.
    set_up: Vec<i32>,
}

impl VfioFunction {
    /// Attaches the function with this sysfs folder, as `/sys/bus/pci/devices/0000:01:00.0`.
    ///
    /// # Errors
    /// See [`VfioError`].
    pub fn open(host: &VfioHost, sysfs: &Path) -> Result<Self, VfioError> {
        let device = VfioDevice::new(sysfs, Arc::clone(&host.ops), true)
            .map_err(|source| VfioError::Request { operation: "attaching the function", source })?;
        let regions = Regions::of(&device).map_err(VfioError::File)?;
        let layout = read_layout(&device, &regions)?;
        let mappings = map_bars(&device, &layout).map_err(VfioError::Map)?;
        let grows = device
            .get_irq_info(VFIO_PCI_MSIX_IRQ_INDEX)
            .is_some_and(|info| info.flags & VFIO_IRQ_INFO_NORESIZE == 0);
        let isolation = host_isolation(Path::new("/sys"), host.backend);
        let threaded_handlers = irqs::handlers_are_threaded(Path::new("/"));
        Ok(Self {
            mappings,
            regions,
            device,
            layout,
            isolation,
            grows,
            threaded_handlers,
            set_up: Vec::new(),
        })
    }

    /// An event that the kernel signals when it wants the function back: somebody unbinds its driver or removes it, and waits until nobody has it open. The kernel repeats that every ten seconds. Revoke the function's table, and take it out of the service: dropping it lets it go.
    ///
    /// # Errors
    /// No descriptor is left, or [`VfioError::Request`].
    pub fn watch_requests(&self) -> Result<EventFd, VfioError> {
        let failed = |source| VfioError::Request { operation: "watching for its removal", source };
        let event = crate::event::new().map_err(VfioError::Event)?;
        self.device.enable_irq(VFIO_PCI_REQ_IRQ_INDEX, vec![&event]).map_err(failed)?;
        Ok(event)
    }

    /// Applies `act` to a 32-bit word of a BAR's mapping.
    fn word<T>(
        &self,
        bar: BarIndex,
        offset: u64,
        act: impl FnOnce(vm_memory::VolatileRef<'_, u32>) -> T,
    ) -> io::Result<T> {
        let not_mapped = || {
            let why = "the vector table's page cannot be mapped";
            io::Error::new(io::ErrorKind::Unsupported, why)
        };
        let (memory, at) = self
            .mappings
            .iter()
            .find_map(|mapping| {
                let at = usize::try_from(offset.checked_sub(mapping.offset)?).ok()?;
                (mapping.bar == bar && at < mapping.memory.size()).then_some((&mapping.memory, at))
            })
            .ok_or_else(not_mapped)?;
        let word = memory.get_ref::<u32>(at).map_err(|_| not_mapped())?;
        Ok(act(word))
    }

    fn entry_word(&self, vector: VectorIndex, word: u64) -> io::Result<(BarIndex, u64)> {
        let (bar, _) = self.layout.table();
        let offset =
            self.layout.entry_offset(vector).and_then(|at| at.checked_add(word.checked_mul(4)?));
        offset
            .map(|offset| (bar, offset))
            .ok_or_else(|| io::Error::other("the function has no such vector"))
    }

    fn read(&self, vector: VectorIndex, word: u64) -> io::Result<u32> {
        let (bar, offset) = self.entry_word(vector, word)?;
        self.word(bar, offset, |word| word.load())
    }

    fn write(&self, vector: VectorIndex, word: u64, value: u32) -> io::Result<()> {
        let (bar, offset) = self.entry_word(vector, word)?;
        self.word(bar, offset, |word| word.store(value))
    }
}

impl PciFunction for VfioFunction {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn isolation(&self) -> Isolation {
        self.isolation.clone()
    }

    fn mappings(&self) -> io::Result<Vec<BarMapping>> {
        Ok(self.mappings.clone())
    }

    fn set_up_count(&self, wanted: u16) -> u16 {
        let now = u16::try_from(self.set_up.len()).unwrap_or(u16::MAX);
        irqs::set_up_count(self.grows, now, wanted, self.layout.vectors())
    }

    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
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
            }
            _ => {}
        }
        Ok(())
    }

    fn set_up_interrupts(&mut self, first: VectorIndex, events: &[&EventFd]) -> io::Result<()> {
        let mut wanted = self.set_up.clone();
        wanted.truncate(first.as_usize());
        wanted.extend(irqs::descriptors(events));
        if !self.grows && !self.set_up.is_empty() && wanted.len() > self.set_up.len() {
            let available = u16::try_from(self.set_up.len()).unwrap_or(u16::MAX);
            return Err(TooFewInterrupts { available }.into());
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
        }
        done
    }

    fn table_message(&mut self, vector: VectorIndex) -> io::Result<TableMessage> {
        let low = self.read(vector, 0)?;
        let high = self.read(vector, 1)?;
        let data = self.read(vector, 2)?;
        Ok(TableMessage { address: u64::from(high) << 32 | u64::from(low), data })
    }

    fn set_table_message(&mut self, vector: VectorIndex, message: TableMessage) -> io::Result<()> {
        let [a0, a1, a2, a3, a4, a5, a6, a7] = message.address.to_le_bytes();
        self.write(vector, 0, u32::from_le_bytes([a0, a1, a2, a3]))?;
        self.write(vector, 1, u32::from_le_bytes([a4, a5, a6, a7]))?;
        self.write(vector, 2, message.data)
    }

    fn masked(&mut self, vector: VectorIndex) -> io::Result<bool> {
        Ok(self.read(vector, 3)? & 1 != 0)
    }

    fn set_masked(&mut self, vector: VectorIndex, masked: bool) -> io::Result<()> {
        // Only bit 0 is defined; some functions keep something in the others.
        let control = self.read(vector, 3)?;
        self.write(vector, 3, control & !1 | u32::from(masked))?;
        // A read's completion pushes the write, and what the function sent before, ahead of it.
        self.read(vector, 3).map(drop)
    }

    fn pending(&mut self, vector: VectorIndex) -> io::Result<bool> {
        let (bar, start) = self.layout.pending();
        let offset = start.saturating_add(u64::from(vector.0 / 32).saturating_mul(4));
        let bits = self.word(bar, offset, |word| word.load())?;
        Ok(bits & (1_u32 << (vector.0 % 32)) != 0)
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
