//! Values that stand alone: numbers, flags and the other types of chapter 3.

use pvmsi_protocol::{Decoder, Delivery, Encoder, TableMode};
use serde_json::{Value, json};

use super::body::Decoded;
use super::words;

/// The value of a type that the vectors name.
pub(crate) fn decode(name: &str, bytes: &[u8]) -> Decoded {
    match name {
        "u16" => one(bytes, |number: u16| json!(number)),
        "u32" => one(bytes, |number: u32| json!(number)),
        "u64" => one(bytes, |number: u64| json!(words::hexadecimal(number))),
        "boolean" => one(bytes, |value: bool| json!(value)),
        "optional u16" => one(bytes, |value: Option<u16>| json!(value)),
        "message" => one(bytes, words::guest_message),
        "kind" => one(bytes, |kind| json!(words::kind(kind))),
        "table mode" => one(bytes, |mode: TableMode| json!(words::lower(mode))),
        "delivery" => one(bytes, |delivery: Delivery| json!(words::lower(delivery))),
        "parameter" => one(bytes, |parameter| json!(words::parameter(parameter))),
        "features" => one(bytes, words::features),
        "reasons" => one(bytes, words::reasons),
        other => panic!("no such type: {other}"),
    }
}

/// As the crate decodes each of its bodies.
fn one<T: pvmsi_protocol::Value + Copy>(bytes: &[u8], value: impl Fn(T) -> Value) -> Decoded {
    let mut decoder = Decoder::new(bytes);
    let decoded = T::take(&mut decoder);
    decoder.end()?;
    let mut encoded = [0; 32];
    let mut encoder = Encoder::new(&mut encoded);
    encoder.put(&decoded);
    let length = encoder.finish().unwrap();
    Ok((value(decoded), encoded[..length].to_vec()))
}
