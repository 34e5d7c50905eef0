//! What the operator allows.

use serde::{Deserialize, Serialize};

/// How far PV-MSI goes, for a VM or for one function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// The service does not exist: no discovery, no calls. What a VMM without it would serve as well is MSI, which stays
    /// hidden ([`has_msi`](crate::has_msi)).
    Off,
    /// Calls are answered, the table is never mapped.
    Trapped,
    /// The table is mapped where that is safe.
    #[default]
    Direct,
}

/// What the operator allows one function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FunctionPolicy {
    /// At most the VM's policy; the lower one counts.
    pub policy: Policy,
    /// Map the table even though the host does not confine the function to its own interrupts. The guest can then raise any interrupt of the host.
    ///
    /// Without interrupt remapping (x86) the function's interrupts must also stay on the processors where they
    /// are (no irqbalance, no processor taken offline): to move one, the host's kernel writes another
    /// message, and its own idea of the mask bit, into the table that the guest has. With remapping
    /// messages stay, and a move can cost the guest a mask bit (H-517 of the specification):
    /// `VfioFunction::pin_interrupts` keeps them still.
    pub allow_unisolated: bool,
    /// The most vectors of the function that may have interrupts, the first ones, whether the guest calls or uses
    /// the emulated table; `None` is no limit but the VM's.
    pub vectors: Option<u16>,
}
