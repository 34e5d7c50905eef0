//! C's numbers are the protocol's.

use core::ffi::CStr;
use std::collections::HashSet;

use pvmsi_protocol::{Features, Reasons};

use crate::*;

#[test]
fn reasons_and_features_are_those_of_the_protocol() {
    let reasons = [
        PVMSI_REASON_NOT_ASSIGNED,
        PVMSI_REASON_POLICY,
        PVMSI_REASON_NO_ISOLATION,
        PVMSI_REASON_NOT_MAPPABLE,
        PVMSI_REASON_MSIX_DISABLED,
        PVMSI_REASON_DECODING_OFF,
        PVMSI_REASON_POWER_STATE,
        PVMSI_REASON_HOST_REVOKED,
        PVMSI_REASON_HELD_EVENT,
        PVMSI_REASON_MIGRATED,
        PVMSI_REASON_NO_TABLE,
        PVMSI_REASON_UNREADABLE,
    ];
    assert!(Reasons::all().iter().map(|reason| reason.bits()).eq(reasons));
    let features = [PVMSI_FEATURE_DIRECT, PVMSI_FEATURE_MSI, PVMSI_FEATURE_EXTENDED_DESTINATION_ID];
    assert!(Features::all().iter().map(|feature| feature.bits()).eq(features));
}

#[test]
fn every_status_has_its_number_and_its_text() {
    let text = |status: i32| {
        // SAFETY: the text is constant and ends with a NUL.
        unsafe { CStr::from_ptr(pvmsi_status_text(status)) }.to_str().unwrap()
    };
    let known: HashSet<_> = pvmsi_status::ALL.iter().map(|status| text(*status as i32)).collect();
    assert_eq!(known.len(), pvmsi_status::ALL.len());
    assert!(pvmsi_status::ALL.iter().map(|status| *status as i32).eq((-18..=0).rev()));
    for unknown in [1, -19, i32::MIN, i32::MAX] {
        assert_eq!(text(unknown), "unknown status");
    }
}

#[test]
fn buffer_bytes_fit_a_call_buffer() {
    assert!(pvmsi_call_buffer_bytes(100) <= 4096);
    assert!(pvmsi_call_buffer_bytes(2048) <= 40960);
}
