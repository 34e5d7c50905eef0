//! What the machine says at the start: its device tree.

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property};

use super::entry::VCPUS_MAX;
use super::{Conduit, Platform};
use crate::Start;

/// RAM, and the end of what is mapped.
const RAM: core::ops::Range<u64> = 0x4000_0000..1 << 32;
/// RAM that is assumed when the device tree is unreadable.
const RAM_DEFAULT: u64 = 16 << 20;

/// Reads the device tree at a guest physical address.
pub(crate) fn read(address: u64) -> Start {
    let platform = Platform { conduit: Conduit::Hvc, doorbell_register: None };
    let mut start = Start {
        ram_end: RAM.start.saturating_add(RAM_DEFAULT),
        vcpus: 1,
        command_line: "",
        platform,
    };
    let Some(tree) = tree(address) else { return start };
    if let Some(end) = ram_end(tree) {
        start.ram_end = end;
    }
    if let Ok(cpus) = tree.cpus() {
        start.vcpus = cpus.cpus().count().clamp(1, VCPUS_MAX);
    }
    if let Some(arguments) = text(tree, "/chosen", "bootargs") {
        start.command_line = arguments;
    }
    if text(tree, "/psci", "method") == Some("smc") {
        start.platform.conduit = Conduit::Smc;
    }
    start.platform.doorbell_register = tree.find_node("/pv-msi").and_then(register);
    start
}

fn tree(address: u64) -> Option<Fdt<'static>> {
    if !RAM.contains(&address) {
        return None;
    }
    let address = core::ptr::with_exposed_provenance::<u8>(usize::try_from(address).ok()?);
    // SAFETY: the machine contract puts a device tree there; nothing overwrites it.
    unsafe { Fdt::from_raw(address) }.ok()
}

fn ram_end(tree: Fdt<'static>) -> Option<u64> {
    let memory = tree.memory().ok()?.reg().ok()??.next()?;
    let end = memory.address::<u64>().ok()?.checked_add(memory.size().ok()?)?;
    Some(end.clamp(RAM.start, RAM.end))
}

fn register(node: FdtNode<'static>) -> Option<u64> {
    node.reg().ok()??.next()?.address().ok()
}

fn text(tree: Fdt<'static>, node: &str, property: &str) -> Option<&'static str> {
    tree.find_node(node)?.property(property)?.value_as::<&'static str>().ok()
}
