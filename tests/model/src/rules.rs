//! What the specification says of a function's vectors, whatever the implementation does.
//!
//! For each vector the guest is *owed* events: raised, and neither delivered nor
//! reported as pending. Events merge where they do in hardware: one that is
//! raised while the vector's pending bit is set, and one that arrives at an
//! eventfd that holds one. So a vector is owed at most as many as there are places
//! to wait in: the pending bit, the way to the host, the eventfd. "No event is
//! lost" means that there are never fewer waiting than are owed, and that they
//! leave when they may; "none is doubled", that there are never more, and that
//! nothing is delivered that is not owed.

use crate::VECTORS;
use crate::kernel::Message;

/// What guest and host have asked for so far.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rules {
    /// MSI-X Enable, as the guest wrote it.
    pub enable: bool,
    /// Function Mask, as the guest wrote it.
    pub function_mask: bool,
    /// The host has taken the table back.
    pub revoked: bool,
    /// How many vectors are assigned; 0 in the default state.
    pub assigned: u8,
    /// The guest message of each vector: of its assignment, or of the emulated table.
    pub messages: [Option<Message>; VECTORS],
    /// The guest's mask bits.
    pub masked: [bool; VECTORS],
    /// Events that are owed.
    pub owed: [u8; VECTORS],
    /// The guest has written something else over the table message: its events may vanish.
    pub scribbled: [bool; VECTORS],
    /// The function was reset behind the host's back, and the guest has not said so yet.
    pub reset_unseen: bool,
}

impl Rules {
    /// After power-on.
    pub const POWER_ON: Self = Self {
        enable: false,
        function_mask: false,
        revoked: false,
        assigned: 0,
        messages: [None; VECTORS],
        masked: [true; VECTORS],
        owed: [0; VECTORS],
        scribbled: [false; VECTORS],
        reset_unseen: false,
    };

    /// The message with which the vector may fire now.
    pub fn may_fire(&self, vector: usize) -> Option<Message> {
        let quiet = !self.enable || self.function_mask || self.masked[vector];
        self.messages[vector].filter(|_| !quiet)
    }

    /// Whether the vector has an interrupt of its own: in the default state all have.
    pub fn granted(&self, vector: usize) -> bool {
        self.assigned == 0 || vector < usize::from(self.assigned)
    }

    /// Whether events of the vector may vanish, by the guest's own doing.
    pub fn excused(&self, vector: usize) -> bool {
        self.reset_unseen || self.scribbled[vector]
    }

    /// Back to the default state: no vector assigned, every entry as after power-on.
    pub fn become_default(&mut self) {
        self.assigned = 0;
        self.messages = [None; VECTORS];
        self.masked = [true; VECTORS];
        self.table_rewritten();
    }

    /// The host has put its messages into the table.
    pub fn table_rewritten(&mut self) {
        self.scribbled = [false; VECTORS];
        self.reset_unseen = false;
    }
}
