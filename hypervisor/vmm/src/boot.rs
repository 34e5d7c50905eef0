//! What a program is told of its machine when it starts.

use vm_memory::GuestMemoryMmap;

use crate::doorbell::Doorbell;

/// A machine at power-on, as the loaders of the architectures see it.
pub(crate) struct Boot<'a> {
    /// The RAM, into which they write.
    pub(crate) memory: &'a GuestMemoryMmap,
    /// Its size.
    pub(crate) memory_bytes: u64,
    /// What the user appends.
    pub(crate) command_line: &'a str,
    /// vCPUs.
    pub(crate) cpus: u8,
    /// How the guest rings; `None` with policy off.
    pub(crate) doorbell: Option<Doorbell>,
}
