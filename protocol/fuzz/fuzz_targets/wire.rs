//! Every decoder of the protocol against a reader of the specification's text.
//!
//! First byte: what is decoded. The rest: the bytes that the other half has sent. A decoder must
//! take exactly what the reader takes, and what it took must be written in the reader's shortest
//! form.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pvmsi_protocol::*;
use pvmsi_protocol_fuzz::{ANSWERS, BUSY, PARAMETER, REQUESTS, canonical};

fuzz_target!(|input: &[u8]| {
    let Some((&selector, bytes)) = input.split_first() else { return };
    let number = selector & 0x0f;
    match selector >> 4 {
        0 => request(number.into(), bytes),
        1 => answer(number, bytes),
        2 => error(number, bytes),
        3 => header(bytes),
        4 => service_block(bytes),
        5 => function(bytes),
        _ => {}
    }
});

fn written(write: impl FnOnce(&mut [u8]) -> Result<usize, EncodeError>) -> Vec<u8> {
    let mut buffer = vec![0; 4 * BUFFER_MAX];
    let used = write(&mut buffer).expect("what was decoded fits");
    buffer.truncate(used);
    buffer
}

fn encoded(body: &impl Encode) -> Vec<u8> {
    written(|buffer| body.encode(buffer))
}

fn items<T: Value>(list: List<'_, T>) -> Vec<T> {
    list.iter().collect::<Result<_, _>>().expect("the list was checked")
}

fn request(call: u32, body: &[u8]) {
    let expected = REQUESTS.get(call as usize).filter(|_| call != 0);
    let expected = expected.map(|fields| canonical(fields, body));
    let bytes = match Request::parse(call, body) {
        Err(error) => {
            let foreseen = match expected {
                None => CallError::NotSupported,
                Some(_) => CallError::parameter(Parameter::Body),
            };
            assert_eq!(error, foreseen);
            assert!(expected.flatten().is_none(), "a good request is refused");
            return;
        }
        Ok(request) => {
            assert_eq!(request.call().number(), call);
            match request {
                Request::Negotiate(request) => encoded(&request),
                Request::QueryFunction | Request::Release | Request::Restore => Vec::new(),
                Request::QueryVectors(request) => encoded(&request),
                Request::Configure(request) => written(|buffer| {
                    let ConfigureRequest { kind, requested, sequence, vectors } = request;
                    let vectors = items(vectors).into_iter();
                    ConfigureRequest::encode(kind, requested, sequence, vectors, buffer)
                }),
                Request::Update(request) => written(|buffer| {
                    UpdateRequest::encode(items(request.vectors).into_iter(), buffer)
                }),
            }
        }
    };
    assert_eq!(expected.flatten(), Some(bytes));
}

fn answer(call: u8, body: &[u8]) {
    let Some(fields) = ANSWERS.get(usize::from(call)).filter(|_| call != 0) else { return };
    let expected = canonical(fields, body);
    let bytes = match call {
        1 => NegotiateAnswer::decode(body).ok().map(|answer| encoded(&answer)),
        2 => QueryFunctionAnswer::decode(body).ok().map(|answer| encoded(&answer)),
        3 => QueryVectorsAnswer::decode(body)
            .ok()
            .filter(|answer| answer.vectors.check().is_ok())
            .map(|QueryVectorsAnswer { generation, vectors }| {
                let vectors = items(vectors).into_iter();
                written(|buffer| QueryVectorsAnswer::encode(generation, vectors, buffer))
            }),
        4 => {
            let answer = ConfigureAnswer::decode(body);
            let answer = answer.ok().filter(|answer| answer.vectors.check().is_ok());
            if answer.is_none() && expected.is_some() {
                // H-440: a grant of nothing, or of another number than the list is long.
                return;
            }
            answer.map(|ConfigureAnswer { granted, mode, reasons, generation, vectors }| {
                assert!(granted > 0 && granted == vectors.len());
                let vectors = items(vectors).into_iter();
                written(|buffer| {
                    ConfigureAnswer::encode(mode, reasons, generation, vectors, buffer)
                })
            })
        }
        5 => UpdateAnswer::decode(body).ok().map(|answer| encoded(&answer)),
        6 => ReleaseAnswer::decode(body).ok().map(|answer| encoded(&answer)),
        _ => RestoreAnswer::decode(body).ok().map(|answer| encoded(&answer)),
    };
    assert_eq!(expected, bytes);
}

fn error(number: u8, body: &[u8]) {
    let status = match number {
        8 => Status::SENTINEL,
        number => Status(u32::from(number) << 4),
    };
    let Some(error) = CallError::decode(status, body) else {
        assert_eq!(status, Status::SUCCESS);
        return;
    };
    let expected = match status {
        Status::PARAMETER => canonical(PARAMETER, body),
        Status::BUSY => canonical(BUSY, body),
        _ => body.is_empty().then(Vec::new),
    };
    match (error, status) {
        (CallError::NotSupported, Status::SENTINEL) => return,
        (CallError::Hardware, Status::HARDWARE_ERROR) => {}
        (CallError::Hardware, _) => {
            let known = status.0 >= 0x10 && status.0 <= 0x60;
            assert!(!known || expected.is_none(), "{status:?} is not understood");
        }
        (error, _) => {
            assert_eq!(error.status(), status);
            assert_eq!(Some(encoded(&error)), expected);
        }
    }
    let again = CallError::decode(error.status(), &encoded(&error));
    assert_eq!(again, Some(error));
}

fn header(bytes: &[u8]) {
    let Some(bytes) = bytes.first_chunk::<{ Header::SIZE }>() else { return };
    let header = Header::from_bytes(bytes);
    assert_eq!(header.to_bytes(), *bytes);
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    assert_eq!((header.call, header.function.0, header.status.0), (word(8), word(12), word(24)));
    let good = bytes.starts_with(b"PMSI")
        && (header.call == 1 || word(4) == 1)
        && (32..=65536).contains(&word(16))
        && word(20) <= word(16) - 32
        && word(28) == 0;
    assert_eq!(header.check_request().is_ok(), good);
    let answered = header.answered(Status::DENIED, 0).to_bytes();
    assert!(answered[..20] == bytes[..20] && answered[28..] == bytes[28..]);
    assert_eq!(
        BufferPage::from_address(BufferPage(header.call).address()).map(|page| page.0),
        Some(header.call)
    );
}

fn service_block(bytes: &[u8]) {
    let Some((base, bytes)) = bytes.split_first_chunk() else { return };
    let base = u32::from_le_bytes(*base);
    let word = |at: usize| {
        let word = bytes.get(4 * at..4 * at + 4).and_then(|word| word.try_into().ok());
        word.map_or(0, u32::from_le_bytes)
    };
    let leaf = |number: u32| {
        let at = number.wrapping_sub(base) as usize % 4 * 4;
        Leaf { eax: word(at), ebx: word(at + 1), ecx: word(at + 2), edx: word(at + 3) }
    };
    if let Some(block) = ServiceBlock::read(base, leaf) {
        assert_eq!(block.version.major, 1, "another major version is not ours");
        let leaves = block.leaves(base);
        let again = ServiceBlock::read(base, |number| {
            leaves
                .into_iter()
                .find(|(at, _)| *at == number)
                .map_or(Leaf::default(), |(_, leaf)| leaf)
        });
        assert_eq!(again, Some(block));
        let by_smccc = ServiceBlock::find_by_smccc(|leaf| block.smccc_answer(leaf));
        assert_eq!(by_smccc, Some(block));
    }
    let _ = ServiceBlock::find_by_smccc(|number| {
        let Leaf { eax, ebx, ecx, edx } = leaf(number as u32);
        [u64::from(eax) & 1, u64::from(ebx) << 32 | u64::from(eax), ecx.into(), edx.into()]
    });
}

fn function(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(function) = text.parse::<FunctionId>() {
        assert_eq!(function.to_string().parse(), Ok(function));
    }
}
