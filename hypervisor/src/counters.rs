//! What happened, counted.

use serde::Serialize;

/// Counts since a function was added. All are exact; none is a rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Calls that named this function, by doorbell.
    pub calls: u64,
    /// Calls that were answered with an error.
    pub failed_calls: u64,
    /// `configure` calls that succeeded.
    pub configures: u64,
    /// Updates of the VM's routing table on behalf of this function.
    pub routing_updates: u64,
    /// Requests to set the function's interrupts up, or to take them down with MSI-X still enabled (`VFIO_DEVICE_SET_IRQS`).
    pub interrupt_setups: u64,
    /// Requests that set or clear the function's own MSI-X Enable and set nothing up (`VFIO_DEVICE_SET_IRQS` as well): when the guest enables, and when it disables, resets or leaves the function.
    pub enable_changes: u64,
    /// Events attached to a GSI.
    pub attaches: u64,
    /// Events detached from a GSI.
    pub detaches: u64,
    /// Trapped reads of the vector table.
    pub table_reads: u64,
    /// Trapped writes of the vector table.
    pub table_writes: u64,
    /// Trapped accesses to the pending bit array.
    pub pending_accesses: u64,
    /// Trapped reads of registers beside the table.
    pub neighbour_reads: u64,
    /// Trapped writes of registers beside the table.
    pub neighbour_writes: u64,
    /// Times the table went from trapped to direct.
    pub switches_to_direct: u64,
    /// Times the table went from direct to trapped.
    pub switches_to_trapped: u64,
}

impl Counters {
    /// Trapped accesses to the pages of the table and the pending bit array: what direct mode saves.
    pub fn table_page_exits(&self) -> u64 {
        [
            self.table_reads,
            self.table_writes,
            self.pending_accesses,
            self.neighbour_reads,
            self.neighbour_writes,
        ]
        .into_iter()
        .fold(0, u64::saturating_add)
    }

    /// What was counted since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            calls: self.calls.saturating_sub(earlier.calls),
            failed_calls: self.failed_calls.saturating_sub(earlier.failed_calls),
            configures: self.configures.saturating_sub(earlier.configures),
            routing_updates: self.routing_updates.saturating_sub(earlier.routing_updates),
            interrupt_setups: self.interrupt_setups.saturating_sub(earlier.interrupt_setups),
            enable_changes: self.enable_changes.saturating_sub(earlier.enable_changes),
            attaches: self.attaches.saturating_sub(earlier.attaches),
            detaches: self.detaches.saturating_sub(earlier.detaches),
            table_reads: self.table_reads.saturating_sub(earlier.table_reads),
            table_writes: self.table_writes.saturating_sub(earlier.table_writes),
            pending_accesses: self.pending_accesses.saturating_sub(earlier.pending_accesses),
            neighbour_reads: self.neighbour_reads.saturating_sub(earlier.neighbour_reads),
            neighbour_writes: self.neighbour_writes.saturating_sub(earlier.neighbour_writes),
            switches_to_direct: self.switches_to_direct.saturating_sub(earlier.switches_to_direct),
            switches_to_trapped: self
                .switches_to_trapped
                .saturating_sub(earlier.switches_to_trapped),
        }
    }
}
