//! The *function* seam: what the service needs of a PCI function, real or not.
//!
//! Implementations: [`VfioFunction`](crate::VfioFunction) for real ones and
//! [`SoftwareFunction`](crate::SoftwareFunction), the embedded default and the
//! test double. An implementation knows nothing of guests, modes or calls.

use std::io;
use std::sync::Arc;

use pvmsi_protocol::{Delivery, TableMessage, VectorIndex};
use thiserror::Error;
use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::EventFd;

use crate::layout::{BarIndex, Layout};

/// Whether the host confines a function to its own interrupts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// It does: whatever message the function emits, only its own interrupts can result.
    Isolated,
    /// It does not, or nobody can tell; with the reason and the remedy, for the operator.
    NotIsolated(String),
}

/// A part of a BAR that the host can map, and so can a guest.
#[derive(Clone, Debug)]
pub struct BarMapping {
    /// The BAR.
    pub bar: BarIndex,
    /// Where in the BAR the part starts, page aligned.
    pub offset: u64,
    /// The part's memory in this process; a whole number of pages.
    pub memory: Arc<MmapRegion>,
}

/// The host has interrupts for fewer vectors than were to be set up. What holds this in an [`io::Error`] leads to a short grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the host is short of interrupts for the function; {available} are to be had, or fewer")]
pub struct TooFewInterrupts {
    /// For how many to try next, from vector 0 on: fewer than were asked for.
    pub available: u16,
}

impl TooFewInterrupts {
    /// What an error says of it.
    pub(crate) fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

impl From<TooFewInterrupts> for io::Error {
    fn from(error: TooFewInterrupts) -> Self {
        Self::other(error)
    }
}

/// A PCI function that is passed through to a guest.
///
/// The service calls it under the function's lock, one call at a time. It
/// touches the table only while memory decoding is on and the function is in
/// D0: the service keeps account of both.
pub trait PciFunction: Send {
    /// The snapshot of the layout; always the same.
    fn layout(&self) -> &Layout;

    /// Whether the host confines the function to its own interrupts.
    fn isolation(&self) -> Isolation;

    /// The mappable parts of the BARs, table pages included where they can be mapped.
    ///
    /// # Errors
    /// When the kernel refuses a mapping.
    fn mappings(&self) -> io::Result<Vec<BarMapping>>;

    /// Whether delivery bypasses the host's processor, where that can be known.
    fn delivery(&self) -> Delivery {
        Delivery::Unknown
    }

    /// How many vectors must be set up so that `wanted` can be used, now or later: the full table where set-up cannot grow (`VFIO_IRQ_INFO_NORESIZE`) and enabling the function has not allocated enough before.
    fn set_up_count(&self, wanted: u16) -> u16 {
        wanted
    }

    /// Sets or clears MSI-X Enable of the function itself: set, with every vector masked and no event; cleared, with all interrupts down. Nothing changes where it is so already. Some functions look at it when they are started, before any vector is unmasked.
    ///
    /// # Errors
    /// When the function or the kernel refuses; Enable is then as before.
    fn set_enabled(&mut self, enabled: bool) -> io::Result<()>;

    /// Makes the vectors from `first` on signal `events`, for all of them with *one* request, unmasked in the function's table, and sets the function's own MSI-X Enable where it is clear. Those behind them have no interrupts then; without events Enable stays as it is. The vectors before `first` are set up and are not touched, nor are their entries of the table, which a guest may have at this moment. Events of vectors that stay set up are not lost.
    ///
    /// # Errors
    /// When the function or the kernel refuses; the set-up is then as before. [`TooFewInterrupts`], as the error's inner one, where fewer can be had; it counts from vector 0.
    fn set_up_interrupts(&mut self, first: VectorIndex, events: &[&EventFd]) -> io::Result<()>;

    /// The message that stands in the table for a vector that is set up. Where the function is not isolated, the host may change it at any time.
    ///
    /// # Errors
    /// When the table cannot be read; [`Unsupported`](io::ErrorKind::Unsupported) where the host can never reach it: it then does without, as far as a function's own mask bits are an additional safety.
    fn table_message(&mut self, vector: VectorIndex) -> io::Result<TableMessage>;

    /// Writes a message into the table.
    ///
    /// # Errors
    /// When the table cannot be written.
    fn set_table_message(&mut self, vector: VectorIndex, message: TableMessage) -> io::Result<()>;

    /// The mask bit in the table.
    ///
    /// # Errors
    /// When the table cannot be read.
    fn masked(&mut self, vector: VectorIndex) -> io::Result<bool>;

    /// Sets or clears the mask bit in the table, and waits until the function has seen it.
    ///
    /// # Errors
    /// When the table cannot be written.
    fn set_masked(&mut self, vector: VectorIndex, masked: bool) -> io::Result<()>;

    /// The bit in the function's pending bit array.
    ///
    /// # Errors
    /// When the array cannot be read.
    fn pending(&mut self, vector: VectorIndex) -> io::Result<bool>;

    /// Returns when every event of a vector that is masked by now has been signalled: what was under way when the mask bit was set has arrived.
    fn settle(&mut self);

    /// Reads configuration space at `offset`; bytes past its end read as ones.
    fn config_read(&mut self, offset: u64, data: &mut [u8]);

    /// Writes configuration space at `offset`. Function level reset, power state and BARs are the function's; MSI-X Enable and Function Mask never reach it.
    fn config_write(&mut self, offset: u64, data: &[u8]);

    /// Reads a BAR beside the table and the pending bit array. `data` has 1, 2, 4 or 8 bytes.
    fn bar_read(&mut self, bar: BarIndex, offset: u64, data: &mut [u8]);

    /// Writes a BAR beside the table and the pending bit array. `data` has 1, 2, 4 or 8 bytes.
    fn bar_write(&mut self, bar: BarIndex, offset: u64, data: &[u8]);

    /// Resets the function. Interrupts stay set up; whether the table's content survives is not promised.
    ///
    /// # Errors
    /// When the function cannot be reset.
    fn reset(&mut self) -> io::Result<()>;
}
