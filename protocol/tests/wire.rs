//! The wire: every type survives the trip, every malformed body is refused.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use pvmsi_protocol::*;

fn encoded(body: &impl Encode) -> Vec<u8> {
    let mut buffer = [0; 256];
    let used = body.encode(&mut buffer).unwrap();
    buffer[..used].to_vec()
}

#[test]
fn the_header_is_32_little_endian_bytes() {
    let function = FunctionId::new(0x1234, 0x56, 0x1f, 7).unwrap();
    let header = Header::request(CallId::Configure, function, 65536, 0x102).unwrap();
    let bytes = header.to_bytes();
    assert_eq!(&bytes[0..4], b"PMSI");
    assert_eq!(bytes[4..8], [1, 0, 0, 0]);
    assert_eq!(bytes[8..12], [4, 0, 0, 0]);
    assert_eq!(bytes[12..16], [0xff, 0x56, 0x34, 0x12]);
    assert_eq!(bytes[16..20], [0, 0, 1, 0]);
    assert_eq!(bytes[20..24], [2, 1, 0, 0]);
    assert_eq!(bytes[24..28], [0xff; 4]);
    assert_eq!(bytes[28..32], [0; 4]);
    assert_eq!(Header::from_bytes(&bytes), header);
}

#[test]
fn a_request_that_does_not_fit_has_no_header() {
    assert!(Header::request(CallId::Update, FunctionId::NONE, 31, 0).is_none());
    assert!(Header::request(CallId::Update, FunctionId::NONE, 64, 33).is_none());
    assert!(Header::request(CallId::Update, FunctionId::NONE, 65537, 0).is_none());
}

#[test]
fn functions_are_written_as_the_field_writes_them() {
    let id: FunctionId = "0001:02:03.4".parse().unwrap();
    assert_eq!((id.segment(), id.bus(), id.device(), id.function()), (1, 2, 3, 4));
    assert_eq!(id.to_string(), "0001:02:03.4");
    assert_eq!(id.requester_id(), 0x21c);
    assert_eq!("1f:00.0".parse::<FunctionId>().unwrap().bus(), 0x1f);
    for bad in ["", "0:0", "00:20.0", "00:00.8", "zz:00.0", "00:00.0.0"] {
        assert_eq!(bad.parse::<FunctionId>(), Err(ParseFunctionIdError), "{bad}");
    }
}

#[test]
fn a_configure_of_2048_vectors_decodes_while_it_is_iterated() {
    let largest = GuestMessage { address: u64::MAX, data: u32::MAX };
    let setup = |index: u16| VectorSetup {
        message: (index.is_multiple_of(2)).then_some(largest),
        masked: index.is_multiple_of(3),
    };
    let mut buffer = vec![0; BUFFER_MAX - Header::SIZE];
    let used = ConfigureRequest::encode(
        Kind::MsiX,
        VECTORS_MAX,
        Sequence(u32::MAX),
        (0..VECTORS_MAX).map(setup),
        &mut buffer,
    )
    .unwrap();
    let Ok(Request::Configure(request)) = Request::parse(4, &buffer[..used]) else {
        panic!("not a configure");
    };
    assert_eq!((request.requested, request.sequence), (VECTORS_MAX, Sequence(u32::MAX)));
    assert!(request.vectors.iter().map(Result::unwrap).eq((0..VECTORS_MAX).map(setup)));
    for cut in 0..used {
        assert!(Request::parse(4, &buffer[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn the_largest_answers_fit_a_buffer() {
    let table_message = Some(TableMessage { address: u64::MAX, data: u32::MAX });
    let vector = VectorAnswer { table_message, pending: true };
    let mut buffer = vec![0; BUFFER_MAX - Header::SIZE];
    let used = ConfigureAnswer::encode(
        TableMode::Trapped,
        Reasons::all(),
        Generation(u32::MAX),
        (0..VECTORS_MAX).map(|_| vector),
        &mut buffer,
    )
    .unwrap();
    let answer = ConfigureAnswer::decode(&buffer[..used]).unwrap();
    assert_eq!((answer.granted, answer.reasons), (VECTORS_MAX, Reasons::all()));
    assert!(answer.vectors.iter().all(|item| item == Ok(vector)));
    let state = VectorState {
        assigned: true,
        guest_message: Some(GuestMessage { address: u64::MAX, data: u32::MAX }),
        table_message,
        masked: true,
        pending: true,
    };
    let one = QueryVectorsAnswer::encode(Generation(0), [state].into_iter(), &mut buffer).unwrap();
    assert!(one - 2 <= VectorState::ENCODED_MAX);
}

#[test]
fn a_grant_of_nothing_is_no_answer() {
    let mut buffer = [0; 16];
    let used = ConfigureAnswer::encode(
        TableMode::Direct,
        Reasons::empty(),
        Generation(1),
        core::iter::empty(),
        &mut buffer,
    )
    .unwrap();
    assert_eq!(ConfigureAnswer::decode(&buffer[..used]).err(), Some(DecodeError::Malformed));
}

#[test]
fn calls_without_a_body_refuse_one() {
    for call in [CallId::QueryFunction, CallId::Release, CallId::Restore] {
        assert_eq!(Request::parse(call.number(), &[]).unwrap().call(), call);
        assert!(Request::parse(call.number(), &[0]).is_err());
    }
    assert!(matches!(Request::parse(0, &[]), Err(CallError::NotSupported)));
    assert!(matches!(Request::parse(8, &[]), Err(CallError::NotSupported)));
}

#[test]
fn errors_survive_the_trip_with_their_details() {
    for error in [
        CallError::NotSupported,
        CallError::NoSuchFunction,
        CallError::parameter(Parameter::Sequence),
        CallError::vector(Parameter::Message, 2047),
        CallError::vector(Parameter::SharedMessage, 2047),
        CallError::Busy(Busy { sequence: Sequence(7), delay_us: 100_000 }),
        CallError::NoResources,
        CallError::Denied,
        CallError::Hardware,
    ] {
        assert_eq!(CallError::decode(error.status(), &encoded(&error)), Some(error));
        assert!(error.to_string().contains(error.remedy()));
    }
    for (status, no_body) in [
        (Status::PARAMETER, &[13, 0][..]),
        (Status::PARAMETER, &[]),
        (Status::BUSY, &[1]),
        (Status::NOT_SUPPORTED, &[0]),
        (Status::NO_SUCH_FUNCTION, &[0]),
        (Status::NO_RESOURCES, &[0]),
        (Status::DENIED, &[0]),
    ] {
        let error = CallError::decode(status, no_body);
        assert_eq!(error, Some(CallError::Hardware), "{status:?} {no_body:?}");
    }
    assert_eq!(CallError::decode(Status::SUCCESS, &[]), None);
    assert_eq!(CallError::decode(Status::SENTINEL, &[]), Some(CallError::NotSupported));
    // Nobody has answered, so what follows is still the request.
    assert_eq!(CallError::decode(Status::SENTINEL, &[0]), Some(CallError::NotSupported));
    assert_eq!(CallError::decode(Status(0x1234), &[]), Some(CallError::Hardware));
}

#[test]
fn versions_agree_on_the_lower_minor_of_the_same_major() {
    let version = |major, minor| Version { major, minor };
    assert_eq!(version(1, 3).common(version(1, 0)), Some(version(1, 0)));
    assert_eq!(version(2, 0).common(version(1, 9)), None);
}

#[test]
fn the_offer_is_found_behind_others() {
    let block = ServiceBlock {
        version: Version::CURRENT,
        features: Features::DIRECT,
        doorbell_port: Some(0x5650),
        doorbell_address: Some(0x1_2345_6000),
        limits: Limits { buffer_bytes: 65536, vectors: 2048 },
    };
    let leaves = block.leaves(0x4000_0100);
    let cpuid = |leaf| {
        let other = Leaf { eax: 0x4000_0001, ebx: 0x4b4d_564b, ecx: 0x564b_4d56, edx: 0x4d };
        leaves.iter().find(|(number, _)| *number == leaf).map_or(other, |(_, registers)| *registers)
    };
    assert_eq!(ServiceBlock::find_by_cpuid(cpuid), Some(block));
    assert_eq!(ServiceBlock::find_by_cpuid(|_| Leaf::default()), None);
    let other = ServiceBlock { version: Version { major: 2, minor: 0 }, ..block }.leaves(0);
    let [_, (_, second), ..] = other;
    let another_major = |leaf| if leaf == 0x4000_0101 { second } else { cpuid(leaf) };
    assert_eq!(ServiceBlock::find_by_cpuid(another_major), None, "its doorbell is not ours");
    let truncated = |leaf| Leaf { eax: 0x4000_0101, ..cpuid(leaf) };
    assert_eq!(
        ServiceBlock::find_by_cpuid(truncated),
        None,
        "a block that ends too early is not ours"
    );
    for version in [0, 5, 2 << 16] {
        let other = |leaf| match leaf {
            0x4000_0101 => Leaf { eax: version, ..cpuid(leaf) },
            _ => cpuid(leaf),
        };
        assert_eq!(ServiceBlock::find_by_cpuid(other), None, "another major version");
    }
}

#[test]
fn the_block_is_read_by_smccc_and_only_where_the_host_knows_the_call() {
    let block = ServiceBlock {
        version: Version::CURRENT,
        features: Features::all(),
        doorbell_port: None,
        doorbell_address: Some(0xffff_1234_5678_9000),
        limits: Limits { buffer_bytes: 65536, vectors: 2048 },
    };
    assert_eq!(ServiceBlock::find_by_smccc(|leaf| block.smccc_answer(leaf)), Some(block));
    let signature = block.smccc_answer(0);
    assert_eq!(signature, [0, 0x4d2d_5650_0000_0003, 0x4953, 0]);
    assert_eq!(block.smccc_answer(4), [SmcccStatus::INVALID_PARAMETER.0, 0, 0, 0]);
    let unknown = |_| [SmcccStatus::NOT_SUPPORTED.0, 0, 0, 0];
    assert_eq!(ServiceBlock::find_by_smccc(unknown), None);
    let another = |leaf| match leaf {
        0 => [0, 0x4b4d_564b_0000_0003, 0, 0],
        _ => block.smccc_answer(leaf),
    };
    assert_eq!(ServiceBlock::find_by_smccc(another), None, "somebody else's call");
}

#[test]
fn buffers_are_addressed_by_page() {
    assert_eq!(BufferPage::from_address(0x1000), Some(BufferPage(1)));
    assert_eq!(BufferPage::from_address(0x1001), None);
    assert_eq!(BufferPage::from_address(1 << 44), None);
    assert_eq!(BufferPage(u32::MAX).address(), 0xfff_ffff_f000);
}
