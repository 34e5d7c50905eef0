//! `update`: new guest messages for assigned vectors (an affinity change). Routes only; the table is untouched.

use crate::codec::{plain_body, structure};
use crate::{
    DecodeError, Decoder, EncodeError, Encoder, Generation, GuestMessage, List, VectorIndex,
};

/// The new message of one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VectorUpdate {
    /// An assigned vector; no vector may stand twice in one call.
    pub vector: VectorIndex,
    /// Where the guest wants its interrupt from now on.
    pub message: GuestMessage,
}

/// Request of `update`.
#[derive(Clone, Copy, Debug)]
pub struct UpdateRequest<'a> {
    /// At least one vector.
    pub vectors: List<'a, VectorUpdate>,
}

impl<'a> UpdateRequest<'a> {
    /// Decodes the body; the list's items are decoded as they are read.
    ///
    /// # Errors
    /// [`DecodeError`] when there is no list.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        Ok(Self { vectors: List::take(Decoder::new(bytes))? })
    }

    /// Writes the body with the vectors of an iterator.
    ///
    /// # Errors
    /// See [`Encoder::finish`].
    pub fn encode(
        vectors: impl ExactSizeIterator<Item = VectorUpdate>,
        buffer: &mut [u8],
    ) -> Result<usize, EncodeError> {
        let mut encoder = Encoder::new(buffer);
        encoder.put_list(vectors);
        encoder.finish()
    }
}

/// Answer of `update`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UpdateAnswer {
    /// The number of the state after the call. An `update` does not change it unless the mode changed.
    pub generation: Generation,
}

structure! {
    VectorUpdate { vector, message }
    UpdateAnswer { generation }
}

plain_body!(UpdateAnswer);
