use core::ptr::{null, null_mut};

use pvmsi_protocol::{Busy, CallError, CallId, Sequence};

use super::host::{Host, blank};
use super::kernel::Kernel;
use crate::*;

const ENABLE: u16 = 0x8000;

fn state(msix: &pvmsi_msix) -> pvmsi_msix_state {
    let mut state = blank();
    // SAFETY: the pointers are valid.
    assert_eq!(unsafe { pvmsi_msix_get_state(msix, &mut state) }, pvmsi_status::Success);
    state
}

#[test]
fn the_capability_is_found() {
    let capability = Kernel::new().capability();
    assert_eq!((capability.offset, capability.table_size), (0x60, 8));
    assert_eq!((capability.table_bar, capability.table_offset), (2, 0x1000));
    assert_eq!((capability.pending_bar, capability.pending_offset), (4, 0x2000));
}

#[test]
fn the_paravirtual_world() {
    let (host, kernel) = (Host::new(), Kernel::new());
    let (mut client, mut msix) = (host.client(), kernel.msix());
    let mut granted = 0;
    host.pending.set(Some(2));
    // SAFETY: all pointers are valid.
    unsafe {
        assert_eq!(
            pvmsi_msix_enable(&mut msix, &mut client, 4, &mut granted),
            pvmsi_status::Success
        );
        assert_eq!((granted, kernel.control()), (4, ENABLE));
        let now = state(&msix);
        assert_eq!((now.world, now.mode), (pvmsi_world::Paravirtual, pvmsi_table_mode::Direct));
        assert_eq!((now.granted, now.reasons, now.generation), (4, 0, 5));

        assert_eq!(
            pvmsi_msix_set(&mut msix, &mut client, 3, 0xfee0_0000, 0x44),
            pvmsi_status::Success
        );
        assert_eq!(
            pvmsi_msix_set(&mut msix, &mut client, 4, 0xfee0_0000, 0x44),
            pvmsi_status::Vector
        );
        assert_eq!(
            pvmsi_msix_set(&mut msix, null_mut(), 3, 0xfee0_0000, 0x44),
            pvmsi_status::ClientMissing
        );
        assert_eq!(kernel.entry(3), [0, 0, 0, 1], "the table is untouched");

        let mut pending = false;
        pvmsi_msix_is_pending(&msix, 2, &mut pending);
        assert!(pending);
        assert_eq!(pvmsi_msix_unmask(&mut msix, 2), pvmsi_status::Success);
        assert_eq!(pvmsi_msix_unmask(&mut msix, 2), pvmsi_status::Success);
        assert_eq!(*kernel.delivered.borrow(), [2], "the held event, once");
        assert_eq!(kernel.entry(2)[3], 0);
        assert_eq!(pvmsi_msix_mask(&mut msix, 2), pvmsi_status::Success);
        assert_eq!(kernel.entry(2)[3], 1);

        assert_eq!(pvmsi_msix_refresh(&mut msix, &mut client), pvmsi_status::Success);
        assert_eq!(state(&msix).reasons, PVMSI_REASON_HOST_REVOKED);

        kernel.reset_table();
        let status = pvmsi_msix_after_reset(&mut msix, &mut client, null(), 0);
        assert_eq!(status, pvmsi_status::Success);
        assert_eq!(host.calls.borrow().last(), Some(&CallId::Restore));

        assert_eq!(pvmsi_msix_disable(&mut msix), pvmsi_status::Success);
        assert_eq!((kernel.control(), state(&msix).world), (0, pvmsi_world::Disabled));
    }
}

#[test]
fn several_vectors_in_one_call() {
    let (host, kernel) = (Host::new(), Kernel::new());
    let (mut client, mut msix) = (host.client(), kernel.msix());
    let mut granted = 0;
    let messages = [pvmsi_message { address: 0xfee0_0000, data: 0x41 }, blank()];
    let updates = [0, 1].map(|vector| pvmsi_vector_update { address: 1, data: 2, vector });
    // SAFETY: all pointers are valid.
    unsafe {
        let status =
            pvmsi_msix_enable_with(&mut msix, &mut client, messages.as_ptr(), 2, &mut granted);
        assert_eq!((status, granted), (pvmsi_status::Success, 2));
        let status = pvmsi_msix_set_many(&mut msix, &mut client, updates.as_ptr(), 2);
        assert_eq!(status, pvmsi_status::Success);
    }
    assert_eq!(*host.calls.borrow(), [CallId::Configure, CallId::Update]);
}

#[test]
fn the_legacy_world_without_a_client() {
    let kernel = Kernel::new();
    let mut msix = kernel.msix();
    let mut granted = 0;
    let messages = [pvmsi_message { address: 0x1_fee0_0000, data: 0x41 }, blank()];
    // SAFETY: all pointers are valid.
    unsafe {
        let status =
            pvmsi_msix_enable_with(&mut msix, null_mut(), messages.as_ptr(), 2, &mut granted);
        assert_eq!((status, granted), (pvmsi_status::Success, 2));
        assert_eq!(kernel.entry(0), [0xfee0_0000, 1, 0x41, 1]);
        assert_eq!(
            pvmsi_msix_set(&mut msix, null_mut(), 1, 0xfee0_0000, 0x42),
            pvmsi_status::Success
        );
        assert_eq!(pvmsi_msix_unmask(&mut msix, 1), pvmsi_status::Success);
        assert_eq!(kernel.entry(1), [0xfee0_0000, 0, 0x42, 0]);
        kernel.set_pending(1);
        let mut pending = false;
        assert_eq!(pvmsi_msix_is_pending(&msix, 1, &mut pending), pvmsi_status::Success);
        assert!(pending);

        kernel.reset_table();
        let messages = [messages[0], pvmsi_message { address: 0xfee0_0000, data: 0x43 }];
        let status = pvmsi_msix_after_reset(&mut msix, null_mut(), messages.as_ptr(), 2);
        assert_eq!(status, pvmsi_status::Success);
        assert_eq!(kernel.entry(1), [0xfee0_0000, 0, 0x43, 0]);

        assert_eq!(
            pvmsi_msix_enable(&mut msix, null_mut(), 1, &mut granted),
            pvmsi_status::Enabled
        );
        assert_eq!(pvmsi_msix_disable(&mut msix), pvmsi_status::Success);
        assert_eq!(pvmsi_msix_enable(&mut msix, null_mut(), 9, &mut granted), pvmsi_status::Count);
    }
    let now = state(&msix);
    assert_eq!((now.world, now.refusal), (pvmsi_world::Disabled, pvmsi_status::Success));
}

#[test]
fn a_refusal_leads_to_the_legacy_world_and_says_why() {
    let (host, kernel) = (Host::new(), Kernel::new());
    let (mut client, mut msix) = (host.client(), kernel.msix());
    let mut granted = 0;
    host.failure.set(Some(CallError::Denied));
    // SAFETY: all pointers are valid.
    let status = unsafe { pvmsi_msix_enable(&mut msix, &mut client, 3, &mut granted) };
    assert_eq!((status, granted), (pvmsi_status::Success, 3));
    let now = state(&msix);
    assert_eq!((now.world, now.refusal), (pvmsi_world::Legacy, pvmsi_status::Denied));
}

#[test]
fn a_busy_host_is_waited_for_with_the_kernel_s_delay() {
    let (host, kernel) = (Host::new(), Kernel::new());
    let (mut client, mut msix) = (host.client(), kernel.msix());
    let mut granted = 0;
    host.failure.set(Some(CallError::Busy(Busy { sequence: Sequence(1), delay_us: 250 })));
    // SAFETY: all pointers are valid.
    let status = unsafe { pvmsi_msix_enable(&mut msix, &mut client, 3, &mut granted) };
    assert_eq!((status, granted, host.waited.get()), (pvmsi_status::Success, 3, 250));
}
