use std::sync::Barrier;

use pvmsi_protocol::{
    CallError, CallId, Encode, Generation, GuestMessage, Parameter, QueryFunctionAnswer, Reasons,
    ReleaseAnswer, Request, TableMode, VectorIndex, VectorUpdate,
};

use super::function::{ENABLE, FUNCTION_MASK, Function};
use super::host::{Host, Reply, direct_host};
use crate::arch::trace::{self, Access};
use crate::{AnyDoorbell, Client, MsiXError, PciFunction, World};

const NO_CLIENT: Option<&mut Client<'static, AnyDoorbell>> = None;

fn message(data: u32) -> GuestMessage {
    GuestMessage { address: 0x12_fee0_1000, data }
}

fn nothing(_: VectorIndex) -> Option<GuestMessage> {
    None
}

#[test]
fn enable_switches_on_under_function_mask_and_never_touches_the_table() {
    let function = Function::new(64);
    let host = direct_host(2048, &[]);
    let mut client = host.client(4096);
    let msix = function.msix();
    assert_eq!((msix.world(), msix.granted()), (World::Disabled, 0));
    trace::take();
    assert_eq!(msix.enable(Some(&mut client), 8), Ok(8));
    assert_eq!(function.take_controls(), [ENABLE | FUNCTION_MASK, ENABLE]);
    assert_eq!(trace::take(), [], "neither read nor written");
    assert_eq!(msix.world(), World::Paravirtual);
    assert_eq!((msix.mode(), msix.reasons()), (TableMode::Direct, Reasons::empty()));
    assert_eq!((msix.generation(), msix.refusal()), (Generation(7), None));
    assert_eq!(host.calls(), [CallId::Configure]);
    assert_eq!(host.seen.borrow()[0].function, function.id());
    assert_eq!(msix.enable(Some(&mut client), 8), Err(MsiXError::Enabled));
}

#[test]
fn paravirtual_set_is_one_update_and_leaves_the_table_alone() {
    let function = Function::new(64);
    let host = direct_host(2048, &[]);
    let mut client = host.client(4096);
    let msix = function.msix();
    msix.enable(Some(&mut client), 8).unwrap();
    msix.unmask(VectorIndex(5)).unwrap();
    trace::take();
    msix.set(Some(&mut client), VectorIndex(5), message(0x31)).unwrap();
    assert_eq!(trace::take(), []);
    let updates = [2, 3].map(|vector| VectorUpdate {
        vector: VectorIndex(vector),
        message: message(vector.into()),
    });
    msix.set_many(Some(&mut client), updates.into_iter()).unwrap();
    assert_eq!(trace::take(), []);
    assert_eq!(host.calls(), [CallId::Configure, CallId::Update, CallId::Update]);
    let seen = host.seen.borrow();
    assert_eq!(seen[1].messages, [(5, message(0x31))]);
    assert_eq!(seen[2].messages, [(2, message(2)), (3, message(3))]);

    assert_eq!(msix.set(NO_CLIENT, VectorIndex(5), message(1)), Err(MsiXError::ClientMissing));
    let outside = MsiXError::Vector { vector: VectorIndex(8), granted: 8 };
    assert_eq!(msix.set(Some(&mut client), VectorIndex(8), message(1)), Err(outside));
}

#[test]
fn mask_and_unmask_are_one_store_in_both_worlds() {
    for paravirtual in [true, false] {
        let function = Function::new(64);
        let host = direct_host(2048, &[]);
        let mut client = host.client(4096);
        let msix = function.msix();
        msix.enable(paravirtual.then_some(&mut client), 8).unwrap();
        let rings = host.rings.get();
        function.take_stores();
        msix.unmask(VectorIndex(3)).unwrap();
        assert!(!function.masked(3) && function.masked(2) && function.masked(4));
        msix.mask(VectorIndex(3)).unwrap();
        assert!(function.masked(3));
        assert_eq!(function.take_stores(), [(3, 3, 0), (3, 3, 1)]);
        assert_eq!(host.rings.get(), rings);
        let outside = Err(MsiXError::Vector { vector: VectorIndex(8), granted: 8 });
        assert_eq!(msix.mask(VectorIndex(8)), outside);
        assert_eq!(msix.unmask(VectorIndex(8)), outside);
        assert_eq!(function.take_stores(), []);
    }
}

#[test]
fn accesses_of_the_table_are_as_few_as_can_be() {
    let counts = || {
        let accesses = trace::take();
        let reads = accesses.iter().filter(|access| matches!(access, Access::Read(_))).count();
        (reads, accesses.len() - reads)
    };
    for (paravirtual, enable, set) in [(true, (0, 0), (0, 0)), (false, (2048, 0), (0, 3))] {
        let function = Function::new(2048);
        let host = direct_host(2048, &[]);
        let mut client = host.client(65536);
        let msix = function.msix();
        counts();
        assert_eq!(msix.enable(paravirtual.then_some(&mut client), 2000), Ok(2000));
        assert_eq!(counts(), enable, "enable");
        msix.set(paravirtual.then_some(&mut client), VectorIndex(1999), message(1)).unwrap();
        assert_eq!(counts(), set, "set");
        msix.unmask(VectorIndex(1999)).unwrap();
        assert_eq!(counts(), (paravirtual.into(), 1), "the first unmask, which looks at the entry");
        msix.mask(VectorIndex(1999)).unwrap();
        assert_eq!(counts(), (1, 1), "mask, which waits until the function has seen it");
        msix.unmask(VectorIndex(1999)).unwrap();
        assert_eq!(counts(), (0, 1), "unmask");
        if paravirtual {
            msix.after_reset(Some(&mut client), nothing).unwrap();
            assert_eq!(counts(), (1999, 2000), "after a reset");
        }
        msix.disable();
        assert_eq!(counts(), (0, 1), "disable, which masks what is unmasked");
    }
}

#[test]
fn other_bits_of_vector_control_are_preserved() {
    for paravirtual in [true, false] {
        let function = Function::new(8);
        function.poke(2, 3, 0xabcd_0003);
        let host = direct_host(2048, &[]);
        let mut client = host.client(4096);
        let msix = function.msix();
        msix.enable(paravirtual.then_some(&mut client), 4).unwrap();
        assert_eq!(function.entry(2)[3], 0xabcd_0003);
        for vector in [0, 2, 1, 2] {
            msix.unmask(VectorIndex(vector)).unwrap();
        }
        assert_eq!(function.entry(2)[3], 0xabcd_0002);
        assert_eq!(function.entry(1)[3], 0);
        msix.mask(VectorIndex(2)).unwrap();
        assert_eq!(function.entry(2)[3], 0xabcd_0003);
        msix.disable();
        assert_eq!(function.entry(2)[3], 0xabcd_0003);
    }
}

#[test]
fn a_host_without_the_service_means_the_standard_table() {
    for refusal in [
        CallError::NotSupported,
        CallError::NoSuchFunction,
        CallError::Denied,
        CallError::NoResources,
    ] {
        let function = Function::new(16);
        let host = Host::new(|_, _| Reply::Error(refusal));
        let mut client = host.client(4096);
        let msix = function.msix();
        assert_eq!(msix.enable(Some(&mut client), 4), Ok(4));
        assert_eq!((msix.world(), msix.refusal()), (World::Legacy, Some(refusal)));
        assert_eq!((msix.mode(), msix.reasons()), (TableMode::Trapped, Reasons::NOT_ASSIGNED));
        assert_eq!(function.control() & (ENABLE | FUNCTION_MASK), ENABLE);
        msix.set(Some(&mut client), VectorIndex(1), message(0x31)).unwrap();
        assert_eq!(function.entry(1), [0xfee0_1000, 0x12, 0x31, 1]);
        assert_eq!(host.rings.get(), 1, "not asked again");
    }
    let function = Function::new(16);
    let silent = Host::new(|_, _| Reply::Silent);
    let msix = function.msix();
    assert_eq!(msix.enable(Some(&mut silent.client(4096)), 4), Ok(4));
    assert_eq!(msix.refusal(), Some(CallError::NotSupported));

    let function = Function::new(16);
    let msix = function.msix();
    assert_eq!(msix.enable(NO_CLIENT, 4), Ok(4));
    assert_eq!((msix.world(), msix.refusal()), (World::Legacy, None));
}

#[test]
fn other_errors_leave_msix_off() {
    let parameter = CallError::parameter(Parameter::Kind);
    for error in [CallError::Hardware, parameter] {
        let function = Function::new(16);
        let host = Host::new(|_, _| Reply::Error(error));
        let msix = function.msix();
        let enable = msix.enable(Some(&mut host.client(4096)), 4);
        assert_eq!(enable, Err(MsiXError::Call(error)));
        assert_eq!((msix.world(), msix.granted()), (World::Disabled, 0));
        assert_eq!(function.take_controls(), [ENABLE | FUNCTION_MASK, 0]);
        // The standard way is still there.
        assert_eq!(msix.enable(NO_CLIENT, 4), Ok(4));
    }
}

#[test]
fn the_count_is_checked_against_the_table() {
    let function = Function::new(16);
    let msix = function.msix();
    for requested in [0, 17] {
        let error = MsiXError::Count { requested, table_size: 16 };
        assert_eq!(msix.enable(NO_CLIENT, requested), Err(error));
    }
    assert_eq!(function.take_controls(), []);
}

#[test]
fn a_short_grant_is_returned_as_such() {
    let function = Function::new(64);
    let host = direct_host(5, &[]);
    let mut client = host.client(4096);
    let msix = function.msix();
    assert_eq!(msix.enable(Some(&mut client), 64), Ok(5));
    assert_eq!(msix.granted(), 5);
    assert!(msix.unmask(VectorIndex(4)).is_ok());
    let outside = MsiXError::Vector { vector: VectorIndex(5), granted: 5 };
    assert_eq!(msix.unmask(VectorIndex(5)), Err(outside));
}

#[test]
fn a_predecessors_assignment_ends_before_the_start() {
    let function = Function::new(8);
    function.poke_config(0x62, ENABLE | 7);
    function.poke(6, 3, 0);
    let msix = function.msix();
    msix.enable(NO_CLIENT, 4).unwrap();
    assert_eq!(function.take_controls(), [0, ENABLE | FUNCTION_MASK, ENABLE]);
    // Its unmasked entries would fire with its messages.
    assert_eq!(function.take_stores(), [(6, 3, 1)]);
}

#[test]
fn what_was_pending_at_the_switch_is_delivered_once_on_unmask() {
    let function = Function::new(2048);
    let host = direct_host(2048, &[0, 31, 32, 2047]);
    let mut client = host.client(65536);
    let msix = function.msix();
    msix.enable(Some(&mut client), 2048).unwrap();
    assert_eq!(function.take_delivered(), []);
    assert!(msix.is_pending(VectorIndex(2047)) && !msix.is_pending(VectorIndex(2046)));
    for vector in (0..2048).map(VectorIndex) {
        msix.mask(vector).unwrap();
    }
    assert_eq!(function.take_delivered(), []);
    for _ in 0..2 {
        for vector in (0..2048).map(VectorIndex) {
            msix.unmask(vector).unwrap();
        }
    }
    assert_eq!(function.take_delivered(), [0, 31, 32, 2047]);
    assert!(!msix.is_pending(VectorIndex(2047)));
}

#[test]
fn processors_that_unmask_at_once_deliver_once() {
    let vectors: Vec<u16> = (0..256).collect();
    let function = Function::new(256);
    let host = direct_host(2048, &vectors);
    let msix = function.msix();
    msix.enable(Some(&mut host.client(65536)), 256).unwrap();
    let start = Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                start.wait();
                for vector in (0..256).map(VectorIndex) {
                    msix.unmask(vector).unwrap();
                }
            });
        }
    });
    let mut delivered = function.take_delivered();
    delivered.sort_unstable();
    assert_eq!(delivered, vectors);
}

#[test]
fn pending_bits_come_from_the_array_as_well() {
    let function = Function::new(70);
    let msix = function.msix();
    msix.enable(NO_CLIENT, 70).unwrap();
    function.set_pending(69);
    assert!(msix.is_pending(VectorIndex(69)) && !msix.is_pending(VectorIndex(68)));
    assert!(!msix.is_pending(VectorIndex(70)));
}

#[test]
fn legacy_set_writes_the_message_while_the_entry_is_masked() {
    let function = Function::new(8);
    let msix = function.msix();
    msix.enable(NO_CLIENT, 8).unwrap();
    function.take_stores();
    msix.set(NO_CLIENT, VectorIndex(2), message(0x41)).unwrap();
    let write = [(2, 0, 0xfee0_1000), (2, 1, 0x12), (2, 2, 0x41)];
    assert_eq!(function.take_stores(), write);
    assert!(function.masked(2));

    msix.unmask(VectorIndex(2)).unwrap();
    function.take_stores();
    msix.set(NO_CLIENT, VectorIndex(2), message(0x41)).unwrap();
    assert_eq!(function.take_stores(), [&[(2, 3, 1)], &write[..], &[(2, 3, 0)]].concat());
    let outside = MsiXError::Vector { vector: VectorIndex(8), granted: 8 };
    assert_eq!(msix.set(NO_CLIENT, VectorIndex(8), message(1)), Err(outside));
}

#[test]
fn enable_with_gives_messages_in_the_same_call() {
    let odd = |vector: VectorIndex| (vector.0 % 2 == 1).then(|| message(vector.0.into()));
    let function = Function::new(8);
    let host = direct_host(2048, &[]);
    let msix = function.msix();
    assert_eq!(msix.enable_with(Some(&mut host.client(4096)), 4, odd), Ok(4));
    assert_eq!(host.calls(), [CallId::Configure]);
    assert_eq!(host.seen.borrow()[0].messages, [(1, message(1)), (3, message(3))]);
    assert_eq!(function.take_stores(), []);

    let function = Function::new(8);
    let msix = function.msix();
    assert_eq!(msix.enable_with(NO_CLIENT, 4, odd), Ok(4));
    assert_eq!(function.entry(0), [0, 0, 0, 1]);
    assert_eq!(function.entry(3), [0xfee0_1000, 0x12, 3, 1]);
}

#[test]
fn disable_masks_and_clears_enable_without_a_call() {
    for paravirtual in [true, false] {
        let function = Function::new(8);
        let host = direct_host(2048, &[1]);
        let mut client = host.client(4096);
        let msix = function.msix();
        msix.enable(paravirtual.then_some(&mut client), 4).unwrap();
        msix.unmask(VectorIndex(2)).unwrap();
        function.take_controls();
        let rings = host.rings.get();
        msix.disable();
        assert_eq!(function.take_controls(), [ENABLE | FUNCTION_MASK, 0]);
        assert!((0..8).all(|vector| function.masked(vector)));
        assert_eq!((msix.world(), msix.granted()), (World::Disabled, 0));
        assert_eq!(host.rings.get(), rings);
        assert!(!msix.is_pending(VectorIndex(1)), "held events end with the assignment");
        let off = MsiXError::Vector { vector: VectorIndex(2), granted: 0 };
        assert_eq!(msix.unmask(VectorIndex(2)), Err(off));
        assert_eq!(msix.set(Some(&mut client), VectorIndex(2), message(1)), Err(off));
        msix.disable();
        assert_eq!(function.take_controls(), []);
        // And on again, in the other world.
        msix.enable((!paravirtual).then_some(&mut client), 4).unwrap();
    }
}

#[test]
fn after_a_reset_the_host_restores_messages_and_the_guest_its_masks() {
    let function = Function::new(8);
    let host = direct_host(2048, &[3]);
    let mut client = host.client(4096);
    let msix = function.msix();
    msix.enable(Some(&mut client), 4).unwrap();
    msix.unmask(VectorIndex(1)).unwrap();
    function.reset_table();
    function.take_controls();
    function.take_stores();
    assert_eq!(msix.after_reset(NO_CLIENT, nothing), Err(MsiXError::ClientMissing));
    assert_eq!(function.take_controls(), []);
    msix.after_reset(Some(&mut client), |_| panic!("not asked for")).unwrap();
    assert_eq!(function.take_controls(), [ENABLE | FUNCTION_MASK, ENABLE]);
    assert_eq!(function.take_stores(), [(0, 3, 1), (1, 3, 0), (2, 3, 1), (3, 3, 1)]);
    assert_eq!(host.calls(), [CallId::Configure, CallId::Restore]);
    assert_eq!((msix.mode(), msix.reasons()), (TableMode::Trapped, Reasons::HOST_REVOKED));
    assert_eq!(msix.generation(), Generation(9));
    msix.unmask(VectorIndex(3)).unwrap();
    assert_eq!(function.take_delivered(), [3], "held across the reset");
}

#[test]
fn after_a_reset_the_legacy_table_is_written_again() {
    let function = Function::new(8);
    let msix = function.msix();
    msix.enable(NO_CLIENT, 3).unwrap();
    for vector in [0, 1] {
        msix.set(NO_CLIENT, VectorIndex(vector), message(vector.into())).unwrap();
        msix.unmask(VectorIndex(vector)).unwrap();
    }
    function.reset_table();
    function.poke_config(0x62, 7);
    function.take_controls();
    let messages = |vector: VectorIndex| (vector.0 != 1).then(|| message(vector.0.into()));
    msix.after_reset(NO_CLIENT, messages).unwrap();
    assert_eq!(function.take_controls(), [ENABLE | FUNCTION_MASK, ENABLE]);
    assert_eq!(function.entry(0), [0xfee0_1000, 0x12, 0, 0]);
    assert_eq!(function.entry(1), [0, 0, 0, 1], "no message, so it stays masked");
    assert_eq!(function.entry(2), [0xfee0_1000, 0x12, 2, 1]);
    assert_eq!(function.entry(3), [0, 0, 0, 1], "not ours");
}

#[test]
fn a_host_that_gave_the_vectors_up_means_the_legacy_world() {
    let restored = Reasons::NOT_ASSIGNED;
    for gone in [Err(CallError::NotSupported), Ok(restored)] {
        let function = Function::new(8);
        let host = direct_host(2048, &[]);
        let msix = function.msix();
        msix.enable(Some(&mut host.client(4096)), 2).unwrap();
        msix.unmask(VectorIndex(1)).unwrap();
        function.reset_table();
        function.take_controls();
        let other_host = Host::new(|_, body| match gone {
            Err(error) => Reply::Error(error),
            Ok(reasons) => pvmsi_protocol::RestoreAnswer {
                mode: TableMode::Trapped,
                reasons,
                generation: Generation(1),
            }
            .encode(body)
            .into(),
        });
        let mut client = other_host.client(4096);
        msix.after_reset(Some(&mut client), |vector| Some(message(vector.0.into()))).unwrap();
        assert_eq!(msix.world(), World::Legacy);
        assert_eq!(msix.refusal(), gone.err());
        assert_eq!(function.entry(0), [0xfee0_1000, 0x12, 0, 1]);
        assert_eq!(function.entry(1), [0xfee0_1000, 0x12, 1, 0]);
        let controls = function.take_controls();
        let on = ENABLE | FUNCTION_MASK;
        assert_eq!(controls, [on, 0, on, ENABLE]);
    }
}

#[test]
fn a_restore_that_fails_leaves_function_mask_set() {
    let function = Function::new(8);
    let host = direct_host(2048, &[]);
    let msix = function.msix();
    msix.enable(Some(&mut host.client(4096)), 2).unwrap();
    let broken = Host::new(|_, _| Reply::Error(CallError::Hardware));
    let answer = msix.after_reset(Some(&mut broken.client(4096)), nothing);
    assert_eq!(answer, Err(MsiXError::Call(CallError::Hardware)));
    assert_eq!(function.control() & FUNCTION_MASK, FUNCTION_MASK);
    msix.after_reset(Some(&mut host.client(4096)), nothing).unwrap();
    assert_eq!(function.control() & (ENABLE | FUNCTION_MASK), ENABLE);
}

#[test]
fn after_reset_of_what_is_off_does_nothing() {
    let function = Function::new(8);
    let msix = function.msix();
    msix.after_reset(NO_CLIENT, nothing).unwrap();
    assert_eq!(function.take_controls(), []);
}

#[test]
fn refresh_tells_that_the_host_took_the_table_back() {
    let function = Function::new(8);
    let host = direct_host(2048, &[]);
    let msix = function.msix();
    msix.refresh(NO_CLIENT).unwrap();
    msix.enable(Some(&mut host.client(4096)), 2).unwrap();
    assert_eq!(msix.refresh(NO_CLIENT), Err(MsiXError::ClientMissing));
    let revoked = Host::new(|_, body| {
        QueryFunctionAnswer {
            msi_vectors: 0,
            msix_vectors: 8,
            assigned: 2,
            mode: TableMode::Trapped,
            reasons: Reasons::HOST_REVOKED,
            generation: Generation(70),
            delivery: pvmsi_protocol::Delivery::Unknown,
        }
        .encode(body)
        .into()
    });
    msix.refresh(Some(&mut revoked.client(4096))).unwrap();
    assert_eq!((msix.mode(), msix.reasons()), (TableMode::Trapped, Reasons::HOST_REVOKED));
    assert_eq!((msix.generation(), msix.world()), (Generation(70), World::Paravirtual));
}

#[test]
fn a_malformed_configure_answer_leaves_nothing_held() {
    let host = Host::new(|request, body| match request {
        Request::Configure(_) => {
            // Four vectors announced, all pending, the last one cut short.
            body[..16].copy_from_slice(&[4, 1, 0, 7, 4, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0, 0]);
            Reply::Success(11)
        }
        _ => ReleaseAnswer { generation: Generation(0) }.encode(body).into(),
    });
    let function = Function::new(8);
    let msix = function.msix();
    let enable = msix.enable(Some(&mut host.client(4096)), 4);
    assert_eq!(enable, Err(MsiXError::Call(CallError::Hardware)));
    assert_eq!(host.calls(), [CallId::Configure, CallId::Release]);
    assert!((0..8).all(|vector| !msix.is_pending(VectorIndex(vector))));
    assert_eq!(function.control() & ENABLE, 0);
}

/// A kernel shares the one between processors and interrupt handlers, and gives the other to a processor.
#[test]
fn msix_can_be_shared_and_clients_can_move() {
    fn shared<T: Send + Sync>() {}
    shared::<crate::MsiX<Function>>();
    fn movable<T: Send>() {}
    movable::<Client<'static, AnyDoorbell>>();
}
