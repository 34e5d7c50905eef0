//! What every bare-metal guest of the reference machine needs.
//!
//! The machine is described in `hypervisor/vmm/MACHINE.md`. A guest gives
//! [`entry!`] its main function, which runs on every vCPU with interrupts off,
//! a stack, and an interrupt controller that is ready. No vector registers, no
//! allocator: soft-float code for hosts that interpret it.
//!
//! What differs between processors is in `arch`, with the same interface on
//! each: how a vCPU starts, takes and sends interrupts, keeps time, reaches
//! configuration space and the machine's own registers, and which message
//! makes a function interrupt it.
#![no_std]

#[cfg(not(target_os = "none"))]
compile_error!(
    "guests run without an operating system: build with --target x86_64-unknown-none or --target aarch64-unknown-none-softfloat"
);

#[cfg_attr(target_arch = "x86_64", path = "x86_64/mod.rs")]
#[cfg_attr(target_arch = "aarch64", path = "aarch64/mod.rs")]
mod arch;
mod entry;
mod exit;
pub mod interrupts;
pub mod memory;
pub mod mmio;
pub mod msi;
pub mod pci;
pub mod report;
pub mod serial;
pub mod software;
mod start;
pub mod timer;
pub mod vcpu;

#[cfg(target_arch = "aarch64")]
pub use arch::Conduit;
pub use arch::Platform;
pub use exit::{exit, park};
pub use start::Start;

/// The most vCPUs that run; others are parked.
pub const VCPUS_MAX: usize = arch::VCPUS_MAX;
