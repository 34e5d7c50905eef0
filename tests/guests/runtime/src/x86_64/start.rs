//! What the machine says at the start (PVH `hvm_start_info`, version 1, and CPUID).
//!
//! Everything is bounded: a wrong structure gives defaults, never a wild access.

use core::str;

use super::Platform;
use super::entry::VCPUS_MAX;
use crate::Start;

const MAGIC: u32 = 0x336e_c578;
const MEMORY_MAP_MAX: u32 = 64;
const TYPE_RAM: u32 = 1;
const COMMAND_LINE_MAX: usize = 2048;
/// The machine maps this much, so nothing above it can be read.
const MAPPED: u64 = 1 << 32;
/// RAM that is assumed when the memory map is unreadable.
const RAM_DEFAULT: u64 = 16 << 20;

#[derive(Clone, Copy)]
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct MemoryMapEntry {
    address: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

/// Reads the structure at a guest physical address.
pub(crate) fn read(address: u64) -> Start {
    let mut start =
        Start { ram_end: RAM_DEFAULT, vcpus: vcpus(), command_line: "", platform: Platform };
    let Some(info) = structure::<StartInfo>(address).filter(|info| info.magic == MAGIC) else {
        return start;
    };
    start.command_line = command_line(info.command_line);
    if info.version >= 1 {
        let entries = (0..info.memory_map_entries.min(MEMORY_MAP_MAX)).filter_map(|n| {
            let size = u64::try_from(size_of::<MemoryMapEntry>()).ok()?;
            structure::<MemoryMapEntry>(info.memory_map.checked_add(size.checked_mul(n.into())?)?)
        });
        start.ram_end = entries
            .filter(|entry| entry.kind == TYPE_RAM)
            .filter_map(|entry| entry.address.checked_add(entry.size))
            .filter(|&end| end <= MAPPED)
            .max()
            .unwrap_or(RAM_DEFAULT);
    }
    start
}

/// How many vCPUs the machine has: CPUID leaf 1, EBX bits 23 to 16.
fn vcpus() -> usize {
    #[allow(unused_unsafe, reason = "safe since Rust 1.94, unsafe before")]
    // SAFETY: every x86_64 processor has CPUID.
    let leaf = unsafe { core::arch::x86_64::__cpuid(1) };
    let [_, _, count, _] = leaf.ebx.to_le_bytes();
    usize::from(count).clamp(1, VCPUS_MAX)
}

/// Reads a plain structure, when all of it is mapped and aligned.
fn structure<T: Copy>(address: u64) -> Option<T> {
    let size = u64::try_from(size_of::<T>()).ok()?;
    let aligned = address.is_multiple_of(u64::try_from(align_of::<T>()).ok()?);
    if address == 0 || !aligned || address.checked_add(size)? > MAPPED {
        return None;
    }
    let pointer = core::ptr::with_exposed_provenance::<T>(usize::try_from(address).ok()?);
    // SAFETY: aligned, and within the identity map of the machine contract; the
    // callers' types take any bit pattern, and nothing writes there meanwhile.
    Some(unsafe { pointer.read_volatile() })
}

fn command_line(address: u64) -> &'static str {
    let end = address.checked_add(COMMAND_LINE_MAX as u64);
    if address == 0 || end.is_none_or(|end| end > MAPPED) {
        return "";
    }
    let Ok(address) = usize::try_from(address) else { return "" };
    let pointer = core::ptr::with_exposed_provenance::<u8>(address);
    // SAFETY: within the identity map, and nothing writes there while the guest runs.
    let bytes = unsafe { core::slice::from_raw_parts(pointer, COMMAND_LINE_MAX) };
    let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    str::from_utf8(text).unwrap_or_default()
}
