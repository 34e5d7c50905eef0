//! The guest half of PV-MSI for kernels that are written in C: `pvmsi-guest` behind an ABI.
//!
//! `include/pvmsi_guest.h` is generated from this crate, documentation included; `README.md` says
//! how a kernel links it. Nothing here decides anything: functions check what C can get wrong
//! (null pointers, storage that was not initialised, a client used twice at the same time),
//! convert, and call.
//!
//! # What every function relies on
//! C cannot be made to keep these, so they are stated once, here and in the header:
//!
//! 1. A pointer is null, or it is valid for reads and writes (`const`: for reads) of what it
//!    points to, for as long as the call takes.
//! 2. Storage that was handed to an `init` function is changed by functions of this crate only,
//!    until the kernel initialises it again or never uses it any more.
//! 3. Callbacks may be called as long as the object exists that they were given to, return
//!    normally, and need no more stack than a kernel function.
#![cfg_attr(target_os = "none", no_std)]
#![allow(non_camel_case_types, reason = "the names are C's")]

mod answer;
mod arch;
mod client;
mod doorbell;
mod function;
mod msix;
mod offer;
#[cfg(target_os = "none")]
mod panic;
mod pointer;
mod status;
#[cfg(test)]
mod tests;

pub use answer::*;
pub use arch::pvmsi_discover;
pub use client::{
    pvmsi_call_buffer, pvmsi_call_buffer_bytes, pvmsi_client, pvmsi_client_detail,
    pvmsi_client_init, pvmsi_configure, pvmsi_delay, pvmsi_function_id, pvmsi_negotiate,
    pvmsi_query_function, pvmsi_query_vectors, pvmsi_release, pvmsi_restore, pvmsi_update,
    pvmsi_vector_setup, pvmsi_vector_update,
};
pub use doorbell::{
    PVMSI_CONDUIT_HVC, PVMSI_CONDUIT_SMC, PVMSI_DOORBELL_CALLBACK, PVMSI_DOORBELL_MMIO,
    PVMSI_DOORBELL_NONE, PVMSI_DOORBELL_PORT, PVMSI_DOORBELL_SMCCC, pvmsi_doorbell,
};
pub use function::{pvmsi_function, pvmsi_msix_capability, pvmsi_msix_find};
pub use msix::{
    pvmsi_msix, pvmsi_msix_after_reset, pvmsi_msix_disable, pvmsi_msix_enable,
    pvmsi_msix_enable_with, pvmsi_msix_get_state, pvmsi_msix_init, pvmsi_msix_is_pending,
    pvmsi_msix_mask, pvmsi_msix_refresh, pvmsi_msix_set, pvmsi_msix_set_many, pvmsi_msix_state,
    pvmsi_msix_unmask, pvmsi_world,
};
pub use offer::{
    PVMSI_FEATURE_DIRECT, PVMSI_FEATURE_EXTENDED_DESTINATION_ID, PVMSI_FEATURE_MSI, pvmsi_offer,
};
pub use status::{PVMSI_NO_VECTOR, pvmsi_detail, pvmsi_parameter, pvmsi_status, pvmsi_status_text};
