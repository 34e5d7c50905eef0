//! What a guest of `pvmsi run` tells the machine about its measurements.
//!
//! The guest says what it does and what it saw; the machine adds what it cost
//! (exits, routing updates, time), which it counts between the events. One
//! page carries one event: a little-endian 32-bit length, then postcard.
#![no_std]
#![forbid(unsafe_code)]

use pvmsi_protocol::{FunctionId, Reasons, TableMode};
use serde::{Deserialize, Serialize};

/// The I/O port that takes the page number of an event.
pub const REPORT_PORT: u16 = 0x5660;

/// Bytes of the page that carries an event.
pub const EVENT_BYTES: usize = 4096;

/// Which world a phase measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum World {
    /// The standard vector table: no call of PV-MSI is made.
    Legacy,
    /// PV-MSI: trapped or direct, as the host decides.
    Paravirtual,
}

/// What is measured between [`Event::SectionStart`] and [`Event::SectionEnd`]. One after the other; nothing else runs in the guest meanwhile, except in `Interrupts` and `Io`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Section {
    /// All vectors of the function are set up: from the first write until each has its message and is unmasked, so that it can fire. The same in both worlds. A phase can hold several; the report shows what they have in common.
    Configure,
    /// A vector is masked and unmasked.
    MaskUnmask,
    /// The register beside the table is written.
    Neighbour,
    /// Interrupts under load while another vCPU masks and unmasks.
    Interrupts,
    /// A disk is read by interrupts.
    Io,
}

/// What the guest did and saw in a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Of [`Section::Configure`].
    Configure {
        /// Vectors asked for.
        requested: u16,
        /// Vectors that can be used.
        granted: u16,
    },
    /// Of [`Section::MaskUnmask`].
    MaskUnmask {
        /// Pairs of mask and unmask.
        pairs: u32,
    },
    /// Of [`Section::Neighbour`].
    Neighbour {
        /// Writes.
        writes: u32,
    },
    /// Of [`Section::Interrupts`].
    Interrupts {
        /// Events that the device was asked for.
        requested: u64,
        /// Events that the handlers have seen.
        observed: u64,
        /// Interrupts without a message of the device behind them.
        spurious: u64,
        /// Interrupts of a vector that was masked and quiet.
        while_masked: u64,
        /// Times a vector was masked and unmasked meanwhile.
        mask_cycles: u64,
    },
    /// Of [`Section::Io`].
    Io {
        /// I/O commands handed to the controller.
        commands: u64,
        /// Blocks read.
        blocks: u64,
        /// Bytes compared with what the disk must hold.
        bytes_verified: u64,
        /// Bytes that differed.
        bytes_wrong: u64,
        /// Interrupts taken; nothing is polled.
        interrupts: u64,
        /// I/O queues used.
        queues: u16,
    },
}

/// How a soak stands: totals since its start, over all functions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Soak {
    /// Rounds that have been settled; the other figures are exact after each.
    pub rounds: u64,
    /// Events that the devices have raised.
    pub events: u64,
    /// Interrupts that the handlers have taken.
    pub interrupts: u64,
    /// Events without an interrupt of their own, as the vector was pending already.
    pub merged: u64,
    /// Events that a reset or the end of an assignment has dropped.
    pub dropped: u64,
    /// Events that had to be delivered and were not.
    pub lost: u64,
    /// Interrupts without a message behind them.
    pub doubled: u64,
    /// Interrupts of a vector or function that was masked and quiet.
    pub while_masked: u64,
    /// Operations on functions, other than masking.
    pub operations: u64,
    /// Vectors masked or unmasked.
    pub mask_changes: u64,
}

/// An event of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event<'a> {
    /// A phase begins: all sections of one function in one world. It goes on where it has ended before, so that the worlds can take turns.
    PhaseStart {
        /// The function.
        function: FunctionId,
        /// The world.
        world: World,
    },
    /// A section begins. Time and counters start when the machine has seen it.
    SectionStart(Section),
    /// The section has ended.
    SectionEnd(Outcome),
    /// How the table stands, after the set-up of the phase.
    Mode {
        /// Who answers the table; `Trapped` in the legacy world.
        mode: TableMode,
        /// Why it is not direct.
        reasons: Reasons,
    },
    /// The phase has ended and the function is back to its default.
    PhaseEnd,
    /// Something is wrong; the run fails, and goes on.
    Failure(&'a str),
    /// The guest has finished. The run ends.
    Done,
    /// How a soak stands. The first one starts the machine's counters.
    Soak(Soak),
}

/// The event does not fit its page, or the page holds none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventError;

impl core::fmt::Display for EventError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("the page holds no event of the report channel")
    }
}

impl core::error::Error for EventError {}

impl<'a> Event<'a> {
    /// Writes the event into its page.
    ///
    /// # Errors
    /// [`EventError`] when a text is too long for it.
    pub fn encode(&self, page: &mut [u8; EVENT_BYTES]) -> Result<(), EventError> {
        let (length, body) = page.split_first_chunk_mut::<4>().ok_or(EventError)?;
        let used = postcard::to_slice(self, body).map_err(|_| EventError)?.len();
        *length = u32::try_from(used).map_err(|_| EventError)?.to_le_bytes();
        Ok(())
    }

    /// Reads the event in a page.
    ///
    /// # Errors
    /// [`EventError`] when there is none.
    pub fn decode(page: &'a [u8; EVENT_BYTES]) -> Result<Self, EventError> {
        let (length, body) = page.split_first_chunk::<4>().ok_or(EventError)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| EventError)?;
        postcard::from_bytes(body.get(..length).ok_or(EventError)?).map_err(|_| EventError)
    }
}
