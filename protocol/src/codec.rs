//! How values stand in bodies: chapter 3 of the specification, which is a part of [postcard](https://postcard.jamesmunro.net/).
//!
//! Values are written and read one after the other, without an allocator. The
//! first thing that goes wrong is kept, what follows has no effect, and it is
//! asked for once at the end: a body is checked as a whole, not field by field.

use core::fmt;

pub(crate) use self::address::Address;
pub use self::decoder::Decoder;
pub use self::encoder::Encoder;
pub use self::list::{List, ListIter};

mod address;
mod decoder;
mod encoder;
mod list;
mod plain;

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

/// A type of chapter 3: how a value of it is written and read.
pub trait Value: Sized {
    /// Appends the value.
    fn put(&self, to: &mut Encoder<'_>);

    /// Reads the next value. What it is means nothing where the decoder has failed.
    fn take(from: &mut Decoder<'_>) -> Self;

    /// Appends the value as an item of a list; what it needs of the items before is in `known`.
    #[doc(hidden)]
    #[inline(always)]
    fn put_item(&self, to: &mut Encoder<'_>, _known: &mut Address) {
        self.put(to);
    }

    /// Reads the next item of a list.
    #[doc(hidden)]
    #[inline(always)]
    fn take_item(from: &mut Decoder<'_>, _known: &mut Address) -> Self {
        Self::take(from)
    }
}

/// W-302: how many bytes a number takes at most, and the largest last one of so many.
#[derive(Clone, Copy)]
struct Width {
    bytes: u32,
    last: u8,
}

impl Width {
    const U16: Self = Self { bytes: 3, last: 0x03 };
    const U32: Self = Self { bytes: 5, last: 0x0f };
    const U64: Self = Self { bytes: 10, last: 0x01 };
}

/// A number that was read as a u32 is none that is larger.
const fn low_half(number: u64) -> u32 {
    let [b0, b1, b2, b3, ..] = number.to_le_bytes();
    u32::from_le_bytes([b0, b1, b2, b3])
}

/// Decodes a body that is a single value and nothing after it.
pub(crate) fn decode_whole<T: Value>(bytes: &[u8]) -> Result<T, DecodeError> {
    let mut decoder = Decoder::new(bytes);
    let value = T::take(&mut decoder);
    decoder.end()?;
    Ok(value)
}

/// Implements [`Value`] for structures: their fields in this order, nothing between or after.
macro_rules! structure {
    ($($type:ident { $($field:tt),+ })+) => {$(
        impl $crate::codec::Value for $type {
            #[inline(always)]
            fn put(&self, to: &mut $crate::Encoder<'_>) {
                $($crate::codec::Value::put(&self.$field, to);)+
            }

            #[inline(always)]
            fn take(from: &mut $crate::codec::Decoder<'_>) -> Self {
                $type { $($field: $crate::codec::Value::take(from)),+ }
            }
        }
    )+};
}
pub(crate) use structure;

/// Implements [`Value`] for messages.
macro_rules! messages {
    ($($type:ident),+) => {$(
        impl $crate::codec::Value for $type {
            #[inline]
            fn put(&self, to: &mut $crate::Encoder<'_>) {
                to.message(self.address, self.data);
            }

            #[inline]
            fn take(from: &mut $crate::codec::Decoder<'_>) -> Self {
                let (address, data) = from.message();
                $type { address, data }
            }
        }
    )+};
}
pub(crate) use messages;

/// Implements [`Value`] for structures of a message that can be absent and a flag: the items of the
/// longest lists.
macro_rules! flagged_messages {
    ($($type:ident { $message:ident: $kind:ident, $flag:ident })+) => {$(
        impl $crate::codec::Value for $type {
            #[inline(always)]
            fn put(&self, to: &mut $crate::Encoder<'_>) {
                self.put_item(to, &mut { $crate::codec::Address::ZERO });
            }

            #[inline(always)]
            fn take(from: &mut $crate::codec::Decoder<'_>) -> Self {
                Self::take_item(from, &mut { $crate::codec::Address::ZERO })
            }

            #[inline(always)]
            fn put_item(&self, to: &mut $crate::Encoder<'_>, known: &mut $crate::codec::Address) {
                let message = self.$message.map(|message| (message.address, message.data));
                to.flagged_message(message, self.$flag, known);
            }

            #[inline(always)]
            fn take_item(
                from: &mut $crate::codec::Decoder<'_>,
                known: &mut $crate::codec::Address,
            ) -> Self {
                let (message, $flag) = from.flagged_message(known);
                let $message = message.map(|(address, data)| $kind { address, data });
                $type { $message, $flag }
            }
        }
    )+};
}
pub(crate) use flagged_messages;

/// Implements [`Value`] for enumerations: the number of a variant is its place in this list.
macro_rules! enumeration {
    ($($type:ident { $first:ident $(, $variant:ident)+ })+) => {$(
        impl $crate::codec::Value for $type {
            #[inline]
            fn put(&self, to: &mut $crate::Encoder<'_>) {
                $crate::codec::Value::put(&(*self as u32), to);
            }

            #[inline]
            fn take(from: &mut $crate::codec::Decoder<'_>) -> Self {
                let number: u32 = $crate::codec::Value::take(from);
                let variants = [Self::$first $(, Self::$variant)+];
                let variant = usize::try_from(number).ok().and_then(|place| variants.get(place));
                if variant.is_none() {
                    from.fail($crate::DecodeError::Malformed);
                }
                variant.copied().unwrap_or(Self::$first)
            }
        }
    )+};
}
pub(crate) use enumeration;

/// Implements [`Value`] for flags: their bits, those that nobody knows included.
macro_rules! flags {
    ($($type:ident),+) => {$(
        impl $crate::codec::Value for $type {
            #[inline]
            fn put(&self, to: &mut $crate::Encoder<'_>) {
                $crate::codec::Value::put(&self.bits(), to);
            }

            #[inline]
            fn take(from: &mut $crate::codec::Decoder<'_>) -> Self {
                $type::from_bits_retain($crate::codec::Value::take(from))
            }
        }
    )+};
}
pub(crate) use flags;

/// Implements [`Encode`] and an inherent `decode` for bodies that are one plain value.
macro_rules! plain_body {
    ($($type:ty),+ $(,)?) => {$(
        impl $crate::Encode for $type {
            fn encode(&self, buffer: &mut [u8]) -> Result<usize, $crate::EncodeError> {
                let mut encoder = $crate::Encoder::new(buffer);
                encoder.put(self);
                encoder.finish()
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
