//! A set of vectors: a bit for each that a function can have.
//!
//! What is done for the vectors of a set costs as many steps as it has members,
//! however many vectors the function has.

use pvmsi_protocol::{VECTORS_MAX, VectorIndex};

const BITS: u16 = 64;
const WORDS: usize = VECTORS_MAX.div_ceil(BITS) as usize;

/// Some of the vectors 0 to 2047.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct VectorSet {
    words: [u64; WORDS],
    /// Bit `i` says that word `i` is not 0.
    used: u32,
}

impl VectorSet {
    /// The first `count` vectors.
    pub(crate) fn first(count: usize) -> Self {
        let mut set = Self::default();
        set.add_first(count);
        set
    }

    pub(crate) fn add_first(&mut self, count: usize) {
        let mut left = count;
        for (index, word) in self.words.iter_mut().enumerate() {
            *word |= low_bits(left);
            self.used |= u32::from(*word != 0) << index;
            left = left.saturating_sub(usize::from(BITS));
        }
    }

    /// Leaves only those of the first `count` vectors.
    pub(crate) fn truncate(&mut self, count: usize) {
        if self.is_empty() {
            return;
        }
        let mut left = count;
        self.used = 0;
        for (index, word) in self.words.iter_mut().enumerate() {
            *word &= low_bits(left);
            self.used |= u32::from(*word != 0) << index;
            left = left.saturating_sub(usize::from(BITS));
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// How many vectors it has.
    pub(crate) fn len(&self) -> usize {
        let (mut members, mut used) = (0_u32, self.used);
        while used != 0 {
            let index = usize::try_from(used.trailing_zeros()).unwrap_or(WORDS);
            let word = self.words.get(index).copied().unwrap_or_default();
            members = members.saturating_add(word.count_ones());
            used &= used.wrapping_sub(1);
        }
        usize::try_from(members).unwrap_or(usize::MAX)
    }

    pub(crate) fn contains(&self, vector: VectorIndex) -> bool {
        let (index, bit) = place(vector);
        self.words.get(index).is_some_and(|word| word & bit != 0)
    }

    /// Whether it was not there before.
    pub(crate) fn insert(&mut self, vector: VectorIndex) -> bool {
        let (index, bit) = place(vector);
        let Some(word) = self.words.get_mut(index) else { return false };
        let new = *word & bit == 0;
        *word |= bit;
        self.used |= 1 << index;
        new
    }

    /// Whether it was there. Most often the set is empty.
    #[inline]
    pub(crate) fn remove(&mut self, vector: VectorIndex) -> bool {
        let (index, bit) = place(vector);
        if self.used == 0 {
            return false;
        }
        let Some(word) = self.words.get_mut(index) else { return false };
        let there = *word & bit != 0;
        *word &= !bit;
        if *word == 0 {
            self.used &= !(1 << index);
        }
        there
    }

    pub(crate) fn extend(&mut self, other: &Self) {
        if !other.is_empty() {
            for (word, other) in self.words.iter_mut().zip(other.words) {
                *word |= other;
            }
            self.used |= other.used;
        }
    }

    /// The vectors in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = VectorIndex> {
        let mut walk = Walk::default();
        std::iter::from_fn(move || walk.next(self))
    }

    /// Those of the first `count` vectors of which this is said.
    pub(crate) fn of_first(count: usize, mut has: impl FnMut(usize) -> bool) -> Self {
        let mut set = Self::default();
        let mut from = 0_usize;
        for (index, word) in set.words.iter_mut().enumerate() {
            if from >= count {
                break;
            }
            let end = count.min(from.saturating_add(usize::from(BITS)));
            // The last one first: each moves those behind it up.
            let bits = (from..end).rev().map(|vector| u64::from(has(vector)));
            *word = bits.fold(0, |word, bit| word << 1 | bit);
            set.used |= u32::from(*word != 0) << index;
            from = end;
        }
        set
    }
}

/// Goes through a set that may change meanwhile: what is removed, or added, need not make a difference.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    /// Members of the last word that was looked at which are still to come.
    rest: u64,
    index: u32,
    /// How many words were looked at.
    words: u32,
}

impl Walk {
    /// The next vector of the set.
    #[inline(always)]
    pub(crate) fn next(&mut self, set: &VectorSet) -> Option<VectorIndex> {
        if self.rest == 0 {
            let later = set.used & u32::MAX.checked_shl(self.words)?;
            if later == 0 {
                return None;
            }
            self.index = later.trailing_zeros();
            self.words = self.index.wrapping_add(1);
            self.rest = *set.words.get(usize::try_from(self.index).ok()?)?;
        }
        let bit = self.rest.trailing_zeros();
        self.rest &= self.rest.wrapping_sub(1);
        u16::try_from(self.index.wrapping_mul(u32::from(BITS)) | bit).ok().map(VectorIndex)
    }
}

fn place(VectorIndex(number): VectorIndex) -> (usize, u64) {
    (usize::from(number / BITS), 1 << (number % BITS))
}

fn low_bits(count: usize) -> u64 {
    match u32::try_from(count) {
        Ok(count) => 1_u64.checked_shl(count).map_or(u64::MAX, |bit| bit.wrapping_sub(1)),
        Err(_) => u64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(set: &VectorSet) -> Vec<u16> {
        set.iter().map(|vector| vector.0).collect()
    }

    #[test]
    fn members_come_in_order_and_once() {
        let mut set = VectorSet::default();
        for number in [2047, 0, 64, 63, 0] {
            set.insert(VectorIndex(number));
        }
        assert_eq!((members(&set), set.len()), (vec![0, 63, 64, 2047], 4));
        assert!(!set.insert(VectorIndex(64)));
        assert!(set.remove(VectorIndex(64)) && !set.remove(VectorIndex(64)));
        assert_eq!(members(&set), [0, 63, 2047]);
        set.truncate(63);
        assert_eq!(members(&set), [0]);
        set.remove(VectorIndex(0));
        assert!(set.is_empty());
        assert_eq!(set, VectorSet::default());
    }

    #[test]
    fn the_first_ones_are_as_many_as_asked_for() {
        for count in [0, 1, 63, 64, 65, 128, 2047, 2048] {
            assert_eq!(members(&VectorSet::first(count)).len(), count);
        }
    }

    #[test]
    fn a_set_is_made_by_what_is_said_of_its_members() {
        for count in [0, 1, 63, 64, 65, 2048] {
            let even = VectorSet::of_first(count, |vector| vector % 2 == 0);
            assert_eq!(even.len(), count.div_ceil(2));
            assert!(even.iter().all(|vector| vector.0 % 2 == 0));
            assert_eq!(VectorSet::of_first(count, |_| true), VectorSet::first(count));
        }
    }

    #[test]
    fn sets_are_joined() {
        let mut set = VectorSet::first(2);
        let mut other = VectorSet::default();
        other.insert(VectorIndex(1000));
        set.extend(&other);
        assert_eq!(members(&set), [0, 1, 1000]);
    }

    #[test]
    fn a_walk_does_not_mind_what_goes() {
        let mut set = VectorSet::first(130);
        let (mut walk, mut seen) = (Walk::default(), 0);
        while let Some(vector) = walk.next(&set) {
            assert_eq!(vector.0, seen);
            set.remove(vector);
            seen += 1;
        }
        assert_eq!((seen, set.is_empty()), (130, true));
    }

    #[test]
    fn there_is_no_vector_beyond_the_last() {
        let mut set = VectorSet::default();
        assert!(!set.insert(VectorIndex(2048)));
        assert!(set.is_empty() && !set.contains(VectorIndex(u16::MAX)));
    }
}
