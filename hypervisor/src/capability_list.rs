//! The capability list of configuration space.
//!
//! Source: PCI Express Base Specification, "PCI-Compatible Configuration Registers".

const CAPABILITIES_POINTER: u64 = 0x34;
/// A list longer than this does not fit 256 bytes: it is circular.
const CAPABILITIES_MAX: usize = 48;

/// The id of MSI.
pub(crate) const MSI: u8 = 0x05;
/// The id of MSI-X.
pub(crate) const MSIX: u8 = 0x11;

/// An entry of the capability list.
pub(crate) struct Capability {
    pub(crate) id: u8,
    /// Where it starts.
    pub(crate) at: u64,
    /// The byte that points to it.
    pub(crate) link: u64,
}

/// Walks the capability list, which may be circular, with a function that reads a byte.
pub(crate) fn walk(mut read: impl FnMut(u64) -> u8) -> Vec<Capability> {
    let mut list = Vec::new();
    let mut link = CAPABILITIES_POINTER;
    while list.len() < CAPABILITIES_MAX {
        let at = u64::from(read(link) & !3);
        if at == 0 {
            break;
        }
        list.push(Capability { id: read(at), at, link });
        link = at.saturating_add(1);
    }
    list
}

/// Whether a function has MSI beside MSI-X, by a function that reads a byte of configuration space. The service
/// leaves it out of the list that the guest reads, at every [`Policy`](crate::Policy).
pub fn has_msi(read: impl FnMut(u64) -> u8) -> bool {
    walk(read).iter().any(|found| found.id == MSI)
}
