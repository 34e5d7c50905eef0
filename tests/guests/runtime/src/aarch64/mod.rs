//! arm64: GICv3 with an interrupt translation service, device tree, entry at EL1.

pub(crate) mod config;
mod device_tree;
mod entry;
mod gic;
pub(crate) mod interrupts;
mod its;
mod lpi;
pub(crate) mod machine;
pub(crate) mod mmio;
pub(crate) mod msi;
mod platform;
pub(crate) mod timer;

pub(crate) use entry::{VCPUS_MAX, image_end, vcpu_index};
pub use platform::{Conduit, Platform};
