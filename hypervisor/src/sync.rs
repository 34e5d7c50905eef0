//! The locks of the service: the standard library's, or those of `shuttle`, which
//! tries the orders in which threads can take them (`--cfg pvmsi_shuttle`, see
//! `tests/model`).

#[cfg(pvmsi_shuttle)]
pub(crate) use shuttle::sync::{Mutex, RwLock};
#[cfg(not(pvmsi_shuttle))]
pub(crate) use std::sync::{Mutex, RwLock};
