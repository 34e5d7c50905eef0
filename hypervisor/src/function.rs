//! The *function* seam: what the service needs of a PCI function, real or not.
//!
//! Implementations: [`VfioFunction`](crate::VfioFunction) for real ones and
//! `SoftwareFunction` of `pvmsi-software`, the embedded default and the
//! test double. An implementation knows nothing of guests, modes or calls.

use std::io;
use std::sync::Arc;

use pvmsi_protocol::{Delivery, VectorIndex};
use thiserror::Error;
use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::EventFd;

use crate::layout::{BarIndex, Layout};
use crate::vector_table::VectorTable;

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

/// The interrupts of a function were not set up as asked for, and are as before.
#[derive(Debug, Error)]
pub enum SetUpError {
    /// The host has interrupts for fewer vectors. Leads to a short grant.
    #[error("the host is short of interrupts for the function; {available} may be had")]
    TooFew {
        /// For how many to try next, from vector 0 on: fewer than were asked for.
        available: u16,
        /// Whether that is a guess: there may be fewer, or more.
        guess: bool,
    },
    /// The function or the kernel refuses.
    #[error(transparent)]
    Refused(#[from] io::Error),
}

impl SetUpError {
    /// For how many vectors to try next, if it was for want of interrupts.
    pub(crate) fn available(&self) -> Option<usize> {
        match self {
            Self::TooFew { available, .. } => Some(usize::from(*available)),
            Self::Refused(_) => None,
        }
    }

    pub(crate) fn is_guess(&self) -> bool {
        matches!(self, Self::TooFew { guess: true, .. })
    }
}

/// A PCI function that is passed through to a guest.
///
/// The service calls it under the function's lock, one call at a time. It
/// touches the table only while memory decoding is on and the function is in
/// D0: the service keeps account of both.
pub trait PciFunction: Send {
    /// The snapshot of the layout; always the same. With BARs that are smaller than a page of the host grown, where the whole page is among the [`mappings`](Self::mappings) ([`Layout::with_own_pages`]): their registers need not know, and `bar_read` gives ones behind the function's own end.
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
    /// See [`SetUpError`]; Enable is then as before.
    fn set_enabled(&mut self, enabled: bool) -> Result<(), SetUpError>;

    /// Makes the vectors from `first` on signal `events`, for all of them with *one* request, unmasked in the function's table, and sets the function's own MSI-X Enable where it is clear. Those behind them have no interrupts then; without events Enable stays as it is. The vectors before `first` are set up and are not touched, nor are their entries of the table, which a guest may have at this moment. Events of vectors that stay set up are not lost.
    ///
    /// # Errors
    /// See [`SetUpError`]; the set-up is then as before. What [`TooFew`](SetUpError::TooFew) says counts from vector 0.
    fn set_up_interrupts(
        &mut self,
        first: VectorIndex,
        events: &[&EventFd],
    ) -> Result<(), SetUpError>;

    /// The function's vector table and pending bits: a [`MappedTable`](crate::MappedTable) where its BARs are mapped.
    fn table(&mut self) -> &mut dyn VectorTable;

    /// Returns when every event of a vector that is masked by now has been signalled: what was under way when the mask bit was set has arrived.
    fn settle(&mut self);

    /// Reads configuration space at `offset`; bytes past its end read as ones. MSI-X Enable is the function's own, as it is now: where a reset has cleared it behind the kernel's back, the interrupts are set up anew.
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
