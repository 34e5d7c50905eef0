//! The test vectors of the specification (`spec/vectors`): each is decoded, and encoded again.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

#[path = "vectors/body.rs"]
mod body;
#[path = "vectors/buffer.rs"]
mod buffer;
#[path = "vectors/file.rs"]
mod file;
#[path = "vectors/plain.rs"]
mod plain;
#[path = "vectors/words.rs"]
mod words;

use std::collections::HashSet;

use body::Decoded;
use pvmsi_protocol::*;
use serde_json::{Value, json};

/// What becomes of a vector's bytes.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// They have a meaning, and that meaning has bytes. Some statuses are taken for another one.
    Means { value: Value, encoded: Vec<u8>, taken_as: Option<&'static str> },
    /// They are no encoding of anything.
    Undecodable(DecodeError),
    /// The host answers nothing: the sentinel stays.
    Unanswered,
    /// The host answers *not supported*.
    NotSupported,
    /// The host answers a parameter error.
    Refused(Parameter),
    /// The guest takes the answer for a hardware error; why, its half does not say.
    HardwareError,
    /// The guest finds no service.
    Ignored,
}

impl From<Decoded> for Outcome {
    fn from(decoded: Decoded) -> Self {
        match decoded {
            Ok((value, encoded)) => Self::Means { value, encoded, taken_as: None },
            Err(error) => Self::Undecodable(error),
        }
    }
}

#[test]
fn every_vector_is_as_stated() {
    let mut failures = Vec::new();
    for (file, vector) in file::read_all() {
        let bytes = file::bytes(&vector["bytes"]);
        let outcome = outcome(&vector, &bytes);
        if let Err(problem) = compare(&vector, &bytes, outcome) {
            failures.push(format!("{file}: {}: {problem}", vector["name"]));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_vector_is_well_formed() {
    const KEYS: &str = "name clauses type direction call status base bytes meaning canonical error \
                        parameter taken-as";
    let mut names = HashSet::new();
    for (file, vector) in file::read_all() {
        let name = vector["name"].as_str().unwrap().to_owned();
        let place = format!("{file}: {name}");
        let kebab = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        assert!(name.split('-').all(kebab), "{place}: not in kebab case");
        assert!(!vector["clauses"].as_array().unwrap().is_empty(), "{place}: no clause");
        let has = |key| vector.get(key).is_some();
        assert!(has("meaning") != has("error"), "{place}: a meaning or an error");
        let whole = ["header", "body", "buffer"].contains(&vector["type"].as_str().unwrap());
        assert_eq!(has("direction"), whole, "{place}: direction");
        for key in vector.as_object().unwrap().keys() {
            let key = key.replace(' ', "-");
            assert!(KEYS.split(' ').any(|known| known == key), "{place}: {key}");
        }
        assert!(names.insert(name), "{place}: the name is taken");
    }
    assert!(names.len() >= 150, "{} vectors", names.len());
}

/// Whether the outcome is the stated one.
fn compare(vector: &Value, bytes: &[u8], outcome: Outcome) -> Result<(), String> {
    let text = |key: &str| vector[key].as_str();
    let stated = match (text("error"), text("parameter"), text("taken as")) {
        (None, None, taken) => {
            let Outcome::Means { value, encoded, taken_as } = &outcome else {
                return Err(format!("{outcome:?}"));
            };
            let canonical = vector["canonical"].as_bool().unwrap_or(true);
            return if *value != file::meaning(&vector["meaning"], None) || *taken_as != taken {
                Err(format!("means {value}, taken as {taken_as:?}"))
            } else if (encoded == bytes) != canonical {
                Err(format!("encodes as {encoded:02X?}"))
            } else {
                Ok(())
            };
        }
        (Some("unanswered"), None, None) => outcome == Outcome::Unanswered,
        (Some("not supported"), None, None) => outcome == Outcome::NotSupported,
        (Some("ignored"), None, None) => outcome == Outcome::Ignored,
        (Some("refused"), Some(parameter), None) => match &outcome {
            Outcome::Refused(refused) => words::parameter(*refused) == parameter,
            // The host refuses that by what the request says, not by how it is encoded.
            outcome => {
                matches!(outcome, Outcome::Means { .. })
                    && ["count", "duplicate vector"].contains(&parameter)
            }
        },
        (Some(error), parameter, taken) => match &outcome {
            Outcome::HardwareError => taken == Some("hardware error"),
            // That a host answers *body* is checked where the body is parsed.
            Outcome::Undecodable(found) => {
                let expected = match error {
                    "truncated" => DecodeError::Truncated,
                    "trailing bytes" => DecodeError::TrailingBytes,
                    _ => DecodeError::Malformed,
                };
                let answered = match text("direction") {
                    Some("request") => (Some("body"), None),
                    Some(_) => (None, Some("hardware error")),
                    None => (None, None),
                };
                *found == expected && (parameter, taken) == answered
            }
            _ => false,
        },
        _ => false,
    };
    if stated { Ok(()) } else { Err(format!("{outcome:?}")) }
}

/// What this crate makes of the bytes.
fn outcome(vector: &Value, bytes: &[u8]) -> Outcome {
    let text = |key: &str| vector[key].as_str();
    let request = text("direction") == Some("request");
    let result = match text("type").unwrap() {
        "header" if request => buffer::request_header(bytes).map(|header| buffer::means(&header)),
        "header" => buffer::answer_header(bytes).map(|header| buffer::answer_means(&header)),
        "buffer" if request => buffer::request(bytes),
        "buffer" => buffer::answer(bytes),
        "body" if request => Ok(buffer::request_body(buffer::call(text("call").unwrap()), bytes)),
        "body" => {
            let status = buffer::status(text("status").unwrap_or("success"));
            Ok(buffer::answer_body(status, text("call").map(buffer::call), bytes))
        }
        "service block" => service_block(text("base").unwrap(), bytes),
        name => Ok(plain::decode(name, bytes).into()),
    };
    result.unwrap_or_else(|refusal| refusal)
}

/// The block by whichever carrier has this base: CPUID, or SMCCC from 0 on.
fn service_block(base: &str, bytes: &[u8]) -> Result<Outcome, Outcome> {
    let base = u32::from_str_radix(base.strip_prefix("0x").unwrap(), 16).unwrap();
    let words: Vec<u32> =
        bytes.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
    let leaves: Vec<Leaf> = words
        .chunks(4)
        .map(|word| Leaf { eax: word[0], ebx: word[1], ecx: word[2], edx: word[3] })
        .collect();
    let leaf = |number: u32| {
        let index = number.checked_sub(base).and_then(|index| usize::try_from(index).ok());
        index.and_then(|index| leaves.get(index).copied()).unwrap_or_default()
    };
    let pair = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
    let found = if base == 0 {
        ServiceBlock::find_by_smccc(|number| {
            let Leaf { eax, ebx, ecx, edx } = leaf(u32::try_from(number).unwrap());
            [SmcccStatus::SUCCESS.0, pair(eax, ebx), pair(ecx, edx), 0]
        })
    } else {
        ServiceBlock::find_by_cpuid(leaf)
    };
    let block = found.ok_or(Outcome::Ignored)?;
    let value = json!({
        "version": words::version(block.version), "features": words::features(block.features),
        "I/O port": block.doorbell_port.unwrap_or(0),
        "doorbell register": words::hexadecimal(block.doorbell_address.unwrap_or(0)),
        "largest buffer": block.limits.buffer_bytes, "vectors": block.limits.vectors,
    });
    let leaves = block.leaves(base);
    let words = leaves.iter().flat_map(|(_, leaf)| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]);
    let encoded = words.flat_map(u32::to_le_bytes).collect();
    Ok(Outcome::Means { value, encoded, taken_as: None })
}
