//! What lies in the first MiB when the guest starts: page tables, GDT, start info, command line.
//!
//! | guest physical | what |
//! |---|---|
//! | 0x1000 | PML4 |
//! | 0x2000 | page directory pointer table |
//! | 0x3000 to 0x6fff | four page directories of 2 MiB pages |
//! | 0x7000 | GDT |
//! | 0x7100 | `hvm_start_info` |
//! | 0x7200 | memory map of the start info |
//! | 0x20000 | command line |

use linux_loader::loader::elf::start_info::{
    XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::MachineError;

pub(crate) const PML4: u64 = 0x1000;
const PAGE_DIRECTORY_POINTERS: u64 = 0x2000;
const PAGE_DIRECTORIES: u64 = 0x3000;
pub(crate) const GDT: u64 = 0x7000;
/// Where RDI points.
pub(crate) const START_INFO: u64 = 0x7100;
const MEMORY_MAP: u64 = 0x7200;
const COMMAND_LINE: u64 = 0x2_0000;
/// Bytes of the command line, its final NUL included.
const COMMAND_LINE_BYTES: usize = 2048;

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;
const LARGE_PAGE_BYTES: u64 = 2 << 20;
const DIRECTORY_BYTES: u64 = 1 << 30;
const GIBIBYTES_MAPPED: u64 = 4;

/// Null, 64-bit code, data, and a task state segment that takes two entries.
pub(crate) const GDT_ENTRIES: [u64; 5] =
    [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067, 0];

/// Writes all of it.
///
/// # Errors
/// When the command line is too long, or the RAM does not reach that far.
pub(crate) fn write(
    memory: &GuestMemoryMmap,
    memory_bytes: u64,
    command_line: &str,
) -> Result<(), MachineError> {
    if command_line.len() >= COMMAND_LINE_BYTES || command_line.contains('\0') {
        return Err(MachineError::Config(format!(
            "the guest's command line can have {} bytes, none of them NUL",
            COMMAND_LINE_BYTES.saturating_sub(1)
        )));
    }
    let word = |address: u64, value: u64| put(memory, address, &value.to_le_bytes());
    let entry = |table: u64, index: u64| table.saturating_add(index.saturating_mul(8));
    word(PML4, PAGE_DIRECTORY_POINTERS | PRESENT_WRITABLE)?;
    for gibibyte in 0..GIBIBYTES_MAPPED {
        let directory = PAGE_DIRECTORIES.saturating_add(gibibyte.saturating_mul(0x1000));
        word(entry(PAGE_DIRECTORY_POINTERS, gibibyte), directory | PRESENT_WRITABLE)?;
        for page in 0..512_u64 {
            let address = gibibyte
                .saturating_mul(DIRECTORY_BYTES)
                .saturating_add(page.saturating_mul(LARGE_PAGE_BYTES));
            word(entry(directory, page), address | LARGE | PRESENT_WRITABLE)?;
        }
    }
    for (index, descriptor) in (0_u64..).zip(GDT_ENTRIES) {
        word(entry(GDT, index), descriptor)?;
    }
    let map = hvm_memmap_table_entry {
        addr: 0,
        size: memory_bytes,
        type_: XEN_HVM_MEMMAP_TYPE_RAM,
        reserved: 0,
    };
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        cmdline_paddr: COMMAND_LINE,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: 1,
        ..Default::default()
    };
    put(memory, START_INFO, &start_info_bytes(&info))?;
    put(memory, MEMORY_MAP, &memory_map_bytes(&map))?;
    put(memory, COMMAND_LINE, command_line.as_bytes())?;
    put(memory, COMMAND_LINE.saturating_add(command_line.len() as u64), &[0])
}

fn put(memory: &GuestMemoryMmap, address: u64, bytes: &[u8]) -> Result<(), MachineError> {
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
        write(&memory, RAM, command_line).unwrap();
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
        write(&memory, RAM, "short").unwrap();
        let mut text = [0; 6];
        memory.read_slice(&mut text, GuestAddress(COMMAND_LINE)).unwrap();
        assert_eq!(&text, b"short\0");
    }

    #[test]
    fn a_command_line_that_does_not_fit_is_refused() {
        let memory = written("");
        assert!(write(&memory, RAM, &"x".repeat(COMMAND_LINE_BYTES)).is_err());
        assert!(write(&memory, RAM, "a\0b").is_err());
    }
}
