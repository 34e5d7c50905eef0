//! The words of the specification for the values of this crate.

use std::fmt::Debug;

use pvmsi_protocol::*;
use serde_json::{Value, json};

pub(crate) fn version(Version { major, minor }: Version) -> Value {
    json!({"major": major, "minor": minor})
}

pub(crate) fn guest_message(GuestMessage { address, data }: GuestMessage) -> Value {
    json!({"address": hexadecimal(address), "data": data})
}

pub(crate) fn table_message(TableMessage { address, data }: TableMessage) -> Value {
    json!({"address": hexadecimal(address), "data": data})
}

pub(crate) fn features(features: Features) -> Value {
    flags(features.iter_names().map(|(name, _)| name), features.bits(), Features::all().bits())
}

pub(crate) fn reasons(reasons: Reasons) -> Value {
    flags(reasons.names(), reasons.bits(), Reasons::all().bits())
}

pub(crate) fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Msi => "MSI",
        Kind::MsiX => "MSI-X",
    }
}

/// Words are apart in the specification, and joined in the names of variants.
pub(crate) fn parameter(parameter: Parameter) -> String {
    let mut words = String::new();
    for letter in format!("{parameter:?}").chars() {
        if letter.is_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.push(letter.to_ascii_lowercase());
    }
    words
}

/// An enumeration whose names are single words.
pub(crate) fn lower(value: impl Debug) -> String {
    format!("{value:?}").to_lowercase()
}

pub(crate) fn hexadecimal(number: u64) -> String {
    format!("0x{number:X}")
}

/// The named flags in the order of their bits, then the bits without a name.
fn flags<'a>(names: impl Iterator<Item = &'a str>, bits: u32, known: u32) -> Value {
    let unknown = (0..32).filter(|bit| (bits & !known) >> bit & 1 == 1);
    names
        .map(|name| name.to_lowercase().replace('_', "-"))
        .chain(unknown.map(|bit| format!("bit {bit}")))
        .collect()
}
