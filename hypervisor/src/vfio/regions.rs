//! A function's registers: configuration space and BARs, through the device's file.
//!
//! vfio-ioctls says each access that fails on the log, and guests cause them; so
//! they are made here, and silent.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use vfio_bindings::bindings::vfio::{VFIO_BASE, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_TYPE};
use vfio_ioctls::VfioDevice;
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

use crate::layout::BarIndex;

ioctl_io_nr!(VFIO_DEVICE_RESET, VFIO_TYPE as u32, VFIO_BASE + 11);

/// Where the registers of a function are in its device's file.
pub(super) struct Regions {
    file: File,
    config: Region,
    bars: [Region; BarIndex::COUNT],
}

#[derive(Clone, Copy)]
struct Region {
    start: u64,
    size: u64,
}

impl Region {
    fn of(device: &VfioDevice, index: u32) -> Self {
        Self { start: device.get_region_offset(index), size: device.get_region_size(index) }
    }

    /// Where an access lies in the file; `None` when it leaves the region.
    fn at(&self, offset: u64, length: usize) -> Option<u64> {
        let end = offset.checked_add(u64::try_from(length).ok()?)?;
        (end <= self.size).then(|| self.start.checked_add(offset))?
    }
}

impl Regions {
    pub(super) fn of(device: &VfioDevice) -> io::Result<Self> {
        let bars = [0, 1, 2, 3, 4, 5].map(|index| Region::of(device, index));
        let config = Region::of(device, VFIO_PCI_CONFIG_REGION_INDEX);
        Ok(Self { file: file(device)?, config, bars })
    }

    pub(super) fn config_read(&self, offset: u64, data: &mut [u8]) {
        self.read(self.config, offset, data);
    }

    pub(super) fn config_write(&self, offset: u64, data: &[u8]) {
        self.write(self.config, offset, data);
    }

    pub(super) fn bar_read(&self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        if let Some(region) = self.bars.get(bar.as_usize()) {
            self.read(*region, offset, data);
        }
    }

    /// A word of a BAR, little-endian as all registers; ones where it cannot be read.
    pub(super) fn bar_word(&self, bar: BarIndex, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        self.bar_read(bar, offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub(super) fn bar_write(&self, bar: BarIndex, offset: u64, data: &[u8]) {
        if let Some(region) = self.bars.get(bar.as_usize()) {
            self.write(*region, offset, data);
        }
    }

    /// What cannot be read reads as ones, as on a bus where nobody answers.
    fn read(&self, region: Region, offset: u64, data: &mut [u8]) {
        let at = region.at(offset, data.len());
        if at.is_none_or(|at| self.file.read_exact_at(data, at).is_err()) {
            data.fill(0xff);
        }
    }

    /// What cannot be written is dropped, as on a bus where nobody answers.
    fn write(&self, region: Region, offset: u64, data: &[u8]) {
        if let Some(at) = region.at(offset, data.len()) {
            let _ = self.file.write_all_at(data, at);
        }
    }

    /// Resets the function.
    pub(super) fn reset(&self) -> io::Result<()> {
        // SAFETY: the request takes no memory.
        let result = unsafe { ioctl(&self.file, VFIO_DEVICE_RESET()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// The device's file, once more. It keeps the group busy for as long as it is open.
pub(super) fn file(device: &VfioDevice) -> io::Result<File> {
    // SAFETY: the descriptor is open: it belongs to `device`, which outlives this borrow.
    let descriptor = unsafe { BorrowedFd::borrow_raw(device.as_raw_fd()) };
    descriptor.try_clone_to_owned().map(File::from)
}
