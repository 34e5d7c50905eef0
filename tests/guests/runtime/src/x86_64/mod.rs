//! x86_64: local APIC, I/O ports, entry in 64-bit mode.

pub(crate) mod apic;
pub(crate) mod config;
mod entry;
pub(crate) mod interrupts;
pub(crate) mod machine;
pub(crate) mod mmio;
pub(crate) mod msi;
mod pvh;
mod start;

pub(crate) use apic as timer;
pub(crate) use entry::{VCPUS_MAX, image_end, vcpu_index};

/// Nothing: the processor itself can be asked.
#[derive(Clone, Copy, Debug)]
pub struct Platform;
