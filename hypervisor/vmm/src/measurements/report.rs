//! The report of a run, schema `pvmsi.report/1`.
//!
//! Fields are added in later minor versions, never renamed or removed. A
//! section that a function does not have is absent from its phase.

use pvmsi_hypervisor::{Counters, FunctionStatus, PinnedInterrupts};
use pvmsi_protocol::TableMode;
use serde::Serialize;

use super::exits::ExitCounts;

/// The schema of [`Report`].
pub const REPORT_SCHEMA: &str = "pvmsi.report/1";

/// What a run has shown.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`REPORT_SCHEMA`].
    pub schema: &'static str,
    /// Where it ran.
    pub host: Host,
    /// `off`, `trapped` or `direct`: what the operator allows the machine.
    pub policy: pvmsi_hypervisor::Policy,
    /// In the order of the command line.
    pub functions: Vec<FunctionReport>,
    /// Random operations under load, where the guest does that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soak: Option<Soak>,
    /// What is wrong; empty when the run has passed. The checks on figures are among them.
    pub failures: Vec<String>,
    /// All exits of the run.
    pub exits: ExitCounts,
    /// The longest call of PV-MSI.
    pub longest_call: LongestCall,
}

/// What `--vectors-per-call` bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LongestCall {
    /// How long the longest doorbell exit has held its vCPU, in nanoseconds.
    pub ns: u64,
    /// The most vectors that one `configure` call has set up.
    pub vectors: u16,
}

/// Where a machine ran.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    /// Kernel release.
    pub kernel: String,
    /// In bytes.
    pub page_size: u64,
    /// The module behind `/dev/kvm`, `kvm` where it cannot be told.
    pub kvm: String,
}

/// What was measured on a function.
#[derive(Clone, Debug, Serialize)]
pub struct FunctionReport {
    /// A software function: its address in the guest. A function of the host: its address there.
    pub id: String,
    /// Its address in the guest.
    pub guest_address: String,
    /// `software` or `vfio`.
    pub backend: &'static str,
    /// Entries of its vector table.
    pub vectors: u16,
    /// In the order in which the guest began them.
    pub phases: Vec<PhaseReport>,
    /// What the service says at the end of the run, or said when the host took the function back, where the guest is a Linux kernel, which sends no phases.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<FunctionService>,
    /// What became of the function's interrupts, where the machine pins them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pinning: Option<Pinning>,
}

/// Interrupts of the host that were set up for a function during the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Pinning {
    /// Those that one processor serves: the host's kernel moves none by itself.
    pub pinned: u32,
    /// Those that could not be pinned. The log says why, but for those that are not remapped.
    pub not_pinned: u32,
}

impl From<&PinnedInterrupts> for Pinning {
    fn from(interrupts: &PinnedInterrupts) -> Self {
        Self { pinned: interrupts.pinned(), not_pinned: interrupts.not_pinned() }
    }
}

/// How the service sees a function.
#[derive(Clone, Debug, Serialize)]
pub struct FunctionService {
    /// Who answers the vector table: `trapped` or `direct`.
    pub mode: &'static str,
    /// Why the table is not direct, as the specification spells it.
    pub reasons: Vec<&'static str>,
    /// Why the table's pages cannot be shown, with the reason `not-mappable`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_mappable: Option<String>,
    /// Vectors that are assigned.
    pub assigned: u16,
    /// Vectors that the guest uses or has asked for, and that the host has no interrupts or routes for.
    pub without_interrupts: u16,
    /// What happened since the start.
    pub counters: Counters,
}

impl From<&FunctionStatus> for FunctionService {
    fn from(status: &FunctionStatus) -> Self {
        Self {
            mode: match status.mode {
                TableMode::Trapped => "trapped",
                TableMode::Direct => "direct",
            },
            reasons: status.reasons.names().collect(),
            not_mappable: status.not_mappable.map(|why| why.to_string()),
            assigned: status.assigned,
            without_interrupts: status.without_interrupts,
            counters: status.counters,
        }
    }
}

/// The measurements of a function in one mode of its table.
#[derive(Clone, Debug, Serialize)]
pub struct PhaseReport {
    /// What the phase measures.
    pub mode: PhaseMode,
    /// Why the table is not direct, as the specification spells it. Empty in `direct` and in `legacy`.
    pub reasons: Vec<&'static str>,
    /// Set-up of all vectors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configure: Option<Configure>,
    /// Masking and unmasking one vector.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_unmask: Option<MaskUnmask>,
    /// Writing the register beside the table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub neighbour: Option<Neighbour>,
    /// Interrupts under load.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interrupts: Option<Interrupts>,
    /// Exits on the pages of table and pending bit array, from the set-up to the end of the phase.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table_exits_after_switch: Option<u64>,
    /// Reading a disk by interrupts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io: Option<Io>,
}

/// Who answers the vector table in a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PhaseMode {
    /// The host, for a guest that does not call PV-MSI.
    Legacy,
    /// The host, with vectors set up by PV-MSI.
    Trapped,
    /// The function itself.
    Direct,
}

impl PhaseMode {
    /// As in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::Trapped => "trapped",
            Self::Direct => "direct",
        }
    }
}

/// What the set-up of all vectors cost: from the guest's first write, with MSI-X disabled, until each vector has its message and is unmasked, so that it can fire. In every mode the same.
///
/// The guest may have done it several times. A count is then the largest of any, so that a bound of it is one of each.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Configure {
    /// Exits on the doorbell.
    pub doorbell_exits: u64,
    /// Updates of KVM's routing table.
    pub routing_updates: u64,
    /// Requests to set the function's interrupts up.
    pub interrupt_setups: u64,
    /// Vectors that can be used; the fewest of any set-up.
    pub granted: u16,
    /// Vectors that were asked for.
    pub requested: u16,
    /// All exits meanwhile, of all vCPUs.
    pub exits: u64,
    /// Exits on the pages of table and pending bit array.
    pub table_exits: u64,
    /// All requests that change the function's interrupts (`VFIO_DEVICE_SET_IRQS`): those of `interrupt_setups`, and those that set its MSI-X Enable.
    pub set_irqs: u64,
    /// Events that were attached to KVM (`KVM_IRQFD`).
    pub irqfds: u64,
    /// Time of the whole set-up in nanoseconds: the median of `ns_each`, the greater of the two in the middle where there are two.
    pub ns: u64,
    /// The time of each set-up, in their order.
    pub ns_each: Vec<u64>,
}

impl Configure {
    /// Takes in what other set-ups of the same vectors cost.
    pub(crate) fn merge(&mut self, other: Self) {
        let Self {
            doorbell_exits,
            routing_updates,
            interrupt_setups,
            granted,
            requested,
            exits,
            table_exits,
            set_irqs,
            irqfds,
            ns: _,
            ns_each,
        } = other;
        for (count, other) in [
            (&mut self.doorbell_exits, doorbell_exits),
            (&mut self.routing_updates, routing_updates),
            (&mut self.interrupt_setups, interrupt_setups),
            (&mut self.exits, exits),
            (&mut self.table_exits, table_exits),
            (&mut self.set_irqs, set_irqs),
            (&mut self.irqfds, irqfds),
        ] {
            *count = other.max(*count);
        }
        self.granted = self.granted.min(granted);
        self.requested = self.requested.max(requested);
        self.ns_each.extend(ns_each);
        let mut sorted = self.ns_each.clone();
        sorted.sort_unstable();
        self.ns = sorted.get(sorted.len() / 2).copied().unwrap_or(0);
    }
}

/// What masking and unmasking cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MaskUnmask {
    /// Pairs of a mask and an unmask.
    pub pairs: u64,
    /// All exits meanwhile, of all vCPUs.
    pub exits: u64,
    /// Time of a pair in nanoseconds.
    pub ns_per_pair: f64,
}

/// What writes beside the table cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Neighbour {
    /// Writes.
    pub writes: u64,
    /// All exits meanwhile, of all vCPUs.
    pub exits: u64,
    /// Time of a write in nanoseconds.
    pub ns_per_write: f64,
}

/// Interrupts under load, while another vCPU masks and unmasks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Interrupts {
    /// Events of the device: as the software function counted them; with a function of the host, as the guest asked for them.
    pub raised: u64,
    /// Events that the guest's handlers have seen.
    pub observed: u64,
    /// Events that they have not.
    pub lost: u64,
    /// Interrupts without a message of the device behind them.
    pub spurious: u64,
    /// Interrupts of a vector that was masked and quiet.
    pub while_masked: u64,
    /// Times a vector was masked and unmasked meanwhile.
    pub mask_cycles: u64,
}

/// Reading a disk by interrupts only.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Io {
    /// I/O commands of the guest.
    pub commands: u64,
    /// Exits on the memory of functions meanwhile: doorbells and other registers that share a page with the table.
    pub mmio_exits: u64,
    /// Blocks read.
    pub blocks: u64,
    /// Bytes that were as they must be.
    pub bytes_verified: u64,
    /// Bytes that were not.
    pub bytes_wrong: u64,
    /// Interrupts taken.
    pub interrupts: u64,
    /// I/O queues used.
    pub queues: u16,
    /// All exits meanwhile, of all vCPUs.
    pub exits: u64,
    /// Time in nanoseconds.
    pub ns: u64,
}

/// Random operations under load, over all functions.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Soak {
    /// How long, in seconds.
    pub seconds: u64,
    /// What the guest has counted.
    #[serde(flatten)]
    pub guest: pvmsi_guest_report::Soak,
    /// Times a table became direct or trapped.
    pub mode_switches: u64,
    /// Calls of PV-MSI.
    pub calls: u64,
    /// Calls that were answered with an error: all are valid, so there is none.
    pub failed_calls: u64,
    /// Updates of KVM's routing table.
    pub routing_updates: u64,
}

impl Soak {
    /// What the guest says, and what the functions have counted since the start.
    pub(crate) fn new(
        guest: &pvmsi_guest_report::Soak,
        functions: &[Counters],
        seconds: u64,
    ) -> Self {
        let sum = |of: fn(&Counters) -> u64| functions.iter().map(of).fold(0, u64::saturating_add);
        Self {
            seconds,
            guest: *guest,
            mode_switches: sum(|counters| {
                counters.switches_to_direct.saturating_add(counters.switches_to_trapped)
            }),
            calls: sum(|counters| counters.calls),
            failed_calls: sum(|counters| counters.failed_calls),
            routing_updates: sum(|counters| counters.routing_updates),
        }
    }

    /// What is wrong in the figures.
    pub(crate) fn check(&self) -> Vec<String> {
        [
            (self.guest.lost, "events lost"),
            (self.guest.doubled, "interrupts doubled"),
            (self.guest.while_masked, "interrupts while masked"),
            (self.failed_calls, "calls failed"),
        ]
        .into_iter()
        .filter(|(figure, _)| *figure != 0)
        .map(|(figure, what)| format!("soak: {figure} {what}"))
        .collect()
    }
}

impl Report {
    /// Whether the guest finished and nothing is wrong.
    pub fn passed(&self) -> bool {
        self.failures.is_empty()
    }
}

impl PhaseReport {
    /// What is wrong in the figures.
    pub(crate) fn check(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut check = |figure: u64, what: &str| {
            if figure != 0 {
                wrong.push(format!("{figure} {what}"));
            }
        };
        if let Some(interrupts) = &self.interrupts {
            check(interrupts.lost, "interrupts lost");
            check(interrupts.spurious, "spurious interrupts");
            check(interrupts.while_masked, "interrupts of masked vectors");
            let doubled = interrupts.observed.saturating_sub(interrupts.raised);
            check(doubled, "events observed that nobody raised");
        }
        if let Some(io) = &self.io {
            check(io.bytes_wrong, "bytes of the disk are wrong");
        }
        wrong
    }
}
