//! The host's page size: what slots, windows and layouts are made of. 4, 16 or 64 KiB.

/// The host's page size in bytes.
pub fn host_page_size() -> u64 {
    // SAFETY: sysconf has no preconditions.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}
