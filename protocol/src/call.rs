//! What can be called, and the two enumerations that most calls share.

use crate::codec::enumeration;

/// The calls of PV-MSI 1.0. All are since 1.0; the number is the header's `call` field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum CallId {
    /// Agree on version, features and limits.
    Negotiate = 1,
    /// What the service can do for one function, and how it stands.
    QueryFunction = 2,
    /// The state of a range of vectors, for anyone who does not want to trust it.
    QueryVectors = 3,
    /// Set the interrupts of a function up and ask for the table.
    Configure = 4,
    /// New guest messages for vectors that are assigned.
    Update = 5,
    /// Back to the default; also aborts a `configure` in progress.
    Release = 6,
    /// Put the table messages back after a reset that the host could not see.
    Restore = 7,
}

impl CallId {
    /// All calls, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::Negotiate,
        Self::QueryFunction,
        Self::QueryVectors,
        Self::Configure,
        Self::Update,
        Self::Release,
        Self::Restore,
    ];

    /// The call with this number, or `None` when this version has no such call.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|call| call.number() == number)
    }

    /// The number in the header's `call` field.
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// The name as the specification spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Negotiate => "negotiate",
            Self::QueryFunction => "query-function",
            Self::QueryVectors => "query-vectors",
            Self::Configure => "configure",
            Self::Update => "update",
            Self::Release => "release",
            Self::Restore => "restore",
        }
    }
}

/// Which PCI interrupt mechanism a `configure` is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Message signalled interrupts, without a vector table: only routing is paravirtual.
    Msi,
    /// Extended message signalled interrupts, with a vector table.
    MsiX,
}

/// Who answers accesses to the pages of the vector table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum TableMode {
    /// The host: each access exits.
    Trapped,
    /// The function itself: the pages are mapped into the guest.
    Direct,
}

enumeration! {
    Kind { Msi, MsiX }
    TableMode { Trapped, Direct }
}
