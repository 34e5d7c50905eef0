//! `VFIO_DEVICE_SET_IRQS` for MSI-X.
//!
//! vfio-ioctls sets vectors up from 0 only, cannot leave one out, and drops the
//! kernel's error number, so the request is built here.
//!
//! The function's own MSI-X Enable is set with the first request that names a vector, even
//! without an event for it (descriptor -1), and stays set while vectors come and go, until all
//! are taken down at once. So a function is enabled with one request that names vector 0 and
//! no event: the kernel then has one interrupt allocated, not requested, so no vector of a processor
//! is used on x86. Where vectors cannot be added later (`NORESIZE`: Linux before 6.5, and on
//! arm64 before 7.x), the request names all of them. Setting vector 0 up and taking
//! it down again does the same with one request more; enabling with one vector there,
//! and disabling to add others, clears Enable under a function that has been started. QEMU names
//! vector 0 alone everywhere, and disables and enables to add others; Cloud Hypervisor sets
//! all vectors up.
//!
//! Source: Linux `include/uapi/linux/vfio.h`, `struct vfio_irq_set`, and
//! `drivers/vfio/pci/vfio_pci_intrs.c`.

use std::ffi::c_int;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::time::Duration;

use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
    VFIO_PCI_MSIX_IRQ_INDEX, VFIO_TYPE,
};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl_with_ptr;
use vmm_sys_util::ioctl_io_nr;

use crate::function::SetUpError;

ioctl_io_nr!(VFIO_DEVICE_SET_IRQS, VFIO_TYPE as u32, VFIO_BASE + 10);

/// How long is waited where the kernel cannot say when its handlers have ended. They signal an eventfd: microseconds.
const WITHOUT_ANSWER: Duration = Duration::from_millis(20);

/// 32-bit words of `struct vfio_irq_set` before its data: argsz, flags, index, start, count.
const HEADER_WORDS: usize = 5;

/// In place of a descriptor: the vector has no event. The kernel's own value.
pub(super) const NONE: RawFd = -1;
/// The same, where a request has failed and the vector may have one or not. Never asked for.
pub(super) const UNKNOWN: RawFd = -2;

/// Sets MSI-X Enable, with no event for any vector, and allocates `count` vectors or, where the host has fewer, those; how many there are.
pub(super) fn enable(device: &impl AsRawFd, mut count: usize) -> Result<usize, SetUpError> {
    loop {
        let Err(error) = set_up(device, 0, &vec![NONE; count]) else { return Ok(count) };
        // Ends: each time it is fewer.
        match error.available() {
            Some(fewer) if (1..count).contains(&fewer) => count = fewer,
            _ => return Err(error),
        }
    }
}

/// Clears MSI-X Enable, with all vectors.
pub(super) fn disable(device: &impl AsRawFd) -> Result<(), SetUpError> {
    request(device, VFIO_IRQ_SET_DATA_NONE, 0, &[])
}

/// Gives vectors from `start` on these events, with one request.
pub(super) fn set_up(device: &impl AsRawFd, start: usize, fds: &[RawFd]) -> Result<(), SetUpError> {
    request(device, VFIO_IRQ_SET_DATA_EVENTFD, start, fds)
}

/// What leads from vectors with the descriptors `now` to `wanted`, and to no event for others: the first vector to change, and the descriptors from there on. Vectors before and after are not touched, so nothing of theirs is lost. `None` where nothing changes.
pub(super) fn change(now: &[RawFd], wanted: &[RawFd]) -> Option<(usize, Vec<RawFd>)> {
    let at = |fds: &[RawFd], index: usize| fds.get(index).copied().unwrap_or(NONE);
    let changes = |&index: &usize| at(now, index) != at(wanted, index);
    let all = 0..now.len().max(wanted.len());
    let (first, last) = (all.clone().find(changes)?, all.rev().find(changes)?);
    Some((first, (first..=last).map(|index| at(wanted, index)).collect()))
}

pub(super) fn descriptors(events: &[&EventFd]) -> Vec<RawFd> {
    events.iter().map(|event| event.as_raw_fd()).collect()
}

/// How many vectors to set up where `wanted` are: all of them where none can be added later to those that are allocated `now`. With these the host may have had fewer already.
pub(super) fn set_up_count(grows: bool, now: u16, wanted: u16, all: u16) -> u16 {
    if grows || now >= wanted { wanted } else { all }
}

fn request(
    device: &impl AsRawFd,
    data: u32,
    start: usize,
    fds: &[RawFd],
) -> Result<(), SetUpError> {
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
    outcome(result, start, fds, io::Error::last_os_error().raw_os_error())
}

/// What the kernel's answer to a request means that changes vectors from `start` on.
fn outcome(
    result: c_int,
    start: usize,
    fds: &[RawFd],
    errno: Option<i32>,
) -> Result<(), SetUpError> {
    match (result, errno) {
        (0, _) => Ok(()),
        // Nothing is set up, and this many could be: `vfio_msi_enable`, in the file named above.
        (1.., _) => Err(too_few(usize::try_from(result).unwrap_or(0), false)),
        // Not for all, and it does not say for how many: on x86 a processor's vector is taken only
        // when the interrupt is requested (Linux `arch/x86/kernel/apic/vector.c`). Half of them is
        // what to try next.
        (_, Some(libc::ENOSPC)) => {
            let set_up = fds.iter().filter(|&&fd| fd >= 0).count();
            Err(too_few(start.saturating_add(set_up / 2), true))
        }
        (_, errno) => Err(io::Error::from_raw_os_error(errno.unwrap_or(libc::EIO)).into()),
    }
}

fn too_few(available: usize, guess: bool) -> SetUpError {
    SetUpError::TooFew { available: u16::try_from(available).unwrap_or(u16::MAX), guess }
}

/// Waits until every interrupt handler of the host that is running now has ended. There is no request for a single interrupt; a grace period of the whole kernel is what user space can ask for (`membarrier(2)`, `MEMBARRIER_CMD_GLOBAL`).
///
/// That covers handlers that run in interrupt context. Where they are threads, or the kernel has nohz_full processors and refuses, time is all there is.
pub(super) fn wait_for_running_handlers(threaded: bool) {
    // SAFETY: the call takes no memory.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 || threaded {
        std::thread::sleep(WITHOUT_ANSWER);
    }
}

/// Whether the kernel runs interrupt handlers in threads: with PREEMPT_RT, or because it was told so (`threadirqs`). `root` is the root folder.
pub(super) fn handlers_are_threaded(root: &Path) -> bool {
    let read = |path| fs::read_to_string(root.join(path)).unwrap_or_default();
    // Since Linux 6.12 the version says so, with patches for earlier ones a file of its own.
    read("proc/sys/kernel/version").split_whitespace().any(|word| word == "PREEMPT_RT")
        || read("sys/kernel/realtime").trim() == "1"
        || read("proc/cmdline").split_whitespace().any(|word| word == "threadirqs")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(name: &str, files: [(&str, &str); 2]) -> bool {
        let root = std::env::temp_dir().join(format!("pvmsi-irqs-{name}-{}", std::process::id()));
        for (path, content) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let threaded = handlers_are_threaded(&root);
        fs::remove_dir_all(root).unwrap();
        threaded
    }

    #[test]
    fn handlers_are_threads_where_the_kernel_says_so() {
        let realtime = "sys/kernel/realtime";
        let told = "proc/cmdline";
        assert!(!root("usual", [(told, "ro quiet\n"), ("unused", "")]));
        assert!(root("realtime", [(told, "ro quiet\n"), (realtime, "1\n")]));
        let version = "proc/sys/kernel/version";
        assert!(root("version", [(told, ""), (version, "#1 SMP PREEMPT_RT Thu Jan 1\n")]));
        assert!(!root("preempt", [(told, ""), (version, "#1 SMP PREEMPT_DYNAMIC Thu Jan 1\n")]));
        assert!(root("told", [(told, "ro threadirqs\n"), (realtime, "0\n")]));
        assert!(!handlers_are_threaded(Path::new("/absent")));
    }

    #[test]
    fn only_what_changes_is_asked_for() {
        assert_eq!(change(&[], &[]), None);
        assert_eq!(change(&[], &[5, 6]), Some((0, vec![5, 6])));
        assert_eq!(change(&[NONE], &[]), None, "enabled, and no vector is wanted");
        assert_eq!(change(&[NONE; 4], &[5, 6]), Some((0, vec![5, 6])), "four are allocated");
        assert_eq!(change(&[5, 6, NONE], &[5, 6]), None);
        assert_eq!(change(&[5, 6], &[5, 6, 7]), Some((2, vec![7])));
        assert_eq!(change(&[5, 6, 7], &[5]), Some((1, vec![NONE; 2])));
        assert_eq!(change(&[5, 6], &[]), Some((0, vec![NONE; 2])), "Enable stays");
        assert_eq!(change(&[5, UNKNOWN, 7], &[5]), Some((1, vec![NONE; 2])));
        assert_eq!(change(&[5, UNKNOWN], &[5]), Some((1, vec![NONE])), "it may be there");
    }

    #[test]
    fn where_vectors_cannot_be_added_all_are_set_up_at_once() {
        assert_eq!(set_up_count(true, 2, 3, 8), 3);
        assert_eq!(set_up_count(false, 0, 3, 8), 8);
        assert_eq!(set_up_count(false, 8, 3, 8), 3, "eight are allocated, and five can come");
        assert_eq!(set_up_count(false, 5, 3, 8), 3, "the host had five");
        assert_eq!(set_up_count(false, 5, 6, 8), 8, "which fails");
    }

    #[test]
    fn the_kernel_is_asked() {
        // Any request fails: this is no VFIO device.
        let device = fs::File::open("/dev/null").unwrap();
        enable(&device, 4).unwrap_err();
        disable(&device).unwrap_err();
        set_up(&device, 1, &[6]).unwrap_err();
    }

    #[test]
    fn fewer_interrupts_than_asked_for_are_an_error() {
        let few = |error: SetUpError| error.available();
        outcome(0, 2, &[7; 6], None).unwrap();
        assert_eq!(few(outcome(3, 0, &[7; 8], None).unwrap_err()), Some(3));
        let no_space = Some(libc::ENOSPC);
        assert_eq!(few(outcome(-1, 2, &[7; 6], no_space).unwrap_err()), Some(5));
        assert_eq!(few(outcome(-1, 2, &[7], no_space).unwrap_err()), Some(2));
        assert_eq!(few(outcome(-1, 0, &[7], no_space).unwrap_err()), Some(0));
        assert_eq!(few(outcome(-1, 0, &[7, 7, -1, -1], no_space).unwrap_err()), Some(1));
        assert_eq!(few(outcome(-1, 2, &[7; 6], Some(libc::EINVAL)).unwrap_err()), None);
    }
}
