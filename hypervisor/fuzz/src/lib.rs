//! What the fuzz targets share: the fixture of the integration tests, hostile guest memory, a
//! bound for the host's memory, and the PCI specification's vector table as a plain model.

#![forbid(unsafe_code)]

#[path = "../../tests/fixture/mod.rs"]
pub mod fixture;
pub mod memory;
pub mod msix;

use std::alloc::System;

use cap::Cap;

/// Every allocation of the process.
#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// What one event may take of the host's memory: some copies of the largest buffer.
const BOUND: usize = 2 << 20;

/// Lets the host act on an event. An allocation beyond the bound ends the process.
pub fn bounded<T>(act: impl FnOnce() -> T) -> T {
    // Does not fail: more is allowed than is in use.
    let _ = ALLOCATOR.set_limit(ALLOCATOR.allocated() + BOUND);
    let result = act();
    let _ = ALLOCATOR.set_limit(usize::MAX);
    result
}
