//! What the kernel refuses on demand: one kind of request of KVM, a mapping of memory, or file descriptors.
//!
//! kvm-ioctls and vm-memory make their requests through the C library's `ioctl`
//! and `mmap`. This binary has these two of its own, which refuse what they are
//! told to and pass on the rest, so everything above the system call is the
//! product's.

use std::ffi::{c_int, c_long, c_ulong, c_void};
use std::sync::Mutex;

/// `KVM_SET_GSI_ROUTING`.
pub const ROUTING: u64 = 0x4008_ae6a;
/// `KVM_IRQFD`, attach and detach.
pub const IRQFD: u64 = 0x4020_ae76;
/// `KVM_SET_USER_MEMORY_REGION`.
pub const MEMORY_REGION: u64 = 0x4020_ae46;

/// `mmap`: not a request, but a system call of its own.
pub const MAPPING: u64 = u64::MAX;

struct Plan {
    request: u64,
    /// Uses until the first that is refused.
    until: usize,
    /// How many are refused from there on.
    times: usize,
    refused: usize,
}

/// vCPU threads make the requests, so this is the process's.
static PLAN: Mutex<Option<Plan>> = Mutex::new(None);

/// Refuses `times` uses of a request, the n-th from now first.
pub fn refuse(request: u64, nth: usize, times: usize) {
    *PLAN.lock().unwrap() = Some(Plan { request, until: nth, times, refused: 0 });
}

/// Ends that; how many were refused.
pub fn end() -> usize {
    PLAN.lock().unwrap().take().map_or(0, |plan| plan.refused)
}

fn refuses(request: u64) -> bool {
    let mut plan = PLAN.lock().unwrap();
    let Some(plan) = plan.as_mut().filter(|plan| plan.request == request) else { return false };
    plan.until = plan.until.saturating_sub(1);
    let refuses = plan.until == 0 && plan.refused < plan.times;
    plan.refused += usize::from(refuses);
    refuses
}

/// Takes the place of the C library's.
///
/// # Safety
/// As that: `argument` is what the request takes.
// SAFETY: it has the meaning and the calling convention of the function that it replaces.
#[unsafe(no_mangle)]
unsafe extern "C" fn ioctl(file: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    if refuses(request) {
        // SAFETY: the thread's own errno.
        unsafe { *libc::__errno_location() = libc::EINVAL };
        return -1;
    }
    // SAFETY: the system call is what the C library makes of it, with the caller's arguments.
    let result: c_long = unsafe { libc::syscall(libc::SYS_ioctl, file, request, argument) };
    c_int::try_from(result).unwrap_or(-1)
}

/// Takes the place of the C library's.
///
/// # Safety
/// As that.
// SAFETY: it has the meaning and the calling convention of the function that it replaces.
#[unsafe(no_mangle)]
unsafe extern "C" fn mmap(
    address: *mut c_void,
    length: usize,
    protection: c_int,
    flags: c_int,
    file: c_int,
    offset: libc::off_t,
) -> *mut c_void {
    if refuses(MAPPING) {
        // SAFETY: the thread's own errno.
        unsafe { *libc::__errno_location() = libc::ENOMEM };
        return libc::MAP_FAILED;
    }
    let number = libc::SYS_mmap;
    // SAFETY: the system call is what the C library makes of it, with the caller's arguments.
    let result: c_long =
        unsafe { libc::syscall(number, address, length, protection, flags, file, offset) };
    std::ptr::with_exposed_provenance_mut(usize::try_from(result).unwrap_or(usize::MAX))
}

/// Leaves this process only so many file descriptors, until it is dropped.
pub struct DescriptorLimit(libc::rlimit);

impl DescriptorLimit {
    pub fn leave(count: u64) -> Self {
        let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the limit is written to `before`.
        assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut before) }, 0);
        // The lowest free number is what counts.
        let is_open = |number: u64| std::fs::exists(format!("/proc/self/fd/{number}")).unwrap();
        let mut limit = 0;
        let mut free = 0;
        while free < count || is_open(limit) {
            free += u64::from(!is_open(limit));
            limit += 1;
        }
        set(&libc::rlimit { rlim_cur: limit, ..before });
        Self(before)
    }
}

impl Drop for DescriptorLimit {
    fn drop(&mut self) {
        set(&self.0);
    }
}

fn set(limit: &libc::rlimit) {
    // SAFETY: the limit is only read.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, limit) }, 0);
}
