//! Answers and service blocks: what the C side makes of each test vector is what the vector states.

use pvmsi_conformance::guest::linux::wire::{Client, Configure, Service};
use pvmsi_protocol::*;
use serde_json::{Value, json};

use super::session::{Flush, LARGEST, Reply, Session};
use super::{body, file, words};

const FUNCTION: FunctionId = FunctionId(0x08);

const STATUSES: [(u32, &str); 8] = [
    (0x00, "success"),
    (0x10, "not supported"),
    (0x20, "no such function"),
    (0x30, "parameter"),
    (0x40, "busy"),
    (0x50, "no resources"),
    (0x60, "denied"),
    (0x70, "hardware error"),
];

fn status(name: &str) -> u32 {
    STATUSES.into_iter().find(|(_, known)| *known == name).unwrap().0
}

/// Makes a call and returns what was answered, under the names of the specification.
fn ask<R: Fn(u32)>(client: &mut Client<R>, call: CallId) -> Result<Value, CallError> {
    let encoded = match call {
        CallId::Negotiate => encoded(&client.negotiate(Features::all())?),
        CallId::QueryFunction => encoded(&client.query_function(FUNCTION)?),
        CallId::QueryVectors => {
            let (generation, states) = client.query_vectors(FUNCTION, 0, u16::MAX)?;
            let states: Vec<_> = states.collect();
            filled(|buffer| QueryVectorsAnswer::encode(generation, states.into_iter(), buffer))
        }
        CallId::Configure => {
            let mut configure = Configure::new(Kind::MsiX, u16::MAX, Sequence::START, []).unwrap();
            let (configured, answers) = client.configure(FUNCTION, &mut configure)?;
            let answers: Vec<_> = answers.collect();
            assert_eq!(answers.len(), usize::from(configured.granted));
            let (mode, reasons) = (configured.mode, configured.reasons);
            let generation = configured.generation;
            filled(|buffer| {
                ConfigureAnswer::encode(mode, reasons, generation, answers.into_iter(), buffer)
            })
        }
        CallId::Update => {
            let message = GuestMessage { address: 0xfee0_0000, data: 0x41 };
            let update = VectorUpdate { vector: VectorIndex(0), message };
            encoded(&UpdateAnswer { generation: client.update(FUNCTION, [update])? })
        }
        CallId::Release => encoded(&ReleaseAnswer { generation: client.release(FUNCTION)? }),
        CallId::Restore => encoded(&client.restore(FUNCTION)?),
    };
    Ok(body::answer(call, &encoded).unwrap().0)
}

fn encoded(answer: &impl Encode) -> Vec<u8> {
    filled(|buffer| answer.encode(buffer))
}

fn filled(encode: impl FnOnce(&mut [u8]) -> Result<usize, EncodeError>) -> Vec<u8> {
    let mut bytes = vec![0; 0x2_0000];
    let used = encode(&mut bytes).unwrap();
    bytes.truncate(used);
    bytes
}

/// Makes a call that is answered so.
fn answered(call: CallId, reply: Reply) -> Result<Value, CallError> {
    let (session, mut client) = Session::new(LARGEST, Flush::End);
    session.reply(reply);
    let result = ask(&mut client, call);
    assert_eq!(session.rings(), 1);
    result
}

/// Whether a result is as a vector states: `status` is the answer's, `meaning` that of its body.
fn compare(
    vector: &Value,
    status: Option<&str>,
    meaning: Option<&Value>,
    result: &Result<Value, CallError>,
) -> bool {
    let taken = vector.get("taken as").map(|taken| taken.as_str().unwrap());
    match (taken.or(status).unwrap(), result) {
        ("success", Ok(value)) => meaning == Some(value),
        ("not supported", Err(CallError::NotSupported)) => true,
        ("no such function", Err(CallError::NoSuchFunction)) => true,
        ("no resources", Err(CallError::NoResources)) => true,
        ("denied", Err(CallError::Denied)) => true,
        ("hardware error", Err(CallError::Hardware)) => true,
        ("parameter", Err(error @ CallError::Parameter(_)))
        | ("busy", Err(error @ CallError::Busy(_))) => meaning == Some(&body::error(*error).0),
        _ => false,
    }
}

fn call(name: &str) -> Option<CallId> {
    CallId::ALL.into_iter().find(|call| call.name() == name)
}

/// Vectors of answers of a type, with their bytes.
fn answers(kind: &str) -> Vec<(Value, Vec<u8>)> {
    let vectors = file::read_all().into_iter().map(|(_, vector)| vector);
    vectors
        .filter(|vector| vector["type"] == kind && vector["direction"] == "answer")
        .map(|vector| {
            let bytes = file::bytes(&vector["bytes"]);
            (vector, bytes)
        })
        .collect()
}

/// A busy answer makes sense for `configure` alone, the other errors for all calls.
fn calls_for(vector: &Value) -> Vec<CallId> {
    match vector["call"].as_str() {
        Some(name) => vec![call(name).unwrap()],
        None if vector["status"] == "busy" => vec![CallId::Configure],
        None => CallId::ALL.to_vec(),
    }
}

#[test]
fn bodies() {
    let mut seen = 0;
    for (vector, bytes) in answers("body") {
        let status_name = vector["status"].as_str().unwrap_or("success");
        let meaning = vector.get("meaning").map(|meaning| file::meaning(meaning, None));
        for call in calls_for(&vector) {
            let reply = Reply::Body(status(status_name), bytes.clone());
            let result = answered(call, reply);
            let name = &vector["name"];
            if vector["name"] == "negotiate-answer-largest-values" {
                // It is decoded; but nobody has named a version as high.
                assert_eq!(result, Err(CallError::NotSupported));
            } else {
                let good = compare(&vector, Some(status_name), meaning.as_ref(), &result);
                assert!(good, "{name}, {}: {result:?}", call.name());
            }
            seen += 1;
        }
    }
    assert!(seen >= 200, "{seen} answers");
}

#[test]
fn buffers() {
    let mut seen = 0;
    for (vector, bytes) in answers("buffer") {
        let header = Header::from_bytes(bytes.first_chunk().unwrap());
        let call = CallId::from_number(header.call).unwrap_or(CallId::Release);
        let meaning = vector.get("meaning").map(|meaning| file::meaning(meaning, None));
        let status = meaning.as_ref().and_then(|meaning| meaning["header"]["status"].as_str());
        let body = meaning.as_ref().map(|meaning| &meaning["body"]);
        let result = answered(call, Reply::Bytes(bytes));
        assert!(compare(&vector, status, body, &result), "{}: {result:?}", vector["name"]);
        seen += 1;
    }
    assert!(seen >= 15, "{seen} buffers");
}

#[test]
fn headers() {
    let mut seen = 0;
    for (vector, bytes) in answers("header") {
        let header = Header::from_bytes(bytes.first_chunk().unwrap());
        let status = vector["meaning"]["status"].as_str();
        let call = if status == Some("busy") { CallId::Configure } else { CallId::Release };
        // Generation 7; the parameter *body*, of no vector; sequence 1, 300 us.
        let (body, meaning) = match status {
            Some("success") => (vec![7], json!({"generation": 7})),
            Some("parameter") => (vec![4, 0], json!({"parameter": "body", "vector": null})),
            Some("busy") => (vec![1, 0xac, 2], json!({"sequence": 1, "delay": 300})),
            _ => (vec![], json!({})),
        };
        let stated = usize::try_from(header.body_length).unwrap();
        assert!(vector.get("error").is_some() || stated == body.len(), "{}", vector["name"]);
        let result = answered(call, Reply::Bytes([bytes, body].concat()));
        let good = compare(&vector, status, Some(&meaning), &result);
        assert!(good, "{}: {result:?}", vector["name"]);
        seen += 1;
    }
    assert!(seen >= 15, "{seen} headers");
}

/// An answer that has one value of a type in it.
struct Frame {
    call: CallId,
    status: &'static str,
    before: &'static [u8],
    after: &'static [u8],
    /// Where the value is in what the answer means.
    place: &'static str,
}

impl Frame {
    fn of(kind: &str) -> Option<Self> {
        let configure = |before, after, place| Frame {
            call: CallId::Configure,
            status: "success",
            before,
            after,
            place,
        };
        let query = |before, after, place| Frame {
            call: CallId::QueryFunction,
            ..configure(before, after, place)
        };
        let restore = |before, after, place| Frame {
            call: CallId::Restore,
            ..configure(before, after, place)
        };
        let parameter =
            |before, after, place| Frame { status: "parameter", ..restore(before, after, place) };
        Some(match kind {
            "u16" => query(&[], &[0, 0, 0, 1, 0, 0], "/MSI vectors"),
            "u32" => restore(&[0, 1], &[], "/generation"),
            "u64" => configure(&[1, 1, 0, 0, 1, 1], &[0, 0], "/vectors/0/table message/address"),
            "boolean" => configure(&[1, 1, 0, 0, 1, 0], &[], "/vectors/0/pending"),
            "optional u16" => parameter(&[8], &[], "/vector"),
            "message" => configure(&[1, 1, 0, 0, 1, 1], &[0], "/vectors/0/table message"),
            "table mode" => restore(&[], &[1, 0], "/mode"),
            "delivery" => query(&[0, 0, 0, 0, 1, 0], &[], "/delivery"),
            "parameter" => parameter(&[], &[0], "/parameter"),
            "features" => Frame {
                call: CallId::Negotiate,
                ..configure(&[1, 0], &[0x80, 0x20, 1], "/features")
            },
            "reasons" => restore(&[0], &[0], "/reasons"),
            // In requests alone.
            "kind" => return None,
            other => panic!("no such type: {other}"),
        })
    }
}

/// Features that 1.0 does not have, the C side leaves out (G-107).
fn without_unknown_features(features: &Value) -> Value {
    let named = |name: &&Value| !name.as_str().unwrap().starts_with("bit ");
    features.as_array().unwrap().iter().filter(named).cloned().collect()
}

#[test]
fn single_values() {
    let mut seen = 0;
    for (_, vector) in file::read_all() {
        let kind = vector["type"].as_str().unwrap();
        if ["header", "body", "buffer", "service block"].contains(&kind) {
            continue;
        }
        let Some(frame) = Frame::of(kind) else { continue };
        // A byte behind a value is the start of the next one, where there is a next one.
        if vector["error"] == "trailing bytes" && !frame.after.is_empty() {
            continue;
        }
        let name = &vector["name"];
        let mut bytes = [frame.before, &file::bytes(&vector["bytes"])].concat();
        if vector["error"] != "truncated" {
            bytes.extend(frame.after);
        }
        let result = answered(frame.call, Reply::Body(status(frame.status), bytes));
        let value = match (frame.status, result) {
            ("success", Ok(value)) => Some(value),
            ("parameter", Err(error @ CallError::Parameter(_))) => Some(body::error(error).0),
            (_, result) => {
                assert_eq!(result, Err(CallError::Hardware), "{name}");
                None
            }
        };
        let value = value.map(|value| value.pointer(frame.place).unwrap().clone());
        let stated = vector.get("meaning").map(|meaning| match kind {
            "features" => without_unknown_features(meaning),
            _ => file::meaning(meaning, None),
        });
        assert_eq!(value, stated, "{name}");
        seen += 1;
    }
    assert!(seen >= 60, "{seen} values");
}

#[test]
fn service_blocks() {
    let mut seen = 0;
    for (_, vector) in file::read_all() {
        if vector["type"] != "service block" {
            continue;
        }
        let name = &vector["name"];
        let base = vector["base"].as_str().unwrap().trim_start_matches("0x");
        let base = u32::from_str_radix(base, 16).unwrap();
        let bytes = file::bytes(&vector["bytes"]);
        let word = |at: usize| u32::from_le_bytes(*bytes[at * 4..].first_chunk().unwrap());
        let leaf = |number: u32| {
            let at = usize::try_from(number).unwrap() * 4;
            [word(at), word(at + 1), word(at + 2), word(at + 3)]
        };
        let found = if base == 0 {
            Service::find_by_smccc(|number| {
                let [w0, w1, w2, w3] = leaf(number).map(u64::from);
                [0, w1 << 32 | w0, w3 << 32 | w2]
            })
        } else {
            Service::find_by_cpuid(|number| {
                let inside = number.checked_sub(base).filter(|number| *number < 4);
                let [eax, ebx, ecx, edx] = inside.map(leaf).unwrap_or_default();
                Leaf { eax, ebx, ecx, edx }
            })
        };
        let value = found.map(|service| {
            assert_eq!(service.smccc, base == 0, "{name}");
            json!({
                "version": words::version(service.version),
                "features": words::features(service.features),
                "I/O port": service.port.unwrap_or(0),
                "doorbell register": words::hexadecimal(service.address.unwrap_or(0)),
                "largest buffer": service.limits.0,
                "vectors": service.limits.1,
            })
        });
        let stated = vector.get("meaning").cloned().map(|mut meaning| {
            meaning["features"] = without_unknown_features(&meaning["features"]);
            meaning
        });
        assert!(stated.is_some() || vector["error"] == "ignored", "{name}");
        assert_eq!(value, stated, "{name}");
        seen += 1;
    }
    assert!(seen >= 20, "{seen} service blocks");
}

#[test]
fn a_host_without_smccc_calls() {
    let mut calls = 0;
    let found = Service::find_by_smccc(|_| {
        calls += 1;
        [u64::MAX, 0, 0]
    });
    assert_eq!((found, calls), (None, 1));
}
