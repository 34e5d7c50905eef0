//! The messages that make a function interrupt a vCPU.
//!
//! What the platform must know before a message works is told it once, by
//! [`prepare`]; the message itself costs nothing then.

use crate::arch;
use crate::pci::Function;

/// Where the interrupt of a vector goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The vCPU's index.
    pub vcpu: usize,
    /// The interrupt's number, from [`FIRST_DEVICE`](crate::interrupts::FIRST_DEVICE) on.
    pub interrupt: u8,
}

/// Tells the platform where the first `vectors` vectors of a function go. Once for each function, before its first message.
///
/// # Errors
/// The interrupt controller does not take it; the text says why.
pub fn prepare(
    function: Function,
    vectors: u16,
    route: impl Fn(u16) -> Route,
) -> Result<(), &'static str> {
    arch::msi::prepare(function, vectors, route)
}

/// The message of a vector that has been prepared with this route: address and data.
pub fn message(vector: u16, route: Route) -> (u64, u32) {
    arch::msi::message(vector, route)
}

/// Raises a vector's interrupt as its message would.
pub fn deliver(function: Function, vector: u16, route: Route) {
    arch::msi::deliver(function, vector, route);
}
