//! Reading.

use super::{Address, DecodeError, Width, low_half};

/// Bytes enough for a message that is there and a flag, where its address takes 8 and its data 4.
const FLAGGED_MAX: usize = 16;

/// Reads one value after the other from a slice.
///
/// After the first failure the values that it gives mean nothing; [`rest`](Self::rest) and
/// [`end`](Self::end) tell.
#[derive(Clone, Copy, Debug)]
pub struct Decoder<'a> {
    rest: &'a [u8],
    error: Option<DecodeError>,
}

impl<'a> Decoder<'a> {
    /// A decoder that starts at the beginning of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, error: None }
    }

    /// What was not read yet.
    ///
    /// # Errors
    /// The first thing that was wrong with what was read.
    #[inline]
    pub const fn rest(&self) -> Result<&'a [u8], DecodeError> {
        match self.error {
            None => Ok(self.rest),
            Some(error) => Err(error),
        }
    }

    /// Whether nothing follows.
    ///
    /// # Errors
    /// The first thing that was wrong, bytes that follow included.
    #[inline]
    pub const fn end(&self) -> Result<(), DecodeError> {
        match self.rest() {
            Ok([]) => Ok(()),
            Ok(_) => Err(DecodeError::TrailingBytes),
            Err(error) => Err(error),
        }
    }

    /// A boolean, or whether an optional value is there.
    #[inline]
    pub(super) fn flag(&mut self) -> bool {
        let Some((&byte, rest)) = self.rest.split_first() else {
            self.fail(DecodeError::Truncated);
            return false;
        };
        self.rest = rest;
        if byte > 1 {
            self.fail(DecodeError::Malformed);
        }
        byte == 1
    }

    /// A number, one byte after the other.
    pub(super) fn number(&mut self, width: Width) -> u64 {
        let mut number = 0;
        for group in 0..width.bytes {
            let Some((&byte, rest)) = self.rest.split_first() else {
                self.fail(DecodeError::Truncated);
                return 0;
            };
            self.rest = rest;
            number |= u64::from(byte & 0x7f).wrapping_shl(group.wrapping_mul(7));
            let last = group == width.bytes.wrapping_sub(1);
            if byte & 0x80 == 0 && !(last && byte > width.last) {
                return number;
            }
        }
        self.fail(DecodeError::Malformed);
        0
    }

    /// Address and data of a message, which is what long lists consist of.
    #[inline]
    pub(crate) fn message(&mut self) -> (u64, u32) {
        if cfg!(pvmsi_small) {
            return (self.number(Width::U64), low_half(self.number(Width::U32)));
        }
        if let Some((address, rest)) = leading_long(self.rest)
            && let Some((data, rest)) = leading_short(rest)
        {
            self.rest = rest;
            return (address, data);
        }
        // By value: what is lent to a function that is not inlined lives in memory.
        let (message, after) = message_bytewise(*self);
        *self = after;
        message
    }

    /// A message that can be absent and a flag, in a list where an item before had the address `known`.
    #[inline(always)]
    pub(crate) fn flagged_message(&mut self, known: &mut Address) -> (Option<(u64, u32)>, bool) {
        if !cfg!(pvmsi_small)
            && let Some((message, flag, rest)) = leading_flagged_message(self.rest, known)
        {
            self.rest = rest;
            return (Some(message), flag);
        }
        (self.flag().then(|| self.message()), self.flag())
    }

    /// The first failure is the one that counts.
    #[inline]
    pub(crate) fn fail(&mut self, error: DecodeError) {
        self.error = Some(first(self.error, error));
    }
}

/// The number that `bytes` begins with, and what follows it. `None` where the number is longer than
/// 8 bytes, or there are fewer than 8.
#[inline(always)]
fn leading_long(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let Address { number, length, .. } =
        Address::leading(u64::from_le_bytes(*bytes.first_chunk()?))?;
    Some((number, bytes.get(length..)?))
}

/// The number that `bytes` begins with, and what follows it: data is short. `None` where the number
/// is longer than 3 bytes, or there are fewer than 3.
#[inline(always)]
fn leading_short(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let mut number = 0;
    for (before, byte) in bytes.first_chunk::<3>()?.iter().enumerate() {
        number |= u32::from(byte & 0x7f) << [0, 7, 14].get(before)?;
        if byte & 0x80 == 0 {
            return Some((number, bytes.get(before.saturating_add(1)..)?));
        }
    }
    None
}

/// A message that is there and a flag, and what follows, with one look at whether there are bytes
/// enough. `None` where a number is longer than what is read at once, or something is wrong.
#[inline(always)]
fn leading_flagged_message<'a>(
    bytes: &'a [u8],
    known: &mut Address,
) -> Option<((u64, u32), bool, &'a [u8])> {
    let [1, a0, a1, a2, a3, a4, a5, a6, a7, ..] = *bytes.first_chunk::<FLAGGED_MAX>()? else {
        return None;
    };
    let word = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
    if !known.leads(word) {
        *known = Address::leading(word)?;
    }
    let behind = bytes.get(known.length.wrapping_add(1)..)?;
    let [d0, d1, d2, ..] = behind.first_chunk::<4>()?.map(u32::from);
    let (data, flag, length) = if d0 & 0x80 == 0 {
        (d0, d1, 2)
    } else if d1 & 0x80 == 0 {
        (d0 & 0x7f | d1 << 7, d2, 3)
    } else {
        return None;
    };
    (flag <= 1).then_some(((known.number, data), flag == 1, behind.get(length..)?))
}

#[cold]
#[inline(never)]
fn message_bytewise(mut from: Decoder<'_>) -> ((u64, u32), Decoder<'_>) {
    let address = from.number(Width::U64);
    let data = from.number(Width::U32);
    ((address, low_half(data)), from)
}

/// Not inlined: the way of good bodies stays straight.
#[cold]
#[inline(never)]
fn first(known: Option<DecodeError>, error: DecodeError) -> DecodeError {
    known.unwrap_or(error)
}
