//! Who keeps what events hold, where a model checker does (feature `model`).

use std::cell::RefCell;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::eventfd::EventFd;

/// Keeps what events hold, in place of the kernel. Events are named by their file descriptors.
pub trait Events {
    /// A new event, which holds nothing.
    fn created(&self, event: RawFd);
    /// The service takes what the event holds. Others can act just before.
    fn take(&self, event: RawFd) -> bool;
    /// The service signals the event.
    fn put(&self, event: RawFd);
    /// Whether the event holds a signal; the checker asks, not the service.
    fn holds(&self, event: RawFd) -> bool;
}

thread_local! {
    static EVENTS: RefCell<Option<Box<dyn Events>>> = const { RefCell::new(None) };
}

/// Sets who keeps what events hold, for services that this thread calls.
pub fn keep_events(events: Option<Box<dyn Events>>) {
    EVENTS.with(|place| *place.borrow_mut() = events);
}

fn keeper<T>(act: impl FnOnce(&dyn Events) -> T) -> Option<T> {
    EVENTS.with(|events| events.borrow().as_deref().map(act))
}

pub(crate) fn created(event: &EventFd) {
    let _ = keeper(|events| events.created(event.as_raw_fd()));
}

pub(crate) fn take(event: &EventFd) -> Option<bool> {
    keeper(|events| events.take(event.as_raw_fd()))
}

pub(crate) fn put(event: &EventFd) -> bool {
    keeper(|events| events.put(event.as_raw_fd())).is_some()
}

pub(crate) fn holds(event: &EventFd) -> bool {
    keeper(|events| events.holds(event.as_raw_fd())).unwrap_or(false)
}
