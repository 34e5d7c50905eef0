//! The locks of the service: the standard library's, or those of `shuttle`, which
//! tries the orders in which threads can take them (`--cfg pvmsi_shuttle`, see
//! `tests/model`).

#[cfg(pvmsi_shuttle)]
pub(crate) use shuttle::sync::{Mutex, MutexGuard, RwLock};
#[cfg(not(pvmsi_shuttle))]
pub(crate) use std::sync::{Mutex, MutexGuard, RwLock};

#[cfg(pvmsi_shuttle)]
shuttle::thread_local! {
    static HERE: u8 = 0;
}
#[cfg(not(pvmsi_shuttle))]
std::thread_local! {
    static HERE: u8 = const { 0 };
}

/// A number that no other thread has that runs now, and not 0.
pub(crate) fn this_thread() -> usize {
    HERE.with(|here| std::ptr::from_ref(here).addr())
}
