//! `configure`: set the interrupts of a function up and ask for the table.

use crate::codec::{Value, flagged_messages, structure};
use crate::{
    DecodeError, Decoder, EncodeError, Encoder, Generation, GuestMessage, Kind, List, Reasons,
    TableMessage, TableMode,
};

/// Names a `configure` that was answered *busy*, so that its repetition continues it. 0 starts a new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Sequence(pub u32);

impl Sequence {
    /// A `configure` that continues nothing.
    pub const START: Self = Self(0);
}

/// How one vector shall start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VectorSetup {
    /// Where the guest wants the interrupt; without it, events are held until an `update` names the vector.
    pub message: Option<GuestMessage>,
    /// The vector's mask bit.
    pub masked: bool,
}

impl VectorSetup {
    /// Assigned, masked and without a message: what vectors beyond the request's list get.
    pub const RESERVED: Self = Self { message: None, masked: true };
}

struct RequestHead {
    kind: Kind,
    requested: u16,
    sequence: Sequence,
}

/// Request of `configure`.
#[derive(Clone, Copy, Debug)]
pub struct ConfigureRequest<'a> {
    /// MSI or MSI-X.
    pub kind: Kind,
    /// How many vectors the guest wants, from vector index 0 on; at least 1.
    pub requested: u16,
    /// [`Sequence::START`], or the number from the *busy* answer that this call repeats.
    pub sequence: Sequence,
    /// The first vectors, at most `requested`; the rest start as [`VectorSetup::RESERVED`].
    pub vectors: List<'a, VectorSetup>,
}

impl<'a> ConfigureRequest<'a> {
    /// Decodes the body; the list's items are decoded as they are read.
    ///
    /// # Errors
    /// [`DecodeError`] when the part before the items is not what it should be.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut decoder = Decoder::new(bytes);
        let RequestHead { kind, requested, sequence } = Value::take(&mut decoder);
        Ok(Self { kind, requested, sequence, vectors: List::take(decoder)? })
    }

    /// Writes the body with the vectors of an iterator.
    ///
    /// # Errors
    /// See [`Encoder::finish`].
    pub fn encode(
        kind: Kind,
        requested: u16,
        sequence: Sequence,
        vectors: impl ExactSizeIterator<Item = VectorSetup>,
        buffer: &mut [u8],
    ) -> Result<usize, EncodeError> {
        let mut encoder = Encoder::new(buffer);
        encoder.put(&RequestHead { kind, requested, sequence });
        encoder.put_list(vectors);
        encoder.finish()
    }
}

/// What the host made of one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VectorAnswer {
    /// What belongs in the hardware table: the only message that the guest may write back.
    /// Absent while the host cannot know it (memory decoding off); `query-vectors` tells later.
    pub table_message: Option<TableMessage>,
    /// An event came while the vector was masked in the emulated table. It is reported here once; the guest delivers it when it unmasks the vector.
    pub pending: bool,
}

struct AnswerHead {
    granted: u16,
    mode: TableMode,
    reasons: Reasons,
    generation: Generation,
}

/// Answer of `configure`. Vectors 0 to `granted` - 1 are assigned, the rest are not.
#[derive(Clone, Copy, Debug)]
pub struct ConfigureAnswer<'a> {
    /// How many vectors are assigned; at least 1, at most the requested number.
    pub granted: u16,
    /// Who answers the table from now on.
    pub mode: TableMode,
    /// Why the table is not direct; empty exactly when it is.
    pub reasons: Reasons,
    /// The number of the state after the call.
    pub generation: Generation,
    /// One item for each granted vector.
    pub vectors: List<'a, VectorAnswer>,
}

impl<'a> ConfigureAnswer<'a> {
    /// Decodes the body; the list's items are decoded as they are read.
    ///
    /// # Errors
    /// [`DecodeError`] when the part before the items is not what it should be, or the list is not as long as the grant, or the grant is of nothing.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut decoder = Decoder::new(bytes);
        let AnswerHead { granted, mode, reasons, generation } = Value::take(&mut decoder);
        let vectors = List::take(decoder)?;
        if granted == 0 || vectors.len() != granted {
            return Err(DecodeError::Malformed);
        }
        Ok(Self { granted, mode, reasons, generation, vectors })
    }

    /// Writes the body; the grant is the length of `vectors`.
    ///
    /// # Errors
    /// See [`Encoder::finish`].
    pub fn encode(
        mode: TableMode,
        reasons: Reasons,
        generation: Generation,
        vectors: impl ExactSizeIterator<Item = VectorAnswer>,
        buffer: &mut [u8],
    ) -> Result<usize, EncodeError> {
        let granted = u16::try_from(vectors.len()).map_err(|_| EncodeError::ListLength)?;
        let mut encoder = Encoder::new(buffer);
        encoder.put(&AnswerHead { granted, mode, reasons, generation });
        encoder.put_list(vectors);
        encoder.finish()
    }
}

flagged_messages! {
    VectorSetup { message: GuestMessage, masked }
    VectorAnswer { table_message: TableMessage, pending }
}

structure! {
    Sequence { 0 }
    RequestHead { kind, requested, sequence }
    AnswerHead { granted, mode, reasons, generation }
}
