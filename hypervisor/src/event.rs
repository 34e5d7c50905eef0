//! What an eventfd holds.
//!
//! An event that nobody is attached to keeps its signals: that is where events
//! of masked vectors wait. With the feature `model` a checker can keep them in
//! their stead, and so sees each look.

#[cfg(feature = "model")]
pub(crate) mod keeper;

use std::io;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A new event, for one vector.
pub(crate) fn new() -> io::Result<EventFd> {
    let event = EventFd::new(EFD_NONBLOCK)?;
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
    event.read().is_ok()
}

/// Signals the event.
pub(crate) fn signal(event: &EventFd) {
    #[cfg(feature = "model")]
    if keeper::put(event) {
        return;
    }
    // A counter that is full still wakes whoever waits for it.
    let _ = event.write(1);
}

/// Whether the event holds a signal, which it keeps. Only for events that nobody is attached to.
pub(crate) fn is_signalled(event: &EventFd) -> bool {
    let held = drain(event);
    if held {
        signal(event);
    }
    held
}
