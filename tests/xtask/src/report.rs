//! The report of `pvmsi run`, schema `pvmsi.report/1`, as its reader sees it.
//!
//! These are not the types that write it: a change there that breaks readers must show here.

use std::fmt;

use serde::Deserialize;

/// The schema that this reader knows.
pub(crate) const SCHEMA: &str = "pvmsi.report/1";

/// The whole report.
#[derive(Debug, Deserialize)]
pub(crate) struct Report {
    schema: String,
    /// Where it ran.
    pub host: Host,
    policy: String,
    /// In the order of the command line.
    pub functions: Vec<Function>,
    /// Random operations under load.
    pub soak: Option<Soak>,
    /// What the run itself found wrong.
    #[serde(default)]
    pub failures: Vec<String>,
}

/// What a soak has done and seen.
#[derive(Debug, Deserialize)]
pub(crate) struct Soak {
    /// How long.
    pub seconds: u64,
    rounds: u64,
    /// Operations of the guest, other than masking.
    pub operations: u64,
    /// Vectors masked or unmasked.
    pub mask_changes: u64,
    /// Times a table became direct or trapped.
    pub mode_switches: u64,
    calls: u64,
    routing_updates: u64,
    /// Raised by the devices.
    pub events: u64,
    interrupts: u64,
    merged: u64,
    dropped: u64,
    /// Events that had to be delivered and were not.
    pub lost: u64,
    /// Interrupts without a message.
    pub doubled: u64,
    /// Interrupts of a masked vector or function.
    pub while_masked: u64,
}

/// What became of a function's interrupts while the host moved them, or others: an item of `moving`.
#[derive(Debug, Deserialize)]
pub(crate) struct Moving {
    host_kernel: String,
    page_size: u64,
    mode: String,
    /// How long.
    pub seconds: u64,
    /// Interrupts of the function that the service has pinned.
    pub pinned: u64,
    /// Those that it could not pin.
    pub not_pinned: u64,
    /// Interrupts that were moved.
    pub moves: u64,
    /// Times a processor was taken off.
    pub processors_off: u64,
    /// Times the table changed hands.
    pub switches: u64,
    /// Commands of the drive, each an event.
    pub events: u64,
    /// Events that were due and did not come.
    pub lost: u64,
    held: u64,
    /// Events without a command.
    pub doubled: u64,
    /// Events of a masked vector.
    pub while_masked: u64,
    /// Mask bits that the guest has set in a direct table.
    pub masks: u64,
    /// Those that somebody else has cleared.
    pub masks_cleared: u64,
    /// Mask bits that somebody else has set.
    pub masks_set: u64,
}

/// Where it ran.
#[derive(Debug, Deserialize)]
pub(crate) struct Host {
    kernel: String,
    /// Of its kernel.
    pub page_size: u64,
}

/// A PCI function.
#[derive(Debug, Deserialize)]
pub(crate) struct Function {
    /// Its address in the guest, or its name on the host.
    pub id: String,
    /// `software` or `vfio`.
    pub backend: String,
    /// Vectors that it has.
    pub vectors: u64,
    /// The standard table first, then PV-MSI.
    pub phases: Vec<Phase>,
}

/// The measurements of a function in one table mode.
#[derive(Debug, Deserialize)]
pub(crate) struct Phase {
    /// `legacy`, `trapped` or `direct`.
    pub mode: String,
    /// Why it is not direct.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// Set-up of all vectors.
    pub configure: Option<Configure>,
    /// Masking and unmasking.
    pub mask_unmask: Option<MaskUnmask>,
    /// Writes to a register beside the table.
    pub neighbour: Option<Neighbour>,
    /// Interrupts under load.
    pub interrupts: Option<Interrupts>,
    /// Exits on the table's pages since it became direct.
    pub table_exits_after_switch: Option<u64>,
    /// Reading a disk.
    pub io: Option<Io>,
}

/// What the set-up cost.
#[derive(Debug, Deserialize)]
pub(crate) struct Configure {
    /// Calls that reached the host.
    pub doorbell_exits: u64,
    /// `KVM_SET_GSI_ROUTING`.
    pub routing_updates: u64,
    /// Requests to set the function's interrupts up.
    pub interrupt_setups: u64,
    /// Vectors that can be used.
    pub granted: u64,
    /// All exits meanwhile.
    pub exits: u64,
    /// Those on the pages of table and pending bit array.
    pub table_exits: u64,
    /// All of `VFIO_DEVICE_SET_IRQS`, those for MSI-X Enable included.
    pub set_irqs: u64,
    /// Vectors that KVM was told to deliver.
    pub irqfds: u64,
    /// The median of the times.
    pub ns: u64,
    /// Each time.
    pub ns_each: Vec<u64>,
}

/// What masking cost.
#[derive(Debug, Deserialize)]
pub(crate) struct MaskUnmask {
    /// Pairs of mask and unmask.
    pub pairs: u64,
    /// Exits meanwhile.
    pub exits: u64,
    /// Time of a pair.
    pub ns_per_pair: f64,
}

/// What writes beside the table cost.
#[derive(Debug, Deserialize)]
pub(crate) struct Neighbour {
    /// Writes.
    pub writes: u64,
    /// Exits meanwhile.
    pub exits: u64,
    /// Time of a write.
    pub ns_per_write: f64,
}

/// Interrupts under load.
#[derive(Debug, Deserialize)]
pub(crate) struct Interrupts {
    /// Events of the device.
    pub raised: u64,
    /// Events that the handlers have seen.
    pub observed: u64,
    /// Events that they have not.
    pub lost: u64,
    /// Interrupts without an event.
    pub spurious: u64,
    /// Interrupts of a masked vector.
    pub while_masked: u64,
}

/// Reading a disk by interrupts.
#[derive(Debug, Deserialize)]
pub(crate) struct Io {
    /// I/O commands of the guest.
    pub commands: u64,
    /// Exits on the function's registers meanwhile.
    pub mmio_exits: u64,
    /// Bytes that were as they must be.
    pub bytes_verified: u64,
    /// Bytes that were not.
    pub bytes_wrong: u64,
    /// I/O queues used.
    pub queues: u64,
    /// Interrupts taken.
    pub interrupts: u64,
}

impl Report {
    /// Reads a report.
    ///
    /// # Errors
    /// When the text is no report of the schema.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        let report: Self = serde_json::from_str(text)
            .map_err(|error| format!("no report of schema {SCHEMA}: {error}"))?;
        if report.schema != SCHEMA {
            return Err(format!("schema {}, must be {SCHEMA}", report.schema));
        }
        Ok(report)
    }

    /// A function by the name in its id.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn function(&self, name: &str) -> Result<&Function, String> {
        self.functions
            .iter()
            .find(|function| function.id.ends_with(name))
            .ok_or_else(|| format!("the report has no function {name}"))
    }
}

impl Function {
    /// The phase of a mode.
    ///
    /// # Errors
    /// When there is none; names those that there are, with their reasons.
    pub(crate) fn phase(&self, mode: &str) -> Result<&Phase, String> {
        self.phases.iter().find(|phase| phase.mode == mode).ok_or_else(|| {
            let found: Vec<String> = self
                .phases
                .iter()
                .map(|phase| format!("{} {}", phase.mode, phase.reasons.join(" ")))
                .collect();
            format!("{} has no phase {mode}, only: {}", self.id, found.join(", "))
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "host {}, page size {}, policy {}",
            self.host.kernel, self.host.page_size, self.policy
        )?;
        for function in &self.functions {
            writeln!(f, "\n{} ({}, {} vectors)", function.id, function.backend, function.vectors)?;
            writeln!(
                f,
                "  {:<8} {:>12} {:>8} {:>8} {:>6} {:>9} {:>11} {:>9} {:>11} {:>9} {:>18} {:>12} \
                 {:>13}",
                "mode",
                "set-up exits",
                "routings",
                "SET_IRQS",
                "irqfds",
                "set-up us",
                "exits/pair",
                "ns/pair",
                "exits/write",
                "ns/write",
                "interrupts (lost)",
                "bytes read",
                "exits/command"
            )?;
            for phase in &function.phases {
                phase.row(f)?;
            }
        }
        for failure in &self.failures {
            writeln!(f, "\nwrong: {failure}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Soak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, figure) in [
            ("seconds", self.seconds),
            ("rounds", self.rounds),
            ("operations", self.operations),
            ("mask changes", self.mask_changes),
            ("mode switches", self.mode_switches),
            ("calls", self.calls),
            ("routing updates", self.routing_updates),
            ("events", self.events),
            ("interrupts", self.interrupts),
            ("merged", self.merged),
            ("dropped by resets and releases", self.dropped),
            ("lost", self.lost),
            ("doubled", self.doubled),
            ("while masked", self.while_masked),
        ] {
            writeln!(f, "{name:<32}{figure:>12}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Moving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "host {}, page size {}, {}", self.host_kernel, self.page_size, self.mode)?;
        for (name, figure) in [
            ("seconds", self.seconds),
            ("interrupts pinned", self.pinned),
            ("  not pinned", self.not_pinned),
            ("interrupts moved", self.moves),
            ("processors taken off", self.processors_off),
            ("mode switches", self.switches),
            ("events", self.events),
            ("lost", self.lost),
            ("  of these, held for ever", self.held),
            ("doubled", self.doubled),
            ("while masked", self.while_masked),
            ("mask bits set by the guest", self.masks),
            ("  cleared by somebody else", self.masks_cleared),
            ("mask bits set by somebody else", self.masks_set),
        ] {
            writeln!(f, "{name:<32}{figure:>12}")?;
        }
        Ok(())
    }
}

impl Phase {
    fn row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let none = || "-".to_owned();
        let [set_up, routings, set_irqs, irqfds, set_up_time] =
            self.configure.as_ref().map_or_else(
                || [(); 5].map(|()| none()),
                |c| {
                    [c.exits, c.routing_updates, c.set_irqs, c.irqfds, c.ns / 1000]
                        .map(|figure| figure.to_string())
                },
            );
        let (pair_exits, pair_time) = self.mask_unmask.as_ref().map_or_else(
            || (none(), none()),
            |m| (ratio(m.exits, m.pairs), format!("{:.0}", m.ns_per_pair)),
        );
        let (write_exits, write_time) = self.neighbour.as_ref().map_or_else(
            || (none(), none()),
            |n| (ratio(n.exits, n.writes), format!("{:.0}", n.ns_per_write)),
        );
        let interrupts = self
            .interrupts
            .as_ref()
            .map_or_else(none, |i| format!("{}/{} ({})", i.observed, i.raised, i.lost));
        let (io, io_exits) = self.io.as_ref().map_or_else(
            || (none(), none()),
            |io| (io.bytes_verified.to_string(), ratio(io.mmio_exits, io.commands)),
        );
        writeln!(
            f,
            "  {:<8} {set_up:>12} {routings:>8} {set_irqs:>8} {irqfds:>6} {set_up_time:>9} \
             {pair_exits:>11} {pair_time:>9} {write_exits:>11} {write_time:>9} {interrupts:>18} \
             {io:>12} {io_exits:>13}",
            self.mode
        )?;
        if !self.reasons.is_empty() {
            writeln!(f, "           not direct: {}", self.reasons.join(", "))?;
        }
        Ok(())
    }
}

/// Exits per operation, in hundredths at most.
fn ratio(exits: u64, operations: u64) -> String {
    let hundredths = exits.saturating_mul(100).checked_div(operations).unwrap_or(0);
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}
