//! A state of the whole: the service, what lies behind its seams, and what the specification says of it.

use pvmsi_hypervisor::model::Snapshot;

use crate::rules::Rules;
use crate::violation::Violations;
use crate::world::World;

/// A state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The service's state of the function: production's own.
    pub service: Snapshot,
    /// The environment.
    pub world: World,
    /// What the specification says.
    pub rules: Rules,
    /// A `configure` that is to be repeated, and with which sequence.
    pub busy: Option<(u8, u32)>,
    /// What was broken on the way here.
    pub violations: Violations,
}
