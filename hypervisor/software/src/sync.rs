//! The device's lock: the standard library's, or that of `shuttle`, which tries the orders in which
//! threads can take it (`--cfg pvmsi_shuttle`, see `tests/model`).

#[cfg(pvmsi_shuttle)]
pub(crate) use shuttle::sync::{Mutex, MutexGuard};
#[cfg(not(pvmsi_shuttle))]
pub(crate) use std::sync::{Mutex, MutexGuard};
