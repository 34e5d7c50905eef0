//! What an eventfd holds.
//!
//! An event that nobody is attached to keeps its signals: that is where events
//! of masked vectors wait. With the feature `model` a checker can keep them in
//! their stead, and so sees each look.

#[cfg(feature = "model")]
pub(crate) mod keeper;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd};

use rustix::event::{EventfdFlags, eventfd};
use vmm_sys_util::eventfd::EventFd;

/// A new event, for one vector. A program that the VMM starts does not get it.
pub(crate) fn new() -> io::Result<EventFd> {
    let descriptor = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
    // SAFETY: the descriptor is a new eventfd's, and nobody else's.
    let event = unsafe { EventFd::from_raw_fd(descriptor.into_raw_fd()) };
    #[cfg(feature = "model")]
    keeper::created(&event);
    Ok(event)
}

/// Takes what the event holds; whether it held anything.
pub(crate) fn drain(event: &EventFd) -> bool {
    #[cfg(feature = "model")]
    if let Some(held) = keeper::take(event) {
        return held;
    }
    // By the system call alone: most often there is nothing, and that is no error to be made.
    rustix::io::read(descriptor(event), &mut [0; 8]).is_ok()
}

/// Signals the event.
pub(crate) fn signal(event: &EventFd) {
    #[cfg(feature = "model")]
    if keeper::put(event) {
        return;
    }
    // A counter that is full still wakes whoever waits for it.
    let _ = rustix::io::write(descriptor(event), &1_u64.to_ne_bytes());
}

fn descriptor(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as `event` is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Whether the event holds a signal, which it keeps. Only for events that nobody is attached to.
pub(crate) fn is_signalled(event: &EventFd) -> bool {
    let held = drain(event);
    if held {
        signal(event);
    }
    held
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_started_does_not_get_it() {
        let event = new().unwrap();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", event.as_raw_fd()));
        let info = info.unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
        assert_eq!(flags & libc::O_CLOEXEC, libc::O_CLOEXEC, "{info}");
    }
}
