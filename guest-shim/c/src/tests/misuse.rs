//! What C can get wrong is an error, and nobody is called.

use core::ptr::{null, null_mut};

use super::host::{Host, blank};
use super::kernel::Kernel;
use crate::*;

#[test]
fn a_null_pointer_is_an_error() {
    let host = Host::new();
    let kernel = Kernel::new();
    let (mut client, mut msix) = (host.client(), kernel.msix());
    let (client, msix): (*mut _, *mut _) = (&mut client, &mut msix);
    let doorbell = &host.doorbell();
    let buffer = &host.buffer(4096);
    let delay = &host.delay();
    let function = &kernel.function();
    let capability = &kernel.capability();
    let table = kernel.table();
    let mut word = 0;
    let mut pending = false;
    let mut state: pvmsi_msix_state = blank();
    // SAFETY: what is not null is valid.
    let statuses = unsafe {
        vec![
            pvmsi_function_id(0, 0, 0, 0, null_mut()),
            pvmsi_client_init(null_mut(), doorbell, buffer, delay),
            pvmsi_client_init(client, null(), buffer, delay),
            pvmsi_client_init(client, doorbell, null(), delay),
            pvmsi_client_init(client, doorbell, buffer, null()),
            pvmsi_client_detail(client, null_mut()),
            pvmsi_client_detail(null_mut(), &mut blank()),
            pvmsi_negotiate(null_mut(), null_mut()),
            pvmsi_query_function(null_mut(), 8, null_mut()),
            pvmsi_query_vectors(client, 8, 0, 1, null_mut(), null_mut()),
            pvmsi_query_vectors(null_mut(), 8, 0, 1, &mut blank(), null_mut()),
            pvmsi_configure(null_mut(), 8, 1, null(), 0, &mut blank(), &mut blank()),
            pvmsi_configure(client, 8, 1, null(), 1, &mut blank(), &mut blank()),
            pvmsi_configure(client, 8, 1, null(), 0, null_mut(), &mut blank()),
            pvmsi_configure(client, 8, 1, null(), 0, &mut blank(), null_mut()),
            pvmsi_update(client, 8, null(), 1, null_mut()),
            pvmsi_update(null_mut(), 8, &blank(), 1, null_mut()),
            pvmsi_release(null_mut(), 8, null_mut()),
            pvmsi_restore(null_mut(), 8, null_mut()),
            pvmsi_msix_find(null(), &mut blank()),
            pvmsi_msix_find(function, null_mut()),
            pvmsi_msix_init(null_mut(), function, capability, table, null_mut()),
            pvmsi_msix_init(msix, null(), capability, table, null_mut()),
            pvmsi_msix_init(msix, function, null(), table, null_mut()),
            pvmsi_msix_init(msix, function, capability, null_mut(), null_mut()),
            pvmsi_msix_enable(msix, client, 1, null_mut()),
            pvmsi_msix_enable(null_mut(), client, 1, &mut word),
            pvmsi_msix_enable_with(msix, client, null(), 1, &mut word),
            pvmsi_msix_enable_with(msix, client, &blank(), 1, null_mut()),
            pvmsi_msix_set(null_mut(), client, 0, 1, 1),
            pvmsi_msix_set_many(msix, client, null(), 1),
            pvmsi_msix_mask(null_mut(), 0),
            pvmsi_msix_unmask(null_mut(), 0),
            pvmsi_msix_disable(null_mut()),
            pvmsi_msix_after_reset(msix, client, null(), 1),
            pvmsi_msix_after_reset(null_mut(), client, null(), 0),
            pvmsi_msix_refresh(null_mut(), client),
            pvmsi_msix_get_state(msix, null_mut()),
            pvmsi_msix_get_state(null(), &mut state),
            pvmsi_msix_is_pending(msix, 0, null_mut()),
            pvmsi_msix_is_pending(null(), 0, &mut pending),
        ]
    };
    for (index, status) in statuses.into_iter().enumerate() {
        assert_eq!(status, pvmsi_status::Pointer, "call {index}");
    }
    assert!(host.calls.borrow().is_empty());
}

#[test]
fn a_missing_callback_is_an_error() {
    let host = Host::new();
    let kernel = Kernel::new();
    let mut client: pvmsi_client = blank();
    let mut found: pvmsi_msix_capability = blank();
    let doorbell = host.doorbell();
    let no_ring = pvmsi_doorbell { ring: None, ..doorbell };
    let no_wait = pvmsi_delay { wait_us: None, ..host.delay() };
    let (buffer, delay) = (host.buffer(4096), host.delay());
    let no_start = pvmsi_call_buffer { start: null_mut(), ..buffer };
    // SAFETY: all pointers are valid.
    let init = |doorbell, buffer, delay| unsafe {
        pvmsi_client_init(&mut client, &doorbell, &buffer, &delay)
    };
    let mut init = init;
    assert_eq!(init(no_ring, buffer, delay), pvmsi_status::Pointer);
    assert_eq!(init(doorbell, buffer, no_wait), pvmsi_status::Pointer);
    assert_eq!(init(doorbell, no_start, delay), pvmsi_status::Pointer);
    let function = kernel.function();
    for function in [
        pvmsi_function { read_config_u16: None, ..function },
        pvmsi_function { read_config_u32: None, ..function },
        pvmsi_function { write_config_u16: None, ..function },
        pvmsi_function { deliver: None, ..function },
    ] {
        // SAFETY: the pointers are valid.
        assert_eq!(unsafe { pvmsi_msix_find(&function, &mut found) }, pvmsi_status::Pointer);
    }
}

#[test]
fn a_misaligned_pointer_is_an_error() {
    let host = Host::new();
    let kernel = Kernel::new();
    let mut msix: pvmsi_msix = blank();
    let mut storage = [0u64; 100];
    let client: *mut pvmsi_client = storage.as_mut_ptr().cast::<u8>().wrapping_add(4).cast();
    let table = kernel.table().cast::<u8>().wrapping_add(2).cast();
    let register = pvmsi_doorbell {
        kind: PVMSI_DOORBELL_MMIO,
        pointer: storage.as_mut_ptr().cast::<u8>().wrapping_add(1).cast(),
        ..host.doorbell()
    };
    let (function, capability) = (kernel.function(), kernel.capability());
    let (buffer, delay) = (host.buffer(4096), host.delay());
    // SAFETY: nothing is accessed through a misaligned pointer, which is what this tests.
    let statuses = unsafe {
        [
            pvmsi_negotiate(client, null_mut()),
            pvmsi_client_init(client, &host.doorbell(), &buffer, &delay),
            pvmsi_client_init(storage.as_mut_ptr().cast(), &register, &buffer, &delay),
            pvmsi_msix_init(&mut msix, &function, &capability, table, null_mut()),
            pvmsi_msix_init(&mut msix, &function, &capability, kernel.table(), table),
        ]
    };
    assert_eq!(statuses, [pvmsi_status::Pointer; 5]);
}

#[test]
fn storage_that_was_not_initialised_is_an_error() {
    let host = Host::new();
    let kernel = Kernel::new();
    let mut nothing: pvmsi_client = blank();
    let mut no_msix: pvmsi_msix = blank();
    let mut msix = kernel.msix();
    let mut granted = 0;
    // SAFETY: all pointers are valid.
    let statuses = unsafe {
        [
            pvmsi_negotiate(&mut nothing, null_mut()),
            pvmsi_msix_enable(&mut msix, &mut nothing, 1, &mut granted),
            pvmsi_msix_enable(&mut no_msix, &mut host.client(), 1, &mut granted),
            pvmsi_msix_mask(&mut no_msix, 0),
            pvmsi_msix_disable(&mut no_msix),
            pvmsi_msix_get_state(&no_msix, &mut blank()),
        ]
    };
    assert_eq!(statuses, [pvmsi_status::NotInitialised; 6]);
    assert_eq!(kernel.control(), 0);
}

#[test]
fn numbers_out_of_range_are_errors() {
    let host = Host::new();
    let kernel = Kernel::new();
    let mut client: pvmsi_client = blank();
    let mut msix: pvmsi_msix = blank();
    let mut id = 0;
    // SAFETY: all pointers are valid.
    unsafe {
        assert_eq!(pvmsi_function_id(0, 0, 32, 0, &mut id), pvmsi_status::Address);
        assert_eq!(pvmsi_function_id(0, 0, 0, 8, &mut id), pvmsi_status::Address);
        for buffer in [
            host.buffer(4095),
            host.buffer(65537),
            pvmsi_call_buffer { physical: 0x1001, ..host.buffer(4096) },
            pvmsi_call_buffer { physical: 1 << 44, ..host.buffer(4096) },
        ] {
            let status = pvmsi_client_init(&mut client, &host.doorbell(), &buffer, &host.delay());
            assert_eq!(status, pvmsi_status::CallBuffer);
        }
        let other =
            if cfg!(target_arch = "x86_64") { PVMSI_DOORBELL_SMCCC } else { PVMSI_DOORBELL_PORT };
        for (kind, number) in [
            (PVMSI_DOORBELL_NONE, 0),
            (other, PVMSI_CONDUIT_HVC),
            (PVMSI_DOORBELL_PORT, 0),
            (PVMSI_DOORBELL_PORT, 0x1_0000),
            (PVMSI_DOORBELL_SMCCC, 3),
            (99, 1),
        ] {
            let doorbell = pvmsi_doorbell { kind, number, ..host.doorbell() };
            let status =
                pvmsi_client_init(&mut client, &doorbell, &host.buffer(4096), &host.delay());
            assert_eq!(status, pvmsi_status::Doorbell, "{kind} {number}");
        }
        for table_size in [0, 2049] {
            let capability = pvmsi_msix_capability { table_size, ..kernel.capability() };
            let function = kernel.function();
            let status =
                pvmsi_msix_init(&mut msix, &function, &capability, kernel.table(), null_mut());
            assert_eq!(status, pvmsi_status::NoMsix);
        }
        kernel.poke(0x60, 0x05);
        assert_eq!(pvmsi_msix_find(&kernel.function(), &mut blank()), pvmsi_status::NoMsix);
    }
}
