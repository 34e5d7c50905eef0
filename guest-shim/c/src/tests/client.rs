use core::ptr::null_mut;

use pvmsi_protocol::{CallError, CallId, GuestMessage, Parameter, VectorSetup};

use super::host::{Host, blank};
use crate::*;

#[test]
fn every_call_reaches_the_host_and_its_answer_c() {
    let host = Host::new();
    let mut client = host.client();
    let mut agreement: pvmsi_agreement = blank();
    let mut function: pvmsi_function_state = blank();
    let mut vectors: [pvmsi_vector_state; 5] = blank();
    let mut table: pvmsi_table_state = blank();
    let mut generation = 0;
    let updates = [
        pvmsi_vector_update { address: 0xfee0_0000, data: 0x41, vector: 1 },
        pvmsi_vector_update { address: 0xfee0_1000, data: 0x42, vector: 4 },
    ];
    // SAFETY: all pointers are valid.
    let statuses = unsafe {
        [
            pvmsi_negotiate(&mut client, &mut agreement),
            pvmsi_query_function(&mut client, 8, &mut function),
            pvmsi_query_vectors(&mut client, 8, 2, 5, vectors.as_mut_ptr(), &mut generation),
            pvmsi_update(&mut client, 8, updates.as_ptr(), 2, null_mut()),
            pvmsi_restore(&mut client, 8, &mut table),
            pvmsi_release(&mut client, 8, null_mut()),
        ]
    };
    assert_eq!(statuses, [pvmsi_status::Success; 6]);
    assert_eq!(
        *host.calls.borrow(),
        [
            CallId::Negotiate,
            CallId::QueryFunction,
            CallId::QueryVectors,
            CallId::Update,
            CallId::Restore,
            CallId::Release,
        ]
    );
    assert_eq!((agreement.version_major, agreement.version_minor), (1, 0));
    assert_eq!((agreement.features, agreement.vectors), (PVMSI_FEATURE_DIRECT, 2048));
    assert_eq!((function.msix_vectors, function.assigned), (64, 3));
    assert_eq!(function.reasons, PVMSI_REASON_HOST_REVOKED);
    assert_eq!(function.delivery, pvmsi_delivery::Host);
    assert_eq!(vectors.map(|vector| vector.masked), [false, true, false, true, false]);
    assert!(vectors.iter().all(|vector| vector.assigned && vector.guest_message.address == 0));
    assert_eq!(generation, 5);
    assert_eq!((table.mode, table.generation), (pvmsi_table_mode::Trapped, 5));
    let seen: Vec<_> = host.updates.borrow().iter().map(|u| (u.vector.0, u.message.data)).collect();
    assert_eq!(seen, [(1, 0x41), (4, 0x42)]);
}

#[test]
fn the_host_s_error_and_its_details_reach_c() {
    let host = Host::new();
    let mut client = host.client();
    let mut detail: pvmsi_detail = blank();
    host.failure.set(Some(CallError::vector(Parameter::DuplicateVector, 7)));
    let update = pvmsi_vector_update { address: 0xfee0_0000, data: 0x41, vector: 7 };
    // SAFETY: all pointers are valid.
    unsafe {
        assert_eq!(pvmsi_update(&mut client, 8, &update, 1, null_mut()), pvmsi_status::Parameter);
        assert_eq!(pvmsi_client_detail(&mut client, &mut detail), pvmsi_status::Success);
        assert_eq!((detail.parameter, detail.vector), (pvmsi_parameter::DuplicateVector, 7));

        host.failure.set(Some(CallError::Denied));
        assert_eq!(pvmsi_query_function(&mut client, 8, null_mut()), pvmsi_status::Denied);
        pvmsi_client_detail(&mut client, &mut detail);
        assert_eq!((detail.parameter, detail.vector), (pvmsi_parameter::None, PVMSI_NO_VECTOR));
    }
}

#[test]
fn a_client_that_is_in_use_says_so() {
    let host = Host::new();
    let mut client = host.client();
    let pointer: *mut pvmsi_client = &mut client;
    host.intrusion.set(pointer);
    // SAFETY: the pointer is valid.
    let status = unsafe { pvmsi_negotiate(pointer, null_mut()) };
    assert_eq!(status, pvmsi_status::Success);
    assert_eq!(host.intruded.get(), Some(pvmsi_status::ClientInUse));
    // SAFETY: as above.
    assert_eq!(unsafe { pvmsi_negotiate(pointer, null_mut()) }, pvmsi_status::Success);
}

const SETUPS: [pvmsi_vector_setup; 2] = [
    pvmsi_vector_setup { address: 0xfee0_0000, data: 0x41, masked: false },
    pvmsi_vector_setup { address: 0, data: 7, masked: true },
];

#[test]
fn configure_hands_over_what_is_asked_for_and_what_is_granted() {
    let host = Host::new();
    host.left.set(3);
    host.pending.set(Some(2));
    let mut client = host.client();
    let untouched =
        pvmsi_vector_answer { table_message: pvmsi_message { address: 1, data: 2 }, pending: true };
    let mut answers = [untouched; 5];
    let mut grant: pvmsi_grant = blank();
    // SAFETY: all pointers are valid.
    let status = unsafe {
        pvmsi_configure(&mut client, 8, 5, SETUPS.as_ptr(), 2, answers.as_mut_ptr(), &mut grant)
    };
    assert_eq!(status, pvmsi_status::Success);
    assert_eq!(*host.calls.borrow(), [CallId::Configure]);
    let message = Some(GuestMessage { address: 0xfee0_0000, data: 0x41 });
    let asked =
        [VectorSetup { message, masked: false }, VectorSetup { message: None, masked: true }];
    assert_eq!(*host.setups.borrow(), (5, asked.to_vec()));
    let expected =
        pvmsi_grant { granted: 3, mode: pvmsi_table_mode::Direct, reasons: 0, generation: 5 };
    assert_eq!(grant, expected);
    let seen = answers.map(|it| (it.table_message.address, it.table_message.data, it.pending));
    let table = 0x1_fee0_0000;
    let expected = [(0, 0, false), (table, 1, false), (table, 2, true), (1, 2, true), (1, 2, true)];
    assert_eq!(seen, expected, "those of vectors that were not granted are left alone");
}

#[test]
fn a_configure_that_makes_no_sense_reaches_nobody() {
    let host = Host::new();
    let mut client = host.client();
    let mut answers: [pvmsi_vector_answer; 2] = blank();
    let mut grant: pvmsi_grant = blank();
    let mut configure = |vectors, count| {
        let (setups, answers) = (SETUPS.as_ptr(), answers.as_mut_ptr());
        // SAFETY: all pointers are valid.
        unsafe { pvmsi_configure(&mut client, 8, vectors, setups, count, answers, &mut grant) }
    };
    assert_eq!(configure(0, 0), pvmsi_status::Count);
    assert_eq!(configure(1, 2), pvmsi_status::Count);
    assert!(host.calls.borrow().is_empty());
    host.failure.set(Some(CallError::NoResources));
    assert_eq!(configure(2, 0), pvmsi_status::NoResources);
    assert_eq!(configure(2, 0), pvmsi_status::Success, "setups are not needed");
    assert!(host.setups.borrow().1.is_empty());
}
