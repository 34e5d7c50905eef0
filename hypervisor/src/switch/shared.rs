//! Messages that vectors have in common, where the platform allows each to one of them.

use pvmsi_protocol::{GuestMessage, VectorIndex};

/// A message, by address and data, and a vector that has it.
type Entry = ((u64, u32), VectorIndex);

/// Some vectors by their messages.
pub(crate) struct ByMessage(Vec<Entry>);

impl ByMessage {
    /// Sorts them, so that a look at all vectors costs little more than a walk over them.
    ///
    /// # Errors
    /// The second of two vectors that have the same message.
    pub(crate) fn new(
        vectors: impl Iterator<Item = (VectorIndex, GuestMessage)>,
    ) -> Result<Self, VectorIndex> {
        let mut all: Vec<_> = vectors.map(|(vector, message)| (key(message), vector)).collect();
        all.sort_unstable();
        let second = |pair: (&Entry, &Entry)| (pair.0.0 == pair.1.0).then_some(pair.1.1);
        match all.iter().zip(all.iter().skip(1)).find_map(second) {
            Some(second) => Err(second),
            None => Ok(Self(all)),
        }
    }

    /// Which of them has the message.
    pub(crate) fn get(&self, message: GuestMessage) -> Option<VectorIndex> {
        let found = self.0.binary_search_by_key(&key(message), |(message, _)| *message).ok()?;
        self.0.get(found).map(|(_, vector)| *vector)
    }
}

const fn key(GuestMessage { address, data }: GuestMessage) -> (u64, u32) {
    (address, data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(vectors: &[(u16, u64, u32)]) -> impl Iterator<Item = (VectorIndex, GuestMessage)> {
        vectors
            .iter()
            .map(|&(vector, address, data)| (VectorIndex(vector), GuestMessage { address, data }))
    }

    #[test]
    fn the_second_of_two_is_named() {
        assert_eq!(
            ByMessage::new(named(&[(2, 1, 7), (1, 1, 8), (0, 1, 7)])).err(),
            Some(VectorIndex(2))
        );
        assert!(ByMessage::new(named(&[(0, 1, 7), (1, 2, 7), (2, 1, 8)])).is_ok());
        assert!(ByMessage::new(named(&[])).is_ok());
    }

    #[test]
    fn a_vector_is_found_by_its_message() {
        let named = ByMessage::new(named(&[(0, 1, 9), (5, 1, 7), (2, 0, 8)])).unwrap();
        let get = |address, data| named.get(GuestMessage { address, data });
        assert_eq!(get(1, 7), Some(VectorIndex(5)));
        assert_eq!(get(0, 8), Some(VectorIndex(2)));
        assert_eq!(get(0, 7), None);
    }
}
