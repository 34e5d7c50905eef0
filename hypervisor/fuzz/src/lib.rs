//! What the fuzz targets share: the fixture of the integration tests, hostile guest memory, a
//! bound for the host's memory, and the PCI specification's vector table as a plain model.

#![forbid(unsafe_code)]

#[path = "../../tests/fixture/mod.rs"]
pub mod fixture;
pub mod memory;
pub mod msix;

use std::alloc::System;
use std::panic;
use std::sync::Once;

use cap::Cap;

/// Every allocation of the process.
#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// What one event may take of the host's memory: some copies of the largest buffer.
const BOUND: usize = 2 << 20;

/// Lets the host act on an event. An allocation beyond the bound ends the process.
pub fn bounded<T>(act: impl FnOnce() -> T) -> T {
    static HOOK: Once = Once::new();
    // What a panic has to say may be longer.
    HOOK.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let _ = ALLOCATOR.set_limit(usize::MAX);
            report(info);
        }));
    });
    // Does not fail: more is allowed than is in use.
    let _ = ALLOCATOR.set_limit(ALLOCATOR.allocated() + BOUND);
    let result = act();
    let _ = ALLOCATOR.set_limit(usize::MAX);
    result
}
