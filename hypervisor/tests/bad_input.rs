//! Bad input: each its own error, and nothing has changed.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![allow(clippy::cast_possible_truncation)]

mod fixture;

use fixture::*;
use pvmsi_hypervisor::{DoorbellError, FunctionPolicy, Platform, Policy};
use pvmsi_protocol::{
    CallError, CallId, Features, FunctionId, GuestMessage, Header, Kind, Parameter, SMCCC_CALL,
    SMCCC_DISCOVER, Sequence, ServiceBlock, SmcccStatus, Status, VectorSetup,
};
use vm_memory::{Bytes, GuestAddress};

/// A configured guest; `act` must fail with `expected` and change nothing.
fn fails(expected: CallError, act: impl Fn(&Guest) -> Result<(), CallError>) {
    let guest = Guest::with_vectors(8);
    guest.control(ENABLE);
    guest.configure(4);
    let before = guest.snapshot();
    assert_eq!(act(&guest), Err(expected));
    assert_eq!(guest.snapshot(), before, "{expected:?}");
    guest.raise(2);
    assert_eq!(guest.interrupts(), [2], "and interrupts still arrive after {expected:?}");
}

fn raw(guest: &Guest, header: Header, body: &[u8]) -> Result<(), CallError> {
    let (header, body) = guest.ring(0x10, header, body);
    CallError::decode(header.status, &body).map_or(Ok(()), Err)
}

fn header(call: CallId) -> Header {
    Header::request(call, FUNCTION, 65536, 0).unwrap()
}

const VALID: VectorSetup = VectorSetup { message: None, masked: true };

#[test]
fn unknown_call() {
    fails(CallError::NotSupported, |guest| {
        raw(guest, Header { call: 99, ..header(CallId::Release) }, &[])
    });
}

#[test]
fn reserved_field() {
    fails(CallError::parameter(Parameter::Header), |guest| {
        raw(guest, Header { reserved: 1, ..header(CallId::Release) }, &[])
    });
}

#[test]
fn foreign_version() {
    let version = pvmsi_protocol::Version { major: 2, minor: 0 };
    fails(CallError::parameter(Parameter::Version), |guest| {
        raw(guest, Header { version, ..header(CallId::Release) }, &[])
    });
}

#[test]
fn foreign_function() {
    fails(CallError::NoSuchFunction, |guest| {
        guest.call_of(FunctionId(0x0100_0000), CallId::Release, &[]).map(drop)
    });
}

#[test]
fn body_longer_than_the_buffer() {
    fails(CallError::parameter(Parameter::BodyLength), |guest| {
        raw(
            guest,
            Header { buffer_length: 4096, body_length: 4096, ..header(CallId::Release) },
            &[],
        )
    });
}

#[test]
fn buffer_longer_than_64_kib() {
    fails(CallError::parameter(Parameter::BufferLength), |guest| {
        raw(guest, Header { buffer_length: 65537, ..header(CallId::Release) }, &[])
    });
}

#[test]
fn buffer_without_room_for_the_answer() {
    fails(CallError::parameter(Parameter::AnswerRoom), |guest| {
        raw(guest, Header { buffer_length: 40, ..header(CallId::QueryFunction) }, &[])
    });
    let body = [1, 8, 0, 0];
    fails(CallError::parameter(Parameter::AnswerRoom), |guest| {
        let header = Header { buffer_length: 64, body_length: 4, ..header(CallId::Configure) };
        raw(guest, header, &body)
    });
}

#[test]
fn truncated_body_and_trailing_bytes() {
    fails(CallError::parameter(Parameter::Body), |guest| {
        guest.call(CallId::Configure, &[1]).map(drop)
    });
    fails(CallError::parameter(Parameter::Body), |guest| {
        guest.call(CallId::Configure, &[1, 8, 0, 2, 0, 1]).map(drop)
    });
    fails(CallError::parameter(Parameter::Body), |guest| {
        guest.call(CallId::Release, &[0]).map(drop)
    });
}

#[test]
fn count_of_zero_or_beyond_the_table_or_below_the_list() {
    for requested in [0, 9] {
        fails(CallError::parameter(Parameter::Count), |guest| {
            guest.configure_with(requested, Sequence::START, &[]).map(drop)
        });
    }
    fails(CallError::parameter(Parameter::Count), |guest| {
        guest.configure_with(1, Sequence::START, &[VALID, VALID]).map(drop)
    });
}

#[test]
fn kind_that_the_function_does_not_have() {
    let mut body = [0; 16];
    let used = pvmsi_protocol::ConfigureRequest::encode(
        Kind::Msi,
        1,
        Sequence::START,
        [VALID].into_iter(),
        &mut body,
    )
    .unwrap();
    fails(CallError::parameter(Parameter::Kind), |guest| {
        guest.call(CallId::Configure, &body[..used]).map(drop)
    });
}

#[test]
fn sequence_that_continues_nothing() {
    fails(CallError::parameter(Parameter::Sequence), |guest| {
        guest.configure_with(4, Sequence(7), &[]).map(drop)
    });
}

#[test]
fn invalid_message_names_its_vector() {
    let bad = GuestMessage { address: 0x1000, data: 0x31 };
    fails(CallError::vector(Parameter::Message, 1), |guest| {
        let setup = VectorSetup { message: Some(bad), masked: true };
        guest.configure_with(4, Sequence::START, &[VALID, setup]).map(drop)
    });
    fails(CallError::vector(Parameter::Message, 2), |guest| {
        guest.update(&[(0, message(5)), (2, bad)])
    });
}

/// KVM would take the low 8 bits for the whole id.
#[test]
fn a_vm_with_ids_of_8_bits_sends_nothing_to_the_processor_that_8_bits_name() {
    let platform = Platform::X86_64 { extended_destination_ids: false };
    for address in [0xfee0_1020, 0x0000_0100_fee0_1000] {
        let bad = GuestMessage { address, data: 0x31 };
        let guest = Guest::new(Options { platform, ..Options::default() });
        let offer = guest.service.offer(None, None).unwrap();
        assert!(!offer.features.contains(Features::EXTENDED_DESTINATION_ID));
        guest.control(ENABLE);
        guest.program(2, bad);
        guest.raise(2);
        assert_eq!(guest.routes.delivered(), [], "in the standard way");
        let setup = VectorSetup { message: Some(bad), masked: false };
        let answer = guest.configure_with(1, Sequence::START, &[setup]);
        assert_eq!(answer.unwrap_err(), CallError::vector(Parameter::Message, 0));
        guest.configure(4);
        let refused = Err(CallError::vector(Parameter::Message, 3));
        assert_eq!(guest.update(&[(3, bad)]), refused);
        guest.raise(3);
        assert_eq!(guest.routes.delivered().last(), Some(&message(3)));
    }
}

#[test]
fn vector_out_of_range_or_not_assigned_or_twice() {
    for vector in [4, 8, 2047, u16::MAX] {
        fails(CallError::vector(Parameter::Vector, vector), |guest| {
            guest.update(&[(0, message(5)), (vector, message(6))])
        });
    }
    fails(CallError::vector(Parameter::DuplicateVector, 1), |guest| {
        guest.update(&[(1, message(5)), (1, message(6))])
    });
    fails(CallError::parameter(Parameter::Count), |guest| guest.update(&[]));
    fails(CallError::vector(Parameter::Vector, 8), |guest| guest.query_vectors(7, 2).map(drop));
    fails(CallError::vector(Parameter::Vector, u16::MAX), |guest| {
        guest.query_vectors(u16::MAX, u16::MAX).map(drop)
    });
}

#[test]
fn update_before_configure() {
    let guest = Guest::with_vectors(4);
    let error = guest.update(&[(0, message(0))]).unwrap_err();
    assert_eq!(error, CallError::vector(Parameter::Vector, 0));
}

#[test]
fn denied_by_policy() {
    let policy = FunctionPolicy { policy: Policy::Off, ..FunctionPolicy::default() };
    let guest = Guest::new(Options { function_policy: policy, ..Options::default() });
    let error = guest.configure_with(4, Sequence::START, &[]).unwrap_err();
    assert_eq!(error, CallError::Denied);

    let policy = FunctionPolicy { vectors: Some(0), ..FunctionPolicy::default() };
    let guest = Guest::new(Options { function_policy: policy, ..Options::default() });
    guest.control(ENABLE);
    guest.program(1, message(1));
    let error = guest.configure_with(4, Sequence::START, &[]).unwrap_err();
    assert_eq!(error, CallError::Denied, "a quota of none");
    guest.raise(1);
    assert_eq!(guest.interrupts(), NONE, "nor has the emulated table any");
    assert_eq!(guest.status().without_interrupts, 1);
}

#[test]
fn no_resources() {
    let guest = Guest::new(Options { routes: 0, ..Options::default() });
    let error = guest.configure_with(4, Sequence::START, &[]).unwrap_err();
    assert_eq!(error, CallError::NoResources);
    assert_eq!(guest.status().assigned, 0);
}

#[test]
fn buffer_outside_ram_changes_nothing() {
    let guest = Guest::with_vectors(4);
    let beyond = u32::try_from(RAM_BYTES >> 12).unwrap();
    for page in [beyond, 0xc_0000, u32::MAX] {
        let address = u64::from(page) << 12;
        assert_eq!(
            guest.service.doorbell(&guest.memory, page),
            Err(DoorbellError::BufferOutsideMemory(address))
        );
    }
}

#[test]
fn buffer_crossing_the_end_of_ram_is_told_so() {
    let guest = Guest::with_vectors(4);
    let last = u32::try_from(RAM_BYTES >> 12).unwrap() - 1;
    let header = Header { buffer_length: 8192, ..header(CallId::Release) };
    let (answer, body) = guest.ring(last, header, &[]);
    assert_eq!(
        CallError::decode(answer.status, &body),
        Some(CallError::parameter(Parameter::BufferLength))
    );
}

#[test]
fn what_is_not_a_call_buffer_is_not_written() {
    let guest = Guest::with_vectors(4);
    assert_eq!(
        guest.service.doorbell(&guest.memory, 0x10),
        Err(DoorbellError::NotACallBuffer(0x1_0000))
    );
    let short = Header { buffer_length: 31, ..header(CallId::Release) };
    let (answer, _) = guest.ring(0x10, short, &[]);
    assert_eq!(answer.status, Status::SENTINEL);
    let off = Guest::new(Options { policy: Policy::Off, ..Options::default() });
    let (answer, _) = off.ring(0x10, header(CallId::Negotiate), &[]);
    assert_eq!(answer.status, Status::SENTINEL, "nobody answers: not supported");
    assert!(off.service.offer(Some(1), None).is_none());
}

#[test]
fn smccc_calls_are_answered_in_registers_and_others_are_left_to_the_vmm() {
    let guest = Guest::with_vectors(8);
    let offer = guest.service.offer(None, None).unwrap();
    let call = |function, x1| guest.service.smccc(&guest.memory, &offer, function, [x1, 0, 0]);
    let found = ServiceBlock::find_by_smccc(|leaf| call(SMCCC_DISCOVER, leaf).unwrap());
    assert_eq!(found, Some(offer));
    let invalid = Some([SmcccStatus::INVALID_PARAMETER.0, 0, 0, 0]);
    assert_eq!(call(SMCCC_DISCOVER, 4), invalid, "no such leaf");
    assert_eq!(call(SMCCC_CALL, 0x11), invalid, "no call buffer there");
    assert_eq!(call(SMCCC_CALL, 1 << 32), invalid, "no page number");
    assert_eq!(call(SMCCC_CALL + 1, 0), None, "not ours");
    let bytes = header(CallId::QueryFunction).to_bytes();
    guest.memory.write_slice(&bytes, GuestAddress(0x1_0000)).unwrap();
    assert_eq!(call(SMCCC_CALL, 0x10), Some([SmcccStatus::SUCCESS.0, 0, 0, 0]));
    let status: u32 = guest.memory.read_obj(GuestAddress(0x1_0000 + 24)).unwrap();
    assert_ne!(status, Status::SENTINEL.0, "the buffer is answered");

    let off = Guest::new(Options { policy: Policy::Off, ..Options::default() });
    let call = |function| off.service.smccc(&off.memory, &offer, function, [0; 3]);
    assert_eq!((call(SMCCC_DISCOVER), call(SMCCC_CALL)), (None, None), "policy off");
}

#[test]
fn answers_stay_inside_the_declared_buffer() {
    let guest = Guest::with_vectors(8);
    for buffer_length in 32..600_u32 {
        let pattern = vec![0xa5; 8192];
        guest.memory.write_slice(&pattern, GuestAddress(0x1_0000)).unwrap();
        let header = Header { buffer_length, body_length: 2, ..header(CallId::QueryVectors) };
        if buffer_length < 34 {
            continue;
        }
        guest.ring(0x10, header, &[0, 8]);
        let mut after = vec![0; 8192];
        guest.memory.read_slice(&mut after, GuestAddress(0x1_0000)).unwrap();
        let end = buffer_length as usize;
        assert!(after[end..].iter().all(|&byte| byte == 0xa5), "{buffer_length}");
    }
}

#[test]
fn every_table_access_of_every_size_and_alignment_is_answered() {
    for policy in [Policy::Trapped, Policy::Direct] {
        let guest = Guest::new(Options { vectors: 3, policy, ..Options::default() });
        guest.control(ENABLE);
        guest.configure(2);
        for offset in (0..0x100).chain(0x87f0..0x8820).chain(0x1_fff0..0x2_0000) {
            for size in [1, 2, 3, 4, 8, 16] {
                let mut data = vec![0xcc; size];
                guest.router.mmio_read(BAR + offset, &mut data);
                guest.router.mmio_write(BAR + offset, &data);
            }
        }
        guest.call(CallId::Release, &[]).unwrap();
    }
}

#[test]
fn every_configuration_space_write_is_survived() {
    let guest = Guest::with_vectors(4);
    for value in [0x00, 0xff, 0x80, 0x40, 0x03] {
        for offset in (0..0x120).chain(0xff0..0x1010) {
            for size in [1, 2, 4, 8] {
                guest.config_write(offset, &vec![value; size]);
                let mut data = vec![0; size];
                guest.router.config_read(FUNCTION, offset, &mut data);
            }
        }
    }
    guest.service.reset().unwrap();
    guest.config_write(0x10, &0xc000_0000_u32.to_le_bytes());
    guest.config_write(0x04, &[0x06, 0x00]);
    guest.control(ENABLE);
    guest.configure(4);
    guest.raise(1);
    assert_eq!(guest.interrupts(), [1]);
}
