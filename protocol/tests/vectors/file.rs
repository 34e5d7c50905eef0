//! The vectors as they stand in their files, with what is repeated written out.

use std::fs;
use std::path::Path;

use pvmsi_protocol::Encoder;
use serde_json::{Map, Value};

/// All vectors, each with the name of its file.
pub(crate) fn read_all() -> Vec<(String, Value)> {
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let folder = above.map(|folder| folder.join("spec/vectors")).find(|folder| folder.is_dir());
    let folder = folder.unwrap();
    let mut vectors = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let file: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            vectors.extend(
                file["vectors"].as_array().unwrap().iter().map(|v| (name.clone(), v.clone())),
            );
        }
    }
    vectors
}

/// The bytes that `bytes` describes: text, or a list of texts and repetitions.
pub(crate) fn bytes(stated: &Value) -> Vec<u8> {
    match stated {
        Value::String(text) => hex(text),
        Value::Array(parts) => parts.iter().flat_map(bytes).collect(),
        Value::Object(repetition) => numbers(repetition)
            .flat_map(|number| {
                let mut encoded = [0; 3];
                let mut encoder = Encoder::new(&mut encoded);
                encoder.put(&u16::try_from(number).unwrap());
                let length = encoder.finish().unwrap();
                let text = encoded[..length].iter().map(|byte| format!("{byte:02X}"));
                hex(&repetition["bytes"]
                    .as_str()
                    .unwrap()
                    .replace("{n}", &text.collect::<String>()))
            })
            .collect(),
        other => panic!("no bytes: {other}"),
    }
}

/// The meaning that `meaning` describes; `number` takes the place of `{n}`.
pub(crate) fn meaning(stated: &Value, number: Option<u64>) -> Value {
    match stated {
        Value::Object(fields) => {
            fields.iter().map(|(name, field)| (name.clone(), meaning(field, number))).collect()
        }
        Value::Array(items) => Value::Array(
            items
                .iter()
                .flat_map(|item| match item.as_object() {
                    Some(repetition) if repetition.contains_key("repeat") => numbers(repetition)
                        .map(|number| meaning(&repetition["item"], Some(number)))
                        .collect(),
                    _ => vec![meaning(item, number)],
                })
                .collect(),
        ),
        Value::String(text) if text == "{n}" => number.unwrap().into(),
        other => other.clone(),
    }
}

fn numbers(repetition: &Map<String, Value>) -> std::ops::Range<u64> {
    let first = repetition.get("from").map_or(0, |from| from.as_u64().unwrap());
    first..first + repetition["repeat"].as_u64().unwrap()
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|digit| !digit.is_whitespace()).collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}
