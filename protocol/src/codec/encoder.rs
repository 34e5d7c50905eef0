//! Writing.

use core::mem;

use super::{EncodeError, Value};

/// Writes one value after the other into a slice. What stands behind the last one is unspecified.
#[derive(Debug)]
pub struct Encoder<'b> {
    buffer: &'b mut [u8],
    used: usize,
    error: Option<EncodeError>,
}

impl<'b> Encoder<'b> {
    /// An encoder that starts at the beginning of `buffer`.
    pub const fn new(buffer: &'b mut [u8]) -> Self {
        Self { buffer, used: 0, error: None }
    }

    /// Appends one value.
    #[inline]
    pub fn put<T: Value>(&mut self, value: &T) {
        value.put(self);
    }

    /// Appends a list: its length, then its items.
    #[inline]
    pub fn put_list<T: Value>(&mut self, mut items: impl ExactSizeIterator<Item = T>) {
        let Ok(announced) = u16::try_from(items.len()) else {
            return self.fail(EncodeError::ListLength);
        };
        self.put(&announced);
        // An encoder that was never lent to a function stays in registers.
        let mut to = Encoder { buffer: mem::take(&mut self.buffer), ..*self };
        for _ in 0..announced {
            match items.next() {
                Some(item) => to.put(&item),
                None => {
                    to.fail(EncodeError::ListLength);
                    break;
                }
            }
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
            None => Ok(self.used),
            Some(error) => Err(error),
        }
    }

    #[inline]
    pub(super) fn byte(&mut self, byte: u8) {
        match self.buffer.get_mut(self.used) {
            Some(place) => {
                *place = byte;
                self.used = self.used.wrapping_add(1);
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
        let room = self.buffer.get_mut(self.used..).unwrap_or_default();
        // Far from the end no byte needs to be checked for room.
        if let Some(room) = room.first_chunk_mut() {
            let length = message_in_room(room, address, data);
            self.used = self.used.wrapping_add(length);
            return;
        }
        // By value: what is lent to a function that is not inlined lives in memory.
        let encoder = Encoder { buffer: self.buffer, used: self.used, error: self.error };
        (self.used, self.error) = message_bytewise(encoder, address, data);
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

/// Writes a message and says how long it is.
#[inline(never)]
fn message_in_room(room: &mut [u8; MESSAGE_MAX], address: u64, data: u32) -> usize {
    let length = put_number(room, address);
    let room = room.get_mut(length..).unwrap_or_default();
    length.saturating_add(put_number(room, data.into()))
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
fn message_bytewise(mut to: Encoder<'_>, address: u64, data: u32) -> (usize, Option<EncodeError>) {
    to.number(address);
    to.number(data.into());
    (to.used, to.error)
}

/// Not inlined: the way of bodies that fit stays straight.
#[cold]
#[inline(never)]
fn first(known: Option<EncodeError>, error: EncodeError) -> EncodeError {
    known.unwrap_or(error)
}
