//! Postcard bodies without an allocator: an encoder over a slice, and lists that decode while they are iterated.

use core::fmt;
use core::marker::PhantomData;

use serde::{Deserialize, Serialize};

/// Why a value did not fit into the buffer that was given for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncodeError {
    /// The buffer is too short. Use a larger one: 64 KiB always suffices.
    BufferFull,
    /// A list has more than 65,535 items, or fewer than it announced.
    ListLength,
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BufferFull => {
                "the call buffer is too short for this body; 64 KiB always suffices"
            }
            Self::ListLength => "a list's length does not match what was announced",
        })
    }
}

impl core::error::Error for EncodeError {}

/// Why bytes are not the body that they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The bytes end in the middle of a value.
    Truncated,
    /// A value is not one of those that its type allows.
    Malformed,
    /// Bytes follow the last value.
    TrailingBytes,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "the body ends in the middle of a value",
            Self::Malformed => "the body holds a value that its type does not allow",
            Self::TrailingBytes => "bytes follow the end of the body",
        })
    }
}

impl core::error::Error for DecodeError {}

/// A body that can be written into a buffer.
pub trait Encode {
    /// Writes the body to the start of `buffer` and returns its length in bytes.
    ///
    /// # Errors
    /// [`EncodeError::BufferFull`] when `buffer` is too short; its content is then unspecified.
    fn encode(&self, buffer: &mut [u8]) -> Result<usize, EncodeError>;
}

/// Writes one value after the other into a slice.
#[derive(Debug)]
pub struct Encoder<'b> {
    rest: &'b mut [u8],
    used: usize,
}

impl<'b> Encoder<'b> {
    /// An encoder that starts at the beginning of `buffer`.
    pub fn new(buffer: &'b mut [u8]) -> Self {
        Self { rest: buffer, used: 0 }
    }

    /// Appends one value.
    ///
    /// # Errors
    /// [`EncodeError::BufferFull`] when it does not fit; what was written before it stays.
    pub fn put<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), EncodeError> {
        let length =
            postcard::to_slice(value, self.rest).map_err(|_| EncodeError::BufferFull)?.len();
        let rest = core::mem::take(&mut self.rest);
        self.rest = rest.get_mut(length..).ok_or(EncodeError::BufferFull)?;
        self.used = self.used.saturating_add(length);
        Ok(())
    }

    /// Appends a list: its length, then its items.
    ///
    /// # Errors
    /// [`EncodeError::BufferFull`], or [`EncodeError::ListLength`] when the iterator is longer than 65,535 items or misstated its length.
    pub fn put_list<T: Serialize>(
        &mut self,
        items: impl ExactSizeIterator<Item = T>,
    ) -> Result<(), EncodeError> {
        let announced = u16::try_from(items.len()).map_err(|_| EncodeError::ListLength)?;
        self.put(&announced)?;
        let mut seen = 0u16;
        for item in items {
            self.put(&item)?;
            seen = seen.checked_add(1).ok_or(EncodeError::ListLength)?;
        }
        if seen == announced { Ok(()) } else { Err(EncodeError::ListLength) }
    }

    /// How many bytes were written.
    pub fn finish(self) -> usize {
        self.used
    }
}

/// Takes the value at the start of `bytes`; returns it and what follows.
pub(crate) fn take<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<(T, &'a [u8]), DecodeError> {
    postcard::take_from_bytes(bytes).map_err(|error| match error {
        postcard::Error::DeserializeUnexpectedEnd => DecodeError::Truncated,
        _ => DecodeError::Malformed,
    })
}

/// Decodes a body that is a single value and nothing after it.
pub(crate) fn decode_whole<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, DecodeError> {
    match take(bytes)? {
        (value, []) => Ok(value),
        _ => Err(DecodeError::TrailingBytes),
    }
}

/// The list at the end of a body, still encoded.
///
/// Items are decoded one by one as [`iter`](Self::iter) reaches them; the
/// bytes are checked then, not before. A receiver that must not act on half a
/// list walks it once with [`check`](Self::check) first.
pub struct List<'a, T> {
    length: u16,
    bytes: &'a [u8],
    item: PhantomData<fn() -> T>,
}

impl<'a, T: Deserialize<'a>> List<'a, T> {
    /// The list that starts at `bytes` and ends where they end.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let (length, bytes) = take(bytes)?;
        Ok(Self { length, bytes, item: PhantomData })
    }

    /// The number of items that the sender announced.
    pub fn len(&self) -> u16 {
        self.length
    }

    /// Whether the sender announced no item.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Decodes the items in order. After the first error the iterator ends.
    pub fn iter(&self) -> ListIter<'a, T> {
        ListIter { left: self.length, bytes: self.bytes, failed: false, item: PhantomData }
    }

    /// Walks the whole list once.
    ///
    /// # Errors
    /// The first thing that is wrong with it, trailing bytes included.
    pub fn check(&self) -> Result<(), DecodeError> {
        self.iter().try_for_each(|item| item.map(drop))
    }
}

impl<T> Clone for List<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for List<'_, T> {}

impl<T> fmt::Debug for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("List")
            .field("length", &self.length)
            .field("bytes", &self.bytes.len())
            .finish()
    }
}

impl<'a, T: Deserialize<'a>> IntoIterator for List<'a, T> {
    type Item = Result<T, DecodeError>;
    type IntoIter = ListIter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// The items of a [`List`].
#[derive(Debug)]
pub struct ListIter<'a, T> {
    left: u16,
    bytes: &'a [u8],
    failed: bool,
    item: PhantomData<fn() -> T>,
}

impl<'a, T: Deserialize<'a>> Iterator for ListIter<'a, T> {
    type Item = Result<T, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let Some(left) = self.left.checked_sub(1) else {
            if self.bytes.is_empty() {
                return None;
            }
            self.failed = true;
            return Some(Err(DecodeError::TrailingBytes));
        };
        self.left = left;
        match take(self.bytes) {
            Ok((item, rest)) => {
                self.bytes = rest;
                Some(Ok(item))
            }
            Err(error) => {
                self.failed = true;
                Some(Err(error))
            }
        }
    }
}

/// Implements [`Encode`] and an inherent `decode` for bodies that are one plain value.
macro_rules! plain_body {
    ($($type:ty),+ $(,)?) => {$(
        impl $crate::Encode for $type {
            fn encode(&self, buffer: &mut [u8]) -> Result<usize, $crate::EncodeError> {
                let mut encoder = $crate::Encoder::new(buffer);
                encoder.put(self)?;
                Ok(encoder.finish())
            }
        }

        impl $type {
            /// Decodes the body.
            ///
            /// # Errors
            /// [`DecodeError`](crate::DecodeError) when `bytes` is anything but exactly one such body.
            pub fn decode(bytes: &[u8]) -> Result<Self, $crate::DecodeError> {
                $crate::codec::decode_whole(bytes)
            }
        }
    )+};
}
pub(crate) use plain_body;
