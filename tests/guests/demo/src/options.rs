//! What the command line says.

use pvmsi_guest_runtime::Start;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Set-ups of all vectors, in each world.
    pub(crate) setups: u32,
    /// Pairs of mask and unmask.
    pub(crate) pairs: u32,
    /// Writes to the register beside the table.
    pub(crate) writes: u32,
    /// Events that the software function is asked for under load.
    pub(crate) events: u32,
    /// Nanoseconds between two of them.
    pub(crate) pace: u32,
    /// Mebibytes to read from a disk.
    pub(crate) io_mib: u32,
    /// vCPUs.
    pub(crate) vcpus: usize,
}

impl Options {
    /// Reads the command line; what it does not say has a default, and everything has an upper bound.
    pub(crate) fn read(start: &Start, vcpus: usize) -> Self {
        let number = |key, default: u32, most: u32| {
            start
                .number(key)
                .map_or(default, |value| u32::try_from(value).unwrap_or(most).min(most))
        };
        Self {
            setups: number("setups", 3, 100),
            pairs: number("pairs", 2000, 100_000_000),
            writes: number("writes", 2000, 100_000_000),
            events: number("events", 100_000, 1_000_000_000),
            pace: number("pace", 30_000, 1_000_000_000),
            io_mib: number("io_mib", 64, 1 << 20),
            vcpus,
        }
    }
}
