//! Writing.

use core::mem;

use super::{Address, EncodeError, Value};

/// Writes one value after the other into a slice. What stands behind the last one is unspecified.
#[derive(Debug)]
pub struct Encoder<'b> {
    /// What was not written yet.
    rest: &'b mut [u8],
    /// The bytes of all that was given.
    size: usize,
    error: Option<EncodeError>,
}

impl<'b> Encoder<'b> {
    /// An encoder that starts at the beginning of `buffer`.
    pub const fn new(buffer: &'b mut [u8]) -> Self {
        Self { size: buffer.len(), rest: buffer, error: None }
    }

    /// Appends one value.
    #[inline]
    pub fn put<T: Value>(&mut self, value: &T) {
        value.put(self);
    }

    /// Appends a list: its length, then its items.
    #[inline]
    pub fn put_list<T: Value>(&mut self, items: impl ExactSizeIterator<Item = T>) {
        let Ok(announced) = u16::try_from(items.len()) else {
            return self.fail(EncodeError::ListLength);
        };
        self.put(&announced);
        // An encoder that was never lent to a function stays in registers.
        let mut to = Encoder { rest: mem::take(&mut self.rest), ..*self };
        let mut known = Address::ZERO;
        let mut left = announced;
        items.take(announced.into()).for_each(|item| {
            item.put_item(&mut to, &mut known);
            left = left.wrapping_sub(1);
        });
        if left > 0 {
            to.fail(EncodeError::ListLength);
        }
        *self = to;
    }

    /// How many bytes were written.
    ///
    /// # Errors
    /// [`EncodeError::BufferFull`] when not all values fit, [`EncodeError::ListLength`] when a
    /// list is longer than 65,535 items or has fewer than its iterator announced.
    pub const fn finish(self) -> Result<usize, EncodeError> {
        match self.error {
            None => Ok(self.size.saturating_sub(self.rest.len())),
            Some(error) => Err(error),
        }
    }

    #[inline]
    pub(super) fn byte(&mut self, byte: u8) {
        match mem::take(&mut self.rest).split_first_mut() {
            Some((place, rest)) => {
                *place = byte;
                self.rest = rest;
            }
            None => self.fail(EncodeError::BufferFull),
        }
    }

    /// A number, one byte after the other.
    pub(super) fn number(&mut self, mut number: u64) {
        loop {
            let [low, ..] = number.to_le_bytes();
            number >>= 7;
            if number == 0 {
                return self.byte(low);
            }
            self.byte(low | 0x80);
        }
    }

    /// Address and data of a message, which is what long lists consist of.
    #[inline]
    pub(crate) fn message(&mut self, address: u64, data: u32) {
        if cfg!(pvmsi_small) {
            self.number(address);
            return self.number(data.into());
        }
        // Far from the end no byte needs to be checked for room.
        if let Some(room) = self.rest.first_chunk_mut() {
            let length = message_in_room(room, address, data);
            return self.skip(length);
        }
        // By value: what is lent to a function that is not inlined lives in memory.
        let encoder = Encoder { rest: mem::take(&mut self.rest), ..*self };
        *self = message_bytewise(encoder, address, data);
    }

    /// A message that can be absent and a flag, in a list where an item before had the address `known`.
    #[inline(always)]
    pub(crate) fn flagged_message(
        &mut self,
        message: Option<(u64, u32)>,
        flag: bool,
        known: &mut Address,
    ) {
        if !cfg!(pvmsi_small)
            && let Some((address, data)) = message
            && let Some(room) = self.rest.first_chunk_mut()
            && let Some(length) = put_flagged_message(room, address, data, flag, known)
        {
            return self.skip(length);
        }
        self.byte(u8::from(message.is_some()));
        if let Some((address, data)) = message {
            self.message(address, data);
        }
        self.byte(u8::from(flag));
    }

    /// So many bytes are written.
    #[inline(always)]
    fn skip(&mut self, length: usize) {
        self.rest = mem::take(&mut self.rest).get_mut(length..).unwrap_or_default();
    }

    /// The first failure is the one that counts.
    #[inline]
    fn fail(&mut self, error: EncodeError) {
        self.error = Some(first(self.error, error));
    }
}

/// The most bytes of a number of 64 bits.
const NUMBER_MAX: usize = 10;
/// The most bytes of a message: those of its address and 5 of its data.
const MESSAGE_MAX: usize = 15;

/// Room enough for a message that is there and a flag, where its address takes 8 bytes.
const FLAGGED_MAX: usize = 16;

/// Writes a message and says how long it is.
#[inline(never)]
fn message_in_room(room: &mut [u8; MESSAGE_MAX], address: u64, data: u32) -> usize {
    let length = put_number(room, address);
    let room = room.get_mut(length..).unwrap_or_default();
    length.saturating_add(put_number(room, data.into()))
}

/// Writes a message that is there and a flag, and says how long they are. `None` where a number is
/// longer than what is written at once.
#[inline(always)]
fn put_flagged_message(
    room: &mut [u8; FLAGGED_MAX],
    address: u64,
    data: u32,
    flag: bool,
    known: &mut Address,
) -> Option<usize> {
    if known.number != address {
        *known = Address::of(address)?;
    }
    let flag = u32::from(flag);
    let (tail, tail_length) = match data {
        0..0x80 => (data | flag << 8, 2),
        0x80..0x4000 => (data & 0x7f | 0x80 | data >> 7 << 8 | flag << 16, 3),
        _ => return None,
    };
    let [present, room @ ..] = room;
    *present = 1;
    *room.first_chunk_mut()? = known.bytes.to_le_bytes();
    *room.get_mut(known.length..)?.first_chunk_mut()? = tail.to_le_bytes();
    Some(known.length.wrapping_add(tail_length).wrapping_add(1))
}

/// Writes a number to the start of `room`, where there is enough, and says how long it is.
#[inline]
fn put_number(room: &mut [u8], mut number: u64) -> usize {
    let mut length = 0_usize;
    for place in room.iter_mut().take(NUMBER_MAX) {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        length = length.wrapping_add(1);
        if number == 0 {
            *place = low;
            break;
        }
        *place = low | 0x80;
    }
    length
}

#[cold]
#[inline(never)]
fn message_bytewise(mut to: Encoder<'_>, address: u64, data: u32) -> Encoder<'_> {
    to.number(address);
    to.number(data.into());
    to
}

/// Not inlined: the way of bodies that fit stays straight.
#[cold]
#[inline(never)]
fn first(known: Option<EncodeError>, error: EncodeError) -> EncodeError {
    known.unwrap_or(error)
}
