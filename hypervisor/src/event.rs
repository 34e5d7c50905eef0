//! What an eventfd holds.
//!
//! An event that nobody is attached to keeps its signals: that is where events
//! of masked vectors wait.

use std::io;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A new event, for one vector.
pub(crate) fn new() -> io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK)
}

/// Takes what the event holds; whether it held anything.
pub(crate) fn drain(event: &EventFd) -> bool {
    event.read().is_ok()
}

/// Signals the event.
pub(crate) fn signal(event: &EventFd) {
    // A counter that is full still wakes whoever waits for it.
    let _ = event.write(1);
}

/// Whether the event holds a signal, which it keeps. Only for events that nobody is attached to.
pub(crate) fn is_signalled(event: &EventFd) -> bool {
    drain(event) && event.write(1).is_ok()
}
