//! Requests: the bytes of each test vector that a guest of this version can send.

use std::sync::LazyLock;

use pvmsi_conformance::guest::linux::wire::Configure;
use pvmsi_protocol::*;
use serde_json::Value;

use super::session::{Flush, LARGEST, Session};
use super::{body, file};

/// What became of a request that the C side was told to send.
#[derive(Debug, PartialEq)]
enum Sent {
    /// Header and body, as the host finds them.
    Bytes(Vec<u8>),
    /// The C side has not even rung.
    Refused(CallError),
    /// This guest cannot be told to send that.
    No(&'static str),
}

/// Tells the C side to make a call with a request, in a buffer of this length.
fn send(length: usize, function: FunctionId, request: &Request<'_>) -> Sent {
    let (session, mut client) = Session::new(length, Flush::End);
    let error = match request {
        Request::Negotiate(request) => {
            if request.version != Version::V1_0 {
                return Sent::No("another version");
            }
            client.negotiate(request.features).err()
        }
        Request::QueryFunction => client.query_function(function).err(),
        Request::QueryVectors(QueryVectorsRequest { first, count }) => {
            client.query_vectors(function, *first, *count).err()
        }
        Request::Configure(ConfigureRequest { kind, requested, sequence, vectors }) => {
            let vectors = vectors.iter().map(Result::unwrap);
            let mut configure = Configure::new(*kind, *requested, *sequence, vectors).unwrap();
            client.configure(function, &mut configure).err()
        }
        Request::Update(UpdateRequest { vectors }) => {
            client.update(function, vectors.iter().map(Result::unwrap)).err()
        }
        Request::Release => client.release(function).err(),
        Request::Restore => client.restore(function).err(),
    };
    match session.request() {
        Some(bytes) => {
            // Nobody has answered.
            assert_eq!(error, Some(CallError::NotSupported));
            Sent::Bytes(bytes)
        }
        None => Sent::Refused(error.unwrap()),
    }
}

/// A request that can be decoded, list and all.
fn parse(call: u32, bytes: &[u8]) -> Option<Request<'_>> {
    let request = Request::parse(call, bytes).ok()?;
    body::request(request.call(), bytes).ok()?;
    Some(request)
}

fn call(name: &str) -> Option<CallId> {
    CallId::ALL.into_iter().find(|call| call.name() == name)
}

/// The vectors of requests of a type, with their bytes.
fn requests(kind: &str) -> Vec<(Value, Vec<u8>)> {
    let vectors = file::read_all().into_iter().map(|(_, vector)| vector);
    vectors
        .filter(|vector| vector["type"] == kind && vector["direction"] == "request")
        .map(|vector| {
            let bytes = file::bytes(&vector["bytes"]);
            (vector, bytes)
        })
        .collect()
}

/// A request that a host refuses for its count is refused by the C side, and so.
fn refused(vector: &Value, sent: &Sent) -> bool {
    vector["error"] == "refused"
        && vector["parameter"] == "count"
        && *sent == Sent::Refused(CallError::parameter(Parameter::Count))
}

#[test]
fn bodies() {
    let function = FunctionId(0x08);
    let (mut equal, mut others) = (0, 0);
    for (vector, bytes) in requests("body") {
        let name = &vector["name"];
        let id = call(vector["call"].as_str().unwrap()).unwrap();
        // What cannot be decoded nobody can ask the C side to send.
        let Some(request) = parse(id.number(), &bytes) else {
            assert!(vector.get("error").is_some(), "{name}");
            continue;
        };
        match send(LARGEST, function, &request) {
            Sent::Bytes(sent) => {
                let (header, sent) = sent.split_first_chunk().unwrap();
                let header = Header::from_bytes(header);
                assert_eq!((header.call, header.check_request()), (id.number(), Ok(())), "{name}");
                if vector.get("meaning").is_some() {
                    let canonical = vector["canonical"].as_bool().unwrap_or(true);
                    assert_eq!(sent == bytes, canonical, "{name}: {sent:02X?}");
                }
                assert_eq!(sent, body::request(id, &bytes).unwrap().1, "{name}");
                equal += 1;
            }
            sent if refused(&vector, &sent) => others += 1,
            Sent::No(_) if id == CallId::Negotiate => others += 1,
            sent => panic!("{name}: {sent:?}"),
        }
    }
    assert!(equal >= 30 && others >= 5, "{equal} of the same bytes, {others} others");
}

#[test]
fn buffers() {
    let mut equal = 0;
    for (vector, bytes) in requests("buffer") {
        let name = &vector["name"];
        let (header, body) = bytes.split_first_chunk().unwrap();
        let header = Header::from_bytes(header);
        let whole = usize::try_from(header.body_length).unwrap() == body.len();
        let Some(request) = parse(header.call, body).filter(|_| whole) else {
            assert!(vector.get("error").is_some(), "{name}");
            continue;
        };
        let length = usize::try_from(header.buffer_length).unwrap();
        match send(length, header.function, &request) {
            Sent::Bytes(sent) => {
                assert!(vector.get("meaning").is_some(), "{name}");
                assert_eq!(sent, bytes, "{name}");
                equal += 1;
            }
            sent => assert!(refused(&vector, &sent), "{name}: {sent:?}"),
        }
    }
    assert!(equal >= 8, "{equal} buffers of the same bytes");
}

/// A request of a call whose body has this length.
fn of_length(call: CallId, length: usize) -> Vec<u8> {
    static KNOWN: LazyLock<Vec<(Value, Vec<u8>)>> = LazyLock::new(|| requests("body"));
    let same = |(vector, bytes): &&(Value, Vec<u8>)| {
        let meant = vector.get("meaning").is_some() && vector.get("canonical").is_none();
        vector["call"] == call.name() && meant && bytes.len() == length
    };
    if let Some((_, bytes)) = KNOWN.iter().find(same) {
        return bytes.clone();
    }
    match call {
        // An item has two bytes, or with a message of small numbers four; what comes before has
        // five or six.
        CallId::Configure => {
            let small = Some(GuestMessage { address: 1, data: 2 });
            let setup = |message| VectorSetup { message, masked: true };
            (0..4)
                .find_map(|with| {
                    let items = (length - 6 - 2 * with) / 2;
                    let setups: Vec<_> =
                        (0..items).map(|index| setup(small.filter(|_| index < with))).collect();
                    let mut bytes = vec![0; 0x1_0000];
                    let requested = u16::try_from(items).unwrap();
                    let used = ConfigureRequest::encode(
                        Kind::MsiX,
                        requested,
                        Sequence::START,
                        setups.into_iter(),
                        &mut bytes,
                    );
                    bytes.truncate(used.unwrap());
                    (bytes.len() == length).then_some(bytes)
                })
                .unwrap()
        }
        CallId::Update => {
            let message = GuestMessage { address: 0xfee0_0000, data: 0x141 };
            let update = VectorUpdate { vector: VectorIndex(0), message };
            let mut bytes = vec![0; 32];
            let used = UpdateRequest::encode([update].into_iter(), &mut bytes).unwrap();
            bytes.truncate(used);
            bytes
        }
        call => panic!("{call:?} of {length} bytes"),
    }
}

#[test]
fn headers() {
    let mut equal = 0;
    for (vector, bytes) in requests("header") {
        let name = &vector["name"];
        let header = Header::from_bytes(bytes.first_chunk().unwrap());
        let sendable = CallId::from_number(header.call).filter(|call| {
            let function = *call != CallId::Negotiate || header.function == FunctionId::NONE;
            header.version == Version::V1_0 && function && vector.get("meaning").is_some()
        });
        let Some(call) = sendable else { continue };
        let body = of_length(call, usize::try_from(header.body_length).unwrap());
        let request = parse(header.call, &body).unwrap();
        let length = usize::try_from(header.buffer_length).unwrap();
        match send(length, header.function, &request) {
            Sent::Bytes(sent) => assert_eq!(sent[..Header::SIZE], bytes, "{name}"),
            sent => panic!("{name}: {sent:?}"),
        }
        equal += 1;
    }
    assert!(equal >= 13, "{equal} headers of the same bytes");
}
