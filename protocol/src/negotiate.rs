//! `negotiate`: version, features, limits.

use crate::codec::{flags, plain_body, structure};

/// A version of the protocol. Halves of the same major version understand each other at the lower minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Changes when old halves would misunderstand new ones.
    pub major: u16,
    /// Changes when something is added.
    pub minor: u16,
}

impl Version {
    /// PV-MSI 1.0.
    pub const V1_0: Self = Self { major: 1, minor: 0 };
    /// The version that this crate speaks.
    pub const CURRENT: Self = Self::V1_0;

    /// The version that two halves use: same major, the lower minor. `None` when the majors differ.
    pub fn common(self, other: Self) -> Option<Self> {
        (self.major == other.major).then(|| self.min(other))
    }
}

bitflags::bitflags! {
    /// What a host offers beyond the bare calls.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Features: u32 {
        /// The host may make tables direct (policy `direct` for at least one function).
        const DIRECT = 1 << 0;
        /// The host accepts `configure` for MSI as well as MSI-X.
        const MSI = 1 << 1;
        /// Guest messages may carry extended destination ids (x86: 15 bits).
        const EXTENDED_DESTINATION_ID = 1 << 2;
    }
}

/// What a host can take. All are since 1.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// The largest call buffer in bytes, 4096 to 65,536.
    pub buffer_bytes: u32,
    /// The most vectors of one function, 1 to 2048.
    pub vectors: u16,
}

/// What the guest speaks and would like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NegotiateRequest {
    /// The highest version that the guest speaks.
    pub version: Version,
    /// The features that the guest knows.
    pub features: Features,
}

/// What both will use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NegotiateAnswer {
    /// Same major as requested, minor at most the requested one.
    pub version: Version,
    /// A subset of the requested features.
    pub features: Features,
    /// The host's limits.
    pub limits: Limits,
}

structure! {
    Version { major, minor }
    Limits { buffer_bytes, vectors }
    NegotiateRequest { version, features }
    NegotiateAnswer { version, features, limits }
}

flags!(Features);
plain_body!(NegotiateRequest, NegotiateAnswer);
