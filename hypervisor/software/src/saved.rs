//! Saving and restoring the device: registers, pending bits, progress, and counters.

use std::sync::atomic::Ordering;

use pvmsi_hypervisor::{Saved, StateVersion, Versioned};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::device::{REGISTERS_END, SoftwareDevice};
use crate::registers::{EVENTS, PENDING, SENT};

/// Registers of the device, 32 bits each.
const REGISTERS: usize = 8;
const _: () = assert!(REGISTERS_END == 4 * REGISTERS as u64);

/// The state of a [`SoftwareDevice`], saved. How it is encoded is the VMM's choice (serde).
///
/// The vector table is no part of it: messages are the host's, and mask bits
/// are the service's once it has taken the table back
/// ([`ServiceState`](pvmsi_hypervisor::ServiceState)). Configuration space is reached
/// through the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SoftwareDeviceState(Versioned<SavedDevice>);

impl SoftwareDeviceState {
    /// The version that is written, and the newest that is read.
    pub const VERSION: StateVersion = StateVersion { major: 1, minor: 0 };
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedDevice {
    /// As the guest would read them: with the table direct it may have scribbled on all of this.
    registers: [u32; REGISTERS],
    /// Events of DOORBELL that have been raised.
    done: u32,
    /// The pending bit array, 32 vectors a word; clear beyond the last vector.
    pending: Vec<u32>,
    /// EVENTS and SENT, a word for each vector.
    events: Vec<u32>,
    sent: Vec<u32>,
    raised: u64,
    blocked: u64,
}

impl Saved for SavedDevice {
    const OF: &'static str = "the software function";
    const VERSION: StateVersion = SoftwareDeviceState::VERSION;
}

/// A saved state was not restored, and nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SoftwareStateError {
    /// It is not the same function.
    #[error("the device was saved with {saved} vectors, and has {here} here")]
    Vectors {
        /// Vectors of the one that was saved.
        saved: usize,
        /// Vectors of this one.
        here: u16,
    },
    /// No device saves that.
    #[error("the saved state of the device makes no sense: {0}")]
    Invalid(&'static str),
}

impl SoftwareDevice {
    /// Saves the device's state. No thread may run it, or raise events, from here on; the service has been saved before.
    pub fn save(&self) -> SoftwareDeviceState {
        let core = self.lock();
        let mut registers = [0; REGISTERS];
        for (register, offset) in registers.iter_mut().zip((0..).step_by(4)) {
            *register = self.load(offset);
        }
        let words =
            |start, count| words(start, count).map(|offset| self.load(offset)).collect::<Vec<_>>();
        let mut pending = words(PENDING, self.pending_words());
        if let Some(last) = pending.last_mut() {
            *last &= !self.beyond();
        }
        SoftwareDeviceState(Versioned(SavedDevice {
            registers,
            done: core.done,
            pending,
            events: words(EVENTS, self.vectors),
            sent: words(SENT, self.vectors),
            raised: self.raised.load(Ordering::Relaxed),
            blocked: self.blocked.load(Ordering::Relaxed),
        }))
    }

    /// Brings a device that has not run to a saved state.
    ///
    /// # Errors
    /// See [`SoftwareStateError`]; nothing has changed then.
    pub fn restore(&self, state: &SoftwareDeviceState) -> Result<(), SoftwareStateError> {
        let SoftwareDeviceState(Versioned(saved)) = state;
        let here = self.vectors;
        if saved.events.len() != usize::from(here) {
            return Err(SoftwareStateError::Vectors { saved: saved.events.len(), here });
        }
        let pending_words = usize::from(self.pending_words());
        if saved.sent.len() != usize::from(here) || saved.pending.len() != pending_words {
            return Err(SoftwareStateError::Invalid("its arrays are not as long as its table"));
        }
        if saved.pending.last().is_some_and(|last| last & self.beyond() != 0) {
            return Err(SoftwareStateError::Invalid("an event is pending for no vector"));
        }
        let mut core = self.lock();
        core.done = saved.done;
        core.next_event = None;
        let stored = words(0, 8)
            .zip(&saved.registers)
            .chain(words(PENDING, self.pending_words()).zip(&saved.pending))
            .chain(words(EVENTS, here).zip(&saved.events))
            .chain(words(SENT, here).zip(&saved.sent));
        for (offset, value) in stored {
            self.store(offset, *value);
        }
        self.raised.store(saved.raised, Ordering::Relaxed);
        self.blocked.store(saved.blocked, Ordering::Relaxed);
        Ok(())
    }

    /// Bits of the last word of the pending bit array that belong to no vector. A guest with the table direct can set them.
    fn beyond(&self) -> u32 {
        match self.vectors % 32 {
            0 => 0,
            used => u32::MAX << used,
        }
    }

    fn pending_words(&self) -> u16 {
        self.vectors.div_ceil(32)
    }
}

/// The offsets of so many 32-bit words.
fn words(start: u64, count: u16) -> impl Iterator<Item = u64> {
    (0..u64::from(count)).map(move |word| start.saturating_add(word.saturating_mul(4)))
}
