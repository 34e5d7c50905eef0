//! Exits of the vCPUs to this process, counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// What an exit was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitKind {
    /// The doorbell of PV-MSI.
    Doorbell,
    /// Memory of a function.
    FunctionMmio,
    /// Configuration space.
    PciConfig,
    /// The serial port.
    Serial,
    /// The report channel.
    Report,
    /// Anything else.
    Other,
}

/// Exits to this process since the machine was built, of all vCPUs. Exits that the kernel handles itself do not count, nor do interruptions by the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExitCounts {
    /// The doorbell of PV-MSI.
    pub doorbell: u64,
    /// Memory of a function that is not mapped into the guest.
    pub function_mmio: u64,
    /// Configuration space.
    pub pci_config: u64,
    /// The serial port.
    pub serial: u64,
    /// The report channel.
    pub report: u64,
    /// Anything else.
    pub other: u64,
}

impl ExitCounts {
    /// All of them.
    pub fn total(&self) -> u64 {
        [self.doorbell, self.function_mmio, self.pci_config, self.serial, self.report, self.other]
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}

/// The counters that all vCPUs share.
#[derive(Debug, Default)]
pub(crate) struct ExitCounters {
    doorbell: AtomicU64,
    function_mmio: AtomicU64,
    pci_config: AtomicU64,
    serial: AtomicU64,
    report: AtomicU64,
    other: AtomicU64,
    longest_doorbell_ns: AtomicU64,
}

impl ExitCounters {
    /// A call was served in so much time.
    pub(crate) fn served(&self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.longest_doorbell_ns.fetch_max(ns, Ordering::Relaxed);
    }

    /// How long the longest call has held its vCPU, in nanoseconds.
    pub(crate) fn longest_doorbell_ns(&self) -> u64 {
        self.longest_doorbell_ns.load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self, kind: ExitKind) {
        let counter = match kind {
            ExitKind::Doorbell => &self.doorbell,
            ExitKind::FunctionMmio => &self.function_mmio,
            ExitKind::PciConfig => &self.pci_config,
            ExitKind::Serial => &self.serial,
            ExitKind::Report => &self.report,
            ExitKind::Other => &self.other,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> ExitCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ExitCounts {
            doorbell: read(&self.doorbell),
            function_mmio: read(&self.function_mmio),
            pci_config: read(&self.pci_config),
            serial: read(&self.serial),
            report: read(&self.report),
            other: read(&self.other),
        }
    }
}
