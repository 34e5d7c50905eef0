//! `VFIO_DEVICE_SET_IRQS` for MSI-X.
//!
//! vfio-ioctls sets vectors up from 0 only, cannot leave one out, and drops the
//! kernel's error number, so the request is built here.
//! Source: Linux `include/uapi/linux/vfio.h`, `struct vfio_irq_set`.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
    VFIO_PCI_MSIX_IRQ_INDEX, VFIO_TYPE,
};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl_with_ptr;
use vmm_sys_util::ioctl_io_nr;

ioctl_io_nr!(VFIO_DEVICE_SET_IRQS, VFIO_TYPE as u32, VFIO_BASE + 10);

/// How long is waited where the kernel cannot say when its handlers have ended.
const WITHOUT_MEMBARRIER: Duration = Duration::from_millis(20);

/// 32-bit words of `struct vfio_irq_set` before its data: argsz, flags, index, start, count.
const HEADER_WORDS: usize = 5;

/// Goes from the vectors with the descriptors `now` to `wanted`, with one request. Vectors that stay are not touched, so nothing of theirs is lost.
pub(super) fn set_up(device: &impl AsRawFd, now: &[RawFd], wanted: &[RawFd]) -> io::Result<()> {
    if wanted.is_empty() {
        // No data and a count of 0: all vectors are taken down.
        return request(device, VFIO_IRQ_SET_DATA_NONE, 0, &[]);
    }
    let kept = kept(now, wanted);
    // A descriptor of -1 takes a single vector down.
    let end = now.len().max(wanted.len());
    let changed: Vec<_> =
        (kept..end).map(|index| wanted.get(index).copied().unwrap_or(-1)).collect();
    if changed.is_empty() {
        return Ok(());
    }
    request(device, VFIO_IRQ_SET_DATA_EVENTFD, kept, &changed)
}

pub(super) fn descriptors(events: &[&EventFd]) -> Vec<RawFd> {
    events.iter().map(|event| event.as_raw_fd()).collect()
}

/// How many vectors from the first on stay as they are, even when the request fails: the kernel then takes down what it was asked to change (Linux `drivers/vfio/pci/vfio_pci_intrs.c`, `vfio_msi_set_block`).
pub(super) fn kept(now: &[RawFd], wanted: &[RawFd]) -> usize {
    now.iter().zip(wanted).take_while(|(now, wanted)| now == wanted).count()
}

fn request(device: &impl AsRawFd, data: u32, start: usize, fds: &[RawFd]) -> io::Result<()> {
    let words = HEADER_WORDS.saturating_add(fds.len());
    let number = |value: usize| u32::try_from(value).map_err(io::Error::other);
    let mut set = Vec::with_capacity(words);
    set.extend([
        number(words.saturating_mul(size_of::<u32>()))?,
        data | VFIO_IRQ_SET_ACTION_TRIGGER,
        VFIO_PCI_MSIX_IRQ_INDEX,
        number(start)?,
        number(fds.len())?,
    ]);
    set.extend(fds.iter().map(|fd| u32::from_ne_bytes(fd.to_ne_bytes())));
    // SAFETY: `set` is a struct vfio_irq_set whose argsz is the length of the buffer, data
    // included; the kernel only reads it, and the descriptors stay open during the call.
    let result = unsafe { ioctl_with_ptr(device, VFIO_DEVICE_SET_IRQS(), set.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Waits until every interrupt handler of the host that is running now has ended. There is no request for a single interrupt; a grace period of the whole kernel is what user space can ask for (`membarrier(2)`, `MEMBARRIER_CMD_GLOBAL`).
pub(super) fn wait_for_running_handlers() {
    // SAFETY: the call takes no memory.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        // Kernels with nohz_full processors refuse. A handler that signals an eventfd takes
        // microseconds.
        std::thread::sleep(WITHOUT_MEMBARRIER);
    }
}
