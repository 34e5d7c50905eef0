//! What lies in the first MiB when the guest starts.
//!
//! | guest physical | what |
//! |---|---|
//! | 0x1000 | PML4 |
//! | 0x2000 | page directory pointer table |
//! | 0x3000 to 0x6fff | four page directories of 2 MiB pages |
//! | 0x7000 | GDT |
//! | 0x7100 | `hvm_start_info` |
//! | 0x7200 | memory map of the start info |
//! | 0x7400 | modules of the start info: the initrd |
//! | 0x10000 | boot parameters of Linux |
//! | 0x20000 | command line |
//! | 0xe0000 to 0xfffef | ACPI tables, for Linux |
//! | 0xffff0 | code that resets the machine, for Linux |

use std::ops::Range;

use linux_loader::loader::elf::start_info::{
    XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_MEMMAP_TYPE_RESERVED, XEN_HVM_START_MAGIC_VALUE,
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::contract::ECAM;

use crate::error::MachineError;

pub(crate) const PML4: u64 = 0x1000;
const PAGE_DIRECTORY_POINTERS: u64 = 0x2000;
const PAGE_DIRECTORIES: u64 = 0x3000;
pub(crate) const GDT: u64 = 0x7000;
/// Where RDI points.
pub(crate) const START_INFO: u64 = 0x7100;
const MEMORY_MAP: u64 = 0x7200;
const MODULES: u64 = 0x7400;
/// Where RSI points when Linux starts by its own protocol.
pub(super) const BOOT_PARAMETERS: u64 = 0x1_0000;
pub(super) const COMMAND_LINE: u64 = 0x2_0000;
/// Bytes of the command line, its final NUL included.
const COMMAND_LINE_BYTES: usize = 2048;

/// Where ACPI's tables lie. The root pointer is at their start.
pub(super) const TABLES: Range<u64> = 0xe_0000..RESET_VECTOR;

/// Where the memory ends that a PC's firmware leaves below 1 MiB.
const LOW_END: u64 = 0xa_0000;
const HIGH_START: u64 = 0x10_0000;

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;
const LARGE_PAGE_BYTES: u64 = 2 << 20;
const DIRECTORY_BYTES: u64 = 1 << 30;
const GIBIBYTES_MAPPED: u64 = 4;

const CODE_64BIT: u64 = 0x00af_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
const TASK_STATE: u64 = 0x0000_8b00_0000_0067;
/// Null, 64-bit code, data, and a task state segment that takes two entries.
pub(super) const GDT_BARE_METAL: [u64; 5] = [0, CODE_64BIT, DATA, TASK_STATE, 0];
/// The same with code and data where Linux's boot protocol wants them: selectors 0x10 and 0x18.
pub(super) const GDT_LINUX: [u64; 6] = [0, 0, CODE_64BIT, DATA, TASK_STATE, 0];

/// A range of guest physical addresses, as it is told to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) start: u64,
    pub(super) bytes: u64,
    pub(super) kind: RegionKind,
}

/// What may be done with it. The numbers are those of E820 and of PVH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum RegionKind {
    Ram = XEN_HVM_MEMMAP_TYPE_RAM,
    Reserved = XEN_HVM_MEMMAP_TYPE_RESERVED,
}

/// Where processors begin after a reset: the last 16 bytes below 1 MiB, in real mode.
pub(super) const RESET_VECTOR: u64 = 0xf_fff0;
/// Writes 6 to port 0xCF9, and waits. Linux jumps there to restart a hardware-reduced platform
/// without EFI: it tries nothing else that this machine has.
const RESET_CODE: [u8; 9] = [
    0xba, 0xf9, 0x0c, // mov dx, 0xcf9
    0xb0, 0x06, // mov al, 6
    0xee, // out dx, al
    0xf4, // hlt
    0xeb, 0xfd, // jmp to hlt
];

/// Puts code at the reset vector.
///
/// # Errors
/// When the RAM does not reach that far.
pub(super) fn write_reset_code(memory: &GuestMemoryMmap) -> Result<(), MachineError> {
    put(memory, RESET_VECTOR, &RESET_CODE)
}

/// Everything that bare-metal guests find.
///
/// # Errors
/// When the command line is too long, or the RAM does not reach that far.
pub(crate) fn write(memory: &GuestMemoryMmap, command_line: &str) -> Result<(), MachineError> {
    write_page_tables(memory)?;
    write_gdt(memory, &GDT_BARE_METAL)?;
    write_command_line(memory, command_line)?;
    write_start_info(memory, &ram(memory), None, 0)
}

/// The RAM.
fn ram(memory: &GuestMemoryMmap) -> Vec<Region> {
    let region = |start: u64, bytes| Region { start, bytes, kind: RegionKind::Ram };
    memory.iter().map(|ram| region(ram.start_addr().0, ram.len())).collect()
}

/// What an operating system is told: RAM without the part below 1 MiB that firmware keeps, and what is reserved.
pub(super) fn memory_map(memory: &GuestMemoryMmap) -> Vec<Region> {
    let region =
        |start: u64, end: u64, kind| Region { start, bytes: end.saturating_sub(start), kind };
    let mut map = vec![
        region(0, LOW_END, RegionKind::Ram),
        region(TABLES.start, HIGH_START, RegionKind::Reserved),
        region(ECAM.start, ECAM.end, RegionKind::Reserved),
    ];
    for ram in ram(memory) {
        let end = ram.start.saturating_add(ram.bytes);
        map.push(region(ram.start.max(HIGH_START), end, RegionKind::Ram));
    }
    map.sort_by_key(|region| region.start);
    map
}

/// The command line.
///
/// # Errors
/// When it is too long.
pub(super) fn write_command_line(
    memory: &GuestMemoryMmap,
    command_line: &str,
) -> Result<(), MachineError> {
    if command_line.len() >= COMMAND_LINE_BYTES || command_line.contains('\0') {
        return Err(MachineError::Config(format!(
            "the guest's command line can have {} bytes, none of them NUL",
            COMMAND_LINE_BYTES.saturating_sub(1)
        )));
    }
    put(memory, COMMAND_LINE, command_line.as_bytes())?;
    put(memory, COMMAND_LINE.saturating_add(command_line.len() as u64), &[0])
}

/// The n-th 64-bit entry of a table.
fn put_entry(
    memory: &GuestMemoryMmap,
    table: u64,
    index: u64,
    value: u64,
) -> Result<(), MachineError> {
    put(memory, table.saturating_add(index.saturating_mul(8)), &value.to_le_bytes())
}

/// Maps the first 4 GiB to themselves.
///
/// # Errors
/// When the RAM does not reach that far.
pub(super) fn write_page_tables(memory: &GuestMemoryMmap) -> Result<(), MachineError> {
    put_entry(memory, PML4, 0, PAGE_DIRECTORY_POINTERS | PRESENT_WRITABLE)?;
    for gibibyte in 0..GIBIBYTES_MAPPED {
        let directory = PAGE_DIRECTORIES.saturating_add(gibibyte.saturating_mul(0x1000));
        let pointer = directory | PRESENT_WRITABLE;
        put_entry(memory, PAGE_DIRECTORY_POINTERS, gibibyte, pointer)?;
        for page in 0..512_u64 {
            let address = gibibyte
                .saturating_mul(DIRECTORY_BYTES)
                .saturating_add(page.saturating_mul(LARGE_PAGE_BYTES));
            put_entry(memory, directory, page, address | LARGE | PRESENT_WRITABLE)?;
        }
    }
    Ok(())
}

/// The descriptors that the segment registers stand for.
///
/// # Errors
/// When the RAM does not reach that far.
pub(super) fn write_gdt(memory: &GuestMemoryMmap, entries: &[u64]) -> Result<(), MachineError> {
    (0..).zip(entries).try_for_each(|(index, entry)| put_entry(memory, GDT, index, *entry))
}

/// What PVH tells: the memory map, the initrd if there is one, the command line, and where the ACPI tables begin.
///
/// # Errors
/// When the RAM does not reach that far.
pub(super) fn write_start_info(
    memory: &GuestMemoryMmap,
    map: &[Region],
    initrd: Option<(u64, u64)>,
    rsdp: u64,
) -> Result<(), MachineError> {
    let entries = map.iter().flat_map(|region| {
        memory_map_bytes(&hvm_memmap_table_entry {
            addr: region.start,
            size: region.bytes,
            type_: region.kind as u32,
            reserved: 0,
        })
    });
    put(memory, MEMORY_MAP, &entries.collect::<Vec<_>>())?;
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        cmdline_paddr: COMMAND_LINE,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).unwrap_or(0),
        rsdp_paddr: rsdp,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: if initrd.is_some() { MODULES } else { 0 },
        ..Default::default()
    };
    if let Some((paddr, size)) = initrd {
        let module = hvm_modlist_entry { paddr, size, ..Default::default() };
        put(memory, MODULES, &module_bytes(&module))?;
    }
    put(memory, START_INFO, &start_info_bytes(&info))
}

/// Writes into RAM.
///
/// # Errors
/// When the address is not RAM.
pub(super) fn put(
    memory: &GuestMemoryMmap,
    address: u64,
    bytes: &[u8],
) -> Result<(), MachineError> {
    memory
        .write_slice(bytes, GuestAddress(address))
        .map_err(|error| MachineError::Memory(format!("{address:#x} is not RAM: {error}")))
}

/// The structure as PVH defines it: little endian, without padding.
fn start_info_bytes(info: &hvm_start_info) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size_of::<hvm_start_info>());
    for word in [info.magic, info.version, info.flags, info.nr_modules] {
        bytes.extend(word.to_le_bytes());
    }
    for word in [info.modlist_paddr, info.cmdline_paddr, info.rsdp_paddr, info.memmap_paddr] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(info.memmap_entries.to_le_bytes());
    bytes.extend(info.reserved.to_le_bytes());
    bytes
}

fn module_bytes(module: &hvm_modlist_entry) -> Vec<u8> {
    [module.paddr, module.size, module.cmdline_paddr, module.reserved]
        .into_iter()
        .flat_map(u64::to_le_bytes)
        .collect()
}

fn memory_map_bytes(entry: &hvm_memmap_table_entry) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size_of::<hvm_memmap_table_entry>());
    bytes.extend(entry.addr.to_le_bytes());
    bytes.extend(entry.size.to_le_bytes());
    bytes.extend(entry.type_.to_le_bytes());
    bytes.extend(entry.reserved.to_le_bytes());
    bytes
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    const RAM: u64 = 4 << 20;

    fn written(command_line: &str) -> GuestMemoryMmap {
        let memory =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), usize::try_from(RAM).unwrap())])
                .unwrap();
        write(&memory, command_line).unwrap();
        memory
    }

    fn word(memory: &GuestMemoryMmap, address: u64) -> u64 {
        memory.read_obj(GuestAddress(address)).unwrap()
    }

    /// What the processor does with an address.
    fn walk(memory: &GuestMemoryMmap, address: u64) -> Option<u64> {
        let mut table = PML4;
        for shift in [39, 30, 21] {
            let entry = word(memory, table + 8 * ((address >> shift) & 511));
            if entry & PRESENT_WRITABLE != PRESENT_WRITABLE {
                return None;
            }
            if shift == 21 {
                assert_ne!(entry & LARGE, 0);
                return Some(
                    (entry & !(LARGE_PAGE_BYTES - 1)) | (address & (LARGE_PAGE_BYTES - 1)),
                );
            }
            table = entry & !0xfff;
        }
        None
    }

    #[test]
    fn the_first_four_gibibytes_are_identity_mapped() {
        let memory = written("");
        for address in [0, 0x1000, 0x1f_ffff, 0x20_0000, 0x4000_0000, 0xfee0_0000, 0xffff_ffff] {
            assert_eq!(walk(&memory, address), Some(address), "{address:#x}");
        }
        assert_eq!(walk(&memory, 1 << 32), None);
    }

    #[test]
    fn start_info_leads_to_memory_map_and_command_line() {
        let memory = written("pairs=7 writes=9");
        assert_eq!(word(&memory, START_INFO), 0x1_336e_c578, "magic, version 1");
        assert_eq!(word(&memory, START_INFO + 24), COMMAND_LINE);
        assert_eq!(word(&memory, START_INFO + 40), MEMORY_MAP);
        assert_eq!(word(&memory, START_INFO + 48), 1, "one entry");
        assert_eq!(word(&memory, MEMORY_MAP), 0);
        assert_eq!(word(&memory, MEMORY_MAP + 8), RAM);
        assert_eq!(word(&memory, MEMORY_MAP + 16), 1, "RAM");
        let mut text = [0xff; 17];
        memory.read_slice(&mut text, GuestAddress(COMMAND_LINE)).unwrap();
        assert_eq!(&text, b"pairs=7 writes=9\0");
    }

    #[test]
    fn a_shorter_command_line_after_a_reset_leaves_nothing_of_the_longer_one() {
        let memory = written("a long command line");
        write(&memory, "short").unwrap();
        let mut text = [0; 6];
        memory.read_slice(&mut text, GuestAddress(COMMAND_LINE)).unwrap();
        assert_eq!(&text, b"short\0");
    }

    #[test]
    fn a_command_line_that_does_not_fit_is_refused() {
        let memory = written("");
        assert!(write(&memory, &"x".repeat(COMMAND_LINE_BYTES)).is_err());
        assert!(write(&memory, "a\0b").is_err());
    }
}
