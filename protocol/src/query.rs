//! `query-function` and `query-vectors`: how anyone observes the state without trusting it.

use crate::codec::{Value, enumeration, plain_body, structure};
use crate::{
    DecodeError, Decoder, Encode, EncodeError, Encoder, Generation, GuestMessage, List, Reasons,
    TableMessage, TableMode,
};

/// Whether an interrupt reaches the guest without the host's processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// The host cannot tell.
    Unknown,
    /// The host's processor takes each interrupt and injects it.
    Host,
    /// Posted interrupts, or a GICv4 ITS: the host's processor is not involved.
    Bypass,
}

/// Answer to `query-function`; the request has no body, the function is in the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QueryFunctionAnswer {
    /// Vectors that `configure` with [`Kind::Msi`](crate::Kind::Msi) can ask for; 0 when it is not supported.
    pub msi_vectors: u16,
    /// Vectors that `configure` with [`Kind::MsiX`](crate::Kind::MsiX) can ask for; 0 when it is not supported.
    pub msix_vectors: u16,
    /// Vectors that are assigned now.
    pub assigned: u16,
    /// Who answers the table now.
    pub mode: TableMode,
    /// Why the table is not direct; empty exactly when it is.
    pub reasons: Reasons,
    /// The number of the state that this answer describes.
    pub generation: Generation,
    /// Whether delivery bypasses the host's processor.
    pub delivery: Delivery,
}

/// A range of vectors to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QueryVectorsRequest {
    /// The first vector index.
    pub first: u16,
    /// How many vectors; the range must lie inside the function's table.
    pub count: u16,
}

/// What the host knows of one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VectorState {
    /// Whether the protocol owns the vector's route.
    pub assigned: bool,
    /// Where the guest wants the interrupt, once it has said so.
    pub guest_message: Option<GuestMessage>,
    /// What belongs in the hardware table; absent while the host cannot know it.
    pub table_message: Option<TableMessage>,
    /// The mask bit that the guest would read from the table.
    pub masked: bool,
    /// The pending bit that the guest would read from the pending bit array.
    pub pending: bool,
}

/// Answer to `query-vectors`. It may describe fewer vectors than were asked for: those that fit the buffer, from the first on, at least one.
#[derive(Clone, Copy, Debug)]
pub struct QueryVectorsAnswer<'a> {
    /// The number of the state that this answer describes.
    pub generation: Generation,
    /// The vectors from `first` on.
    pub vectors: List<'a, VectorState>,
}

impl<'a> QueryVectorsAnswer<'a> {
    /// Decodes the body; the list's items are decoded as they are read.
    ///
    /// # Errors
    /// [`DecodeError`] when the part before the items is not what it should be.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut decoder = Decoder::new(bytes);
        let generation = Value::take(&mut decoder);
        Ok(Self { generation, vectors: List::take(decoder)? })
    }

    /// Writes the body with the vectors of an iterator.
    ///
    /// # Errors
    /// See [`Encoder::finish`].
    pub fn encode(
        generation: Generation,
        vectors: impl ExactSizeIterator<Item = VectorState>,
        buffer: &mut [u8],
    ) -> Result<usize, EncodeError> {
        let mut encoder = Encoder::new(buffer);
        encoder.put(&generation);
        encoder.put_list(vectors);
        encoder.finish()
    }
}

impl VectorState {
    /// The most bytes that one encoded state can take.
    pub const ENCODED_MAX: usize = 36;
}

/// The request of `query-function`, `release` and `restore`: no body at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Empty;

impl Encode for Empty {
    fn encode(&self, _: &mut [u8]) -> Result<usize, EncodeError> {
        Ok(0)
    }
}

impl Empty {
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.is_empty() { Ok(Self) } else { Err(DecodeError::TrailingBytes) }
    }
}

enumeration! {
    Delivery { Unknown, Host, Bypass }
}

structure! {
    QueryFunctionAnswer {
        msi_vectors, msix_vectors, assigned, mode, reasons, generation, delivery
    }
    QueryVectorsRequest { first, count }
    VectorState { assigned, guest_message, table_message, masked, pending }
}

plain_body!(QueryFunctionAnswer, QueryVectorsRequest);
