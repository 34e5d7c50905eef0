//! What the guest has asked for: plain data. Nothing here knows of files, kernels or hardware.

use pvmsi_protocol::{GuestMessage, Kind, Sequence, VectorIndex, VectorSetup};

use crate::layout::BarIndex;

/// All that one function's guest has asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Guest {
    pub(crate) control: MsixControl,
    pub(crate) placement: Placement,
    pub(crate) owner: Owner,
    /// A `configure` that was answered busy.
    pub(crate) unfinished: Option<Unfinished>,
}

/// The guest's view of MSI-X Message Control. Writes of it never reach the function; its own Enable follows this one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct MsixControl {
    pub(crate) enable: bool,
    pub(crate) function_mask: bool,
}

/// What configuration space says of memory decoding, read after each write that can change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Placement {
    pub(crate) decoding: bool,
    pub(crate) full_power: bool,
    /// Guest physical addresses; absent where a BAR holds none.
    pub(crate) bars: [Option<u64>; BarIndex::COUNT],
}

impl Placement {
    pub(crate) const NOWHERE: Self =
        Self { decoding: false, full_power: true, bars: [None; BarIndex::COUNT] };
}

/// Whom the routes follow.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    /// The emulated table, an entry for each vector of the function.
    Legacy(Vec<LegacyEntry>),
    /// The protocol: the granted vectors, as they were named last. In direct mode the table's own mask bits count, and these are out of date.
    Assigned(Vec<VectorSetup>),
}

/// An entry of the emulated table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LegacyEntry {
    pub(crate) message: GuestMessage,
    pub(crate) masked: bool,
}

/// A `configure` that was answered busy: what it asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Unfinished {
    /// How many vectors there were before it. Those from there on are *prepared*: for it alone.
    pub(crate) first: usize,
    pub(crate) sequence: Sequence,
    pub(crate) kind: Kind,
    pub(crate) requested: u16,
    pub(crate) setups: Vec<VectorSetup>,
}

impl LegacyEntry {
    /// After power-on or reset.
    pub(crate) const RESET: Self =
        Self { message: GuestMessage { address: 0, data: 0 }, masked: true };
}

impl Guest {
    /// After power-on, for a table with so many entries.
    pub(crate) fn new(vectors: u16) -> Self {
        Self {
            control: MsixControl::default(),
            placement: Placement::NOWHERE,
            owner: Owner::default_of(vectors),
            unfinished: None,
        }
    }

    /// Whether the vector is there only for an unfinished `configure`.
    #[inline]
    pub(crate) fn is_prepared(&self, vector: VectorIndex) -> bool {
        self.unfinished.as_ref().is_some_and(|unfinished| vector.as_usize() >= unfinished.first)
    }
}

impl Owner {
    /// No vector assigned, every entry as after power-on.
    pub(crate) fn default_of(vectors: u16) -> Self {
        Self::Legacy(vec![LegacyEntry::RESET; usize::from(vectors)])
    }

    /// How many vectors are assigned.
    pub(crate) fn assigned(&self) -> u16 {
        match self {
            Self::Legacy(_) => 0,
            // At most 2048, by construction.
            Self::Assigned(vectors) => u16::try_from(vectors.len()).unwrap_or(u16::MAX),
        }
    }

    pub(crate) fn is_assigned(&self) -> bool {
        matches!(self, Self::Assigned(_))
    }

    /// The mask bit that is kept for a vector. One that is set up and not granted counts as masked.
    pub(crate) fn masked(&self, vector: VectorIndex) -> bool {
        match self {
            Self::Legacy(entries) => {
                entries.get(vector.as_usize()).is_none_or(|entry| entry.masked)
            }
            Self::Assigned(vectors) => {
                vectors.get(vector.as_usize()).is_none_or(|vector| vector.masked)
            }
        }
    }
}
