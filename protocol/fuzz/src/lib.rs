//! The encoding of the specification's chapter 3, written once more from its text alone.
//!
//! A body is described by the types of its fields. The reader says whether a receiver takes the
//! bytes, and how a sender would have written the same values.

#![forbid(unsafe_code)]

/// A type of chapter 3.
pub enum Field {
    /// A boolean.
    Bool,
    /// A number of at most so many bits.
    Number(u32),
    /// An enumeration with so many numbers, from 0 on.
    Enumeration(u64),
    /// An optional structure.
    Optional(&'static [Field]),
    /// A list of structures.
    List(&'static [Field]),
}

use Field::{Bool, Enumeration, List, Number, Optional};

/// A guest or table message.
const MESSAGE: &[Field] = &[Number(64), Number(32)];

/// Bodies of requests, by number of the call.
pub const REQUESTS: [&[Field]; 8] = [
    &[],
    &[Number(16), Number(16), Number(32)],
    &[],
    &[Number(16), Number(16)],
    &[Enumeration(2), Number(16), Number(32), List(&[Optional(MESSAGE), Bool])],
    &[List(&[Number(16), Number(64), Number(32)])],
    &[],
    &[],
];

/// Bodies of answers, by number of the call.
pub const ANSWERS: [&[Field]; 8] = [
    &[],
    &[Number(16), Number(16), Number(32), Number(32), Number(16)],
    &[Number(16), Number(16), Number(16), Enumeration(2), Number(32), Number(32), Enumeration(3)],
    &[Number(32), List(&[Bool, Optional(MESSAGE), Optional(MESSAGE), Bool, Bool])],
    &[Number(16), Enumeration(2), Number(32), Number(32), List(&[Optional(MESSAGE), Bool])],
    &[Number(32)],
    &[Number(32)],
    &[Enumeration(2), Number(32), Number(32)],
];

/// Body of a parameter error.
pub const PARAMETER: &[Field] = &[Enumeration(13), Optional(&[Number(16)])];

/// Body of a busy error.
pub const BUSY: &[Field] = &[Number(32), Number(32)];

/// The bytes that a sender makes of the values in `body`; `None` where a receiver must refuse it.
pub fn canonical(fields: &[Field], body: &[u8]) -> Option<Vec<u8>> {
    let mut canonical = Vec::new();
    let rest = structure(fields, body, &mut canonical)?;
    rest.is_empty().then_some(canonical)
}

fn structure<'b>(fields: &[Field], body: &'b [u8], out: &mut Vec<u8>) -> Option<&'b [u8]> {
    fields.iter().try_fold(body, |rest, field| read(field, rest, out))
}

fn read<'b>(field: &Field, body: &'b [u8], out: &mut Vec<u8>) -> Option<&'b [u8]> {
    match field {
        Bool => flag(body, out).map(|(_, rest)| rest),
        Number(bits) => number(*bits, body, out).map(|(_, rest)| rest),
        Enumeration(numbers) => {
            let (value, rest) = number(32, body, out)?;
            (value < *numbers).then_some(rest)
        }
        Optional(fields) => match flag(body, out)? {
            (true, rest) => structure(fields, rest, out),
            (false, rest) => Some(rest),
        },
        List(fields) => {
            let (length, rest) = number(16, body, out)?;
            (0..length).try_fold(rest, |rest, _| structure(fields, rest, out))
        }
    }
}

fn flag<'b>(body: &'b [u8], out: &mut Vec<u8>) -> Option<(bool, &'b [u8])> {
    let (&first, rest) = body.split_first()?;
    out.push(first);
    (first <= 1).then_some((first == 1, rest))
}

fn number<'b>(bits: u32, mut body: &'b [u8], out: &mut Vec<u8>) -> Option<(u64, &'b [u8])> {
    let mut value = 0_u128;
    for group in 0..bits.div_ceil(7) {
        let (&byte, rest) = body.split_first()?;
        body = rest;
        value |= u128::from(byte & 0x7f) << (7 * group);
        if byte & 0x80 == 0 {
            let value = u64::try_from(value)
                .ok()
                .filter(|value| value.checked_shr(bits).unwrap_or(0) == 0)?;
            shortest(value, out);
            return Some((value, body));
        }
    }
    None
}

fn shortest(mut value: u64, out: &mut Vec<u8>) {
    while value > 0x7f {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
