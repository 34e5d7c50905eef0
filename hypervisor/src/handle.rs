//! A function as a device on a VMM's own bus.

use std::fmt;
use std::sync::{Arc, Weak};

use pvmsi_protocol::{FunctionId, Generation, Reasons, TableMode};
use vm_memory::GuestAddress;

use crate::counters::Counters;
use crate::entry::{Entry, FunctionError, Functions};
use crate::function::Isolation;
use crate::layout::{BarIndex, NotMappable};

/// How a function stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionStatus {
    /// Vectors that are assigned.
    pub assigned: u16,
    /// Vectors of the table.
    pub vectors: u16,
    /// Vectors that the host has no interrupts or routes for: of the emulated table where the guest uses that, which nothing else tells; of the last `configure` where it calls, which was told of its short grant.
    pub without_interrupts: u16,
    /// Who answers the table.
    pub mode: TableMode,
    /// Why the table is not direct.
    pub reasons: Reasons,
    /// Whether the host confines the function.
    pub isolation: Isolation,
    /// Why the pages of the table cannot be shown, and with that what the host can do; `None` where they can.
    pub not_mappable: Option<NotMappable>,
    /// What happened so far.
    pub counters: Counters,
    /// The most vectors that one `configure` call has set up.
    pub largest_call: u16,
    /// The number of the state.
    pub generation: Generation,
}

/// A function of a [`Service`](crate::Service): what [`add_function`](crate::Service::add_function) returns, for the VMM's buses to call.
///
/// Clones are the same function. A handle keeps nothing alive: when the function is
/// [removed](Self::remove), by whichever handle, or the service is dropped, pages, routes, interrupts
/// and files are gone, and from then on
/// - each method answers [`FunctionError::Removed`],
/// - reads fill `data` with ones, as on a bus where nobody answers, and writes do nothing,
/// - [`bars`](Self::bars) says that nothing is decoded.
///
/// All methods but [`id`](Self::id) and [`bars`](Self::bars) take the function's lock: they wait for
/// the call or access of another thread on the same function. Which wait for the kernel stands at each,
/// and for whom beyond that at the head of the [crate](crate#locks-re-entry-blocking). A seam that calls one of them for the function that it is
/// called for gets [`FunctionError::Reentered`]; nothing is done then, and reads give ones.
#[derive(Clone)]
pub struct FunctionHandle {
    entry: Arc<Entry>,
    functions: Weak<Functions>,
}

impl FunctionHandle {
    pub(crate) fn new(entry: Arc<Entry>, functions: &Arc<Functions>) -> Self {
        Self { entry, functions: Arc::downgrade(functions) }
    }

    /// The address that the guest sees. Does not wait.
    pub fn id(&self) -> FunctionId {
        self.entry.id
    }

    /// Where the function answers now, for a VMM that keeps it on a bus of its own: the first address and the length of each BAR, `None` for one that is not decoded. Changes with [`config_write`](Self::config_write), with resets, and with removal. Waits for no other call.
    pub fn bars(&self) -> [Option<(GuestAddress, u64)>; BarIndex::COUNT] {
        self.entry
            .decoded
            .ranges()
            .map(|range| range.map(|(start, size)| (GuestAddress(start), size)))
    }

    /// A read of a BAR that exited, `offset` bytes from its start. Waits for nothing but the lock.
    ///
    /// # Errors
    /// See [`FunctionError`]; `data` is ones then.
    pub fn bar_read(
        &self,
        bar: BarIndex,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), FunctionError> {
        let read = self.entry.with(|switch| switch.reader().bar_read(bar, offset, data));
        read.inspect_err(|_| data.fill(0xff))
    }

    /// A write of a BAR that exited. One that unmasks a vector may wait for the routing table (`KVM_SET_GSI_ROUTING`, up to 100 ms) and, the first time, for the interrupt set-up.
    ///
    /// # Errors
    /// See [`FunctionError`].
    pub fn bar_write(&self, bar: BarIndex, offset: u64, data: &[u8]) -> Result<(), FunctionError> {
        self.entry.with(|switch| switch.bar_write(&self.entry.decoded, bar, offset, data))
    }

    /// A read of configuration space. Waits for nothing but the lock.
    ///
    /// # Errors
    /// See [`FunctionError`]; `data` is ones then.
    pub fn config_read(&self, offset: u64, data: &mut [u8]) -> Result<(), FunctionError> {
        let read = self.entry.with(|switch| switch.reader().config_read(offset, data));
        read.inspect_err(|_| data.fill(0xff))
    }

    /// A write of configuration space: MSI-X control, decoding, BARs, power state and resets take effect before it returns. So it may wait for the routing table, for the interrupt set-up (which grows with the vectors) and for memory slots.
    ///
    /// # Errors
    /// See [`FunctionError`].
    pub fn config_write(&self, offset: u64, data: &[u8]) -> Result<(), FunctionError> {
        self.entry.operate(|operation| operation.config_write(offset, data))
    }

    /// Resets the function, as a function level reset does: what is assigned survives. Waits for the function, the interrupt set-up and memory slots.
    ///
    /// # Errors
    /// See [`FunctionError`].
    pub fn reset(&self) -> Result<(), FunctionError> {
        self.entry.operate(|operation| operation.reset_function())
    }

    /// Takes the function's table back, until [`allow`](Self::allow). On return no vCPU reaches it without an exit, but where the kernel has refused that ([`status`](Self::status) tells the mode). Waits for memory slots.
    ///
    /// # Errors
    /// See [`FunctionError`].
    pub fn revoke(&self) -> Result<(), FunctionError> {
        self.entry.operate(|operation| operation.revoke())
    }

    /// Gives a table back that was revoked, if all else allows it. Waits for memory slots.
    ///
    /// # Errors
    /// See [`FunctionError`].
    pub fn allow(&self) -> Result<(), FunctionError> {
        self.entry.operate(|operation| operation.allow())
    }

    /// Takes all of the function's pages out of the guest's memory map, and lets no access reach its BARs, until [`repair`](Self::repair): reads give ones, as of a function that is not there. For a function that has reported an error ([`VfioFunction::watch_errors`](crate::VfioFunction::watch_errors)), and for one that somebody else is about to reset, or put to sleep: what the guest has masked is known then. Its interrupts arrive if it sends any; its vectors stay assigned, and calls say *host-revoked*. Waits for memory slots.
    ///
    /// # Errors
    /// See [`FunctionError`]. Pages that the kernel refuses to take out are tried again with each operation.
    pub fn freeze(&self) -> Result<(), FunctionError> {
        self.entry.operate(|operation| operation.freeze())
    }

    /// Puts the function's table right after something that the service cannot see may have changed it: error recovery, the host's sleep, a reset through sysfs. Reads again where the function is decoded, writes the table messages, and counts another generation; ends [`freeze`](Self::freeze). What is assigned survives. Mask bits stay what they were where the table was trapped or frozen in time; of a direct table those count that stand there by now, and Linux clears them. To call it without need costs no more than two changes of mode. Waits for memory slots, and for the interrupt set-up where the table could not be read before.
    ///
    /// `false` where the function still gives nothing but ones: it is frozen then, and may be repaired later. One with decoding off is as good as repaired: its table is written when the guest turns it on. So is one whose table cannot be written: that is tried again with each operation, and the table stays trapped.
    ///
    /// # Errors
    /// See [`FunctionError`].
    pub fn repair(&self) -> Result<bool, FunctionError> {
        self.entry.operate(|operation| operation.repair())
    }

    /// How the function stands. Waits for nothing but the lock.
    ///
    /// # Errors
    /// See [`FunctionError`].
    pub fn status(&self) -> Result<FunctionStatus, FunctionError> {
        self.entry.with(|switch| FunctionStatus {
            assigned: switch.assigned(),
            vectors: switch.layout().vectors(),
            mode: switch.mode(),
            reasons: switch.reasons(),
            isolation: switch.isolation().clone(),
            not_mappable: switch.not_mappable(),
            counters: switch.counters(),
            without_interrupts: switch.without_interrupts(),
            largest_call: switch.largest_call(),
            generation: switch.generation(),
        })
    }

    /// Takes the function out of the service: its pages, its routes, its interrupts, its open files are gone on return, and its address is free. Waits for all of these.
    ///
    /// # Errors
    /// See [`FunctionError`]. Of two threads that remove a function one is told that it is removed already.
    pub fn remove(&self) -> Result<(), FunctionError> {
        let functions = self.functions.upgrade().ok_or(FunctionError::Removed(self.entry.id))?;
        functions.remove(&self.entry)
    }
}

impl fmt::Debug for FunctionHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FunctionHandle").field("id", &self.entry.id).finish_non_exhaustive()
    }
}
