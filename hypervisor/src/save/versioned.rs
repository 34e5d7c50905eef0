//! A saved state with its version in front, so that a reader can refuse what it does not know.
//!
//! Not every encoding names its fields or knows where an unknown one ends, so
//! the version is decoded, and judged, before anything else.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeOwned, Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The version of a saved state.
///
/// The rule: a state of the same major and of the same or an older minor is
/// read, everything else is refused. A minor adds something that has a value
/// for those who did not save it; a major changes the meaning of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateVersion {
    /// Another one is refused.
    pub major: u16,
    /// A higher one is refused.
    pub minor: u16,
}

impl StateVersion {
    fn reads(self, saved: Self) -> bool {
        self.major == saved.major && self.minor >= saved.minor
    }
}

impl fmt::Display for StateVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What a saved state consists of, behind its version. A minor after 0 that adds something reads the older ones as a type of their own, and converts.
pub trait Saved: Serialize + DeserializeOwned {
    /// For messages: whose state it is.
    const OF: &'static str;
    /// The version that is written, and the newest that is read.
    const VERSION: StateVersion;
}

/// A pair: the version, and the state. For devices that are saved beside the service as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned<T>(pub T);

impl<T: Saved> Serialize for Versioned<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (T::VERSION, &self.0).serialize(serializer)
    }
}

impl<'de, T: Saved> Deserialize<'de> for Versioned<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_tuple(2, Pair(PhantomData))
    }
}

struct Pair<T>(PhantomData<T>);

impl<'de, T: Saved> Visitor<'de> for Pair<T> {
    type Value = Versioned<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the saved state of {}: its version, and what was saved", T::OF)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<Self::Value, A::Error> {
        let version: StateVersion =
            pair.next_element()?.ok_or_else(|| Error::invalid_length(0, &self))?;
        if !T::VERSION.reads(version) {
            return Err(Error::custom(format_args!(
                "the saved state of {} has version {version}; {} and older minors are read here",
                T::OF,
                T::VERSION
            )));
        }
        let state = pair.next_element()?.ok_or_else(|| Error::invalid_length(1, &self))?;
        Ok(Versioned(state))
    }
}
