//! What every bare-metal guest of the reference machine needs.
//!
//! The machine is described in `hypervisor/vmm/MACHINE.md`. A guest gives
//! [`entry!`] its main function, which runs on every vCPU with interrupts off,
//! a stack, an interrupt table and an enabled local APIC. No vector registers,
//! no allocator: soft-float code for hosts that interpret it.
#![no_std]

#[cfg(not(all(target_arch = "x86_64", target_os = "none")))]
compile_error!("guests run without an operating system: build with --target x86_64-unknown-none");

pub mod apic;
mod entry;
mod exit;
pub mod interrupts;
pub mod memory;
pub mod mmio;
pub mod pci;
pub mod report;
pub mod serial;
mod start;
pub mod vcpu;

pub use exit::{exit, park};
pub use start::Start;
pub use x86_64;

/// The most vCPUs that get a stack; others are parked.
pub const VCPUS_MAX: usize = 32;
