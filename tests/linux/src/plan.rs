//! What the conductor is asked to do.

use serde::{Deserialize, Serialize};

use crate::report::{LinuxEvent, Policy, Vmm};

/// Guests to run, one after the other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// In this order.
    pub boots: Vec<Boot>,
    /// How long [`Suite::Moving`] moves.
    pub seconds: u64,
}

/// A guest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Boot {
    /// Who runs it.
    pub vmm: Vmm,
    /// How far PV-MSI goes; none for others than `pvmsi`.
    pub policy: Option<Policy>,
    /// Whether the guest loads `pvmsi.ko`.
    pub module: bool,
    /// Folder, in the host, of `vmlinuz` and `initrd`.
    pub kernel: String,
    /// The functions, as the host addresses them.
    pub functions: Vec<String>,
    /// Whether the host confines functions to their own interrupts.
    pub isolation: bool,
    /// What happens in it.
    pub suite: Suite,
}

impl Boot {
    /// Whether the service is as tight as it may be: it prepares one vector in a call and is busy
    /// then, grants a function two vectors at most, and its doorbell is a register.
    pub fn is_tight(&self) -> bool {
        self.suite == Suite::Tight
    }
}

/// A sequence of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Suite {
    /// The driver is loaded, the first block read, and the driver unloaded, a few times.
    Bind,
    /// What is compared with other VMMs.
    Peers,
    /// The host takes both functions back.
    Unplug,
    /// All that Linux does with a function.
    Events,
    /// The module comes and goes beside a busy function.
    Reload,
    /// All that Linux does with a drive, with a service that is as tight as it may be.
    Tight,
    /// The host moves its interrupts of a drive that is busy, and takes processors off and on.
    Moving,
}

/// What the conductor has counted and found wrong.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// In the order in which they happened.
    pub events: Vec<LinuxEvent>,
    /// What was wrong, in words.
    pub failures: Vec<String>,
}
