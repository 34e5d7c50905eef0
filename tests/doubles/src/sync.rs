//! The doubles' locks: the standard library's, or those of `shuttle`, for which each use of a double
//! is then a place where other threads can run (`--cfg pvmsi_shuttle`, see `tests/model`).

#[cfg(pvmsi_shuttle)]
pub(crate) use shuttle::sync::{Mutex, MutexGuard};
#[cfg(not(pvmsi_shuttle))]
pub(crate) use std::sync::{Mutex, MutexGuard};
