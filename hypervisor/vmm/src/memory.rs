//! The guest's RAM, and the program in it.

use std::ops::Range;

use elf::abi::PT_LOAD;
use elf::endian::LittleEndian;
use elf::file::Class;
use elf::{ElfBytes, ParseError};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::arch::{ELF_MACHINE, GUEST_TARGET, LOAD_MIN, RAM, RAM_MIN};
use crate::error::MachineError;
use crate::host;

/// RAM of a machine.
///
/// # Errors
/// When the size is not possible, or the host has no memory left.
pub(crate) fn create(bytes: u64) -> Result<GuestMemoryMmap, MachineError> {
    // KVM maps whole pages of the host.
    let step = host::page_size();
    let most = RAM.iter().map(length).fold(0, u64::saturating_add);
    if !(RAM_MIN..=most).contains(&bytes) || !bytes.is_multiple_of(step) {
        return Err(MachineError::Config(format!(
            "{bytes} bytes of guest memory are not possible; {}M to {}G in steps of {}K are",
            RAM_MIN >> 20,
            most >> 30,
            step >> 10
        )));
    }
    let mut left = bytes;
    let mut ranges = Vec::new();
    for range in RAM {
        let here = left.min(length(&range));
        left = left.saturating_sub(here);
        if here > 0 {
            let size =
                usize::try_from(here).map_err(|error| MachineError::Memory(error.to_string()))?;
            ranges.push((GuestAddress(range.start), size));
        }
    }
    GuestMemoryMmap::from_ranges(&ranges).map_err(|error| MachineError::Memory(error.to_string()))
}

fn length(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}

/// Copies the segments of an ELF64 program to their physical addresses; returns the entry point.
///
/// # Errors
/// When it is no such program, or does not fit the RAM.
pub(crate) fn load(memory: &GuestMemoryMmap, program: &[u8]) -> Result<u64, MachineError> {
    let wrong = |why: String| MachineError::Guest(why);
    let parse = |error: ParseError| wrong(format!("it is no ELF program, or is cut off: {error}"));
    let program = ElfBytes::<LittleEndian>::minimal_parse(program).map_err(parse)?;
    if program.ehdr.class != Class::ELF64 || program.ehdr.e_machine != ELF_MACHINE {
        return Err(wrong(format!(
            "it is no 64-bit program for this machine; build it for {GUEST_TARGET}"
        )));
    }
    for segment in program.segments().into_iter().flatten() {
        if segment.p_type != PT_LOAD || segment.p_memsz == 0 {
            continue;
        }
        let address = segment.p_paddr;
        if address < LOAD_MIN {
            return Err(wrong(format!(
                "a segment lies at {address:#x}; {LOAD_MIN:#x} is the lowest address"
            )));
        }
        let content = program.segment_data(&segment).map_err(parse)?;
        memory.write_slice(content, GuestAddress(address)).map_err(|error| {
            wrong(format!("the segment at {address:#x} does not lie in RAM: {error}"))
        })?;
    }
    Ok(program.ehdr.e_entry)
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

    use super::*;
    use crate::test_guest;

    const CODE: u64 = LOAD_MIN + 0x10_0000;

    #[test]
    fn a_program_is_loaded_at_its_physical_address() {
        let memory = create(4 << 20).unwrap();
        let entry = load(&memory, &test_guest::elf(CODE, &[0xf4, 0x90])).unwrap();
        assert_eq!(entry, CODE);
        assert_eq!(memory.read_obj::<u16>(GuestAddress(CODE)).unwrap(), 0x90f4);
    }

    #[test]
    fn what_is_no_guest_is_refused() {
        let memory = create(4 << 20).unwrap();
        let good = test_guest::elf(CODE, &[0xf4]);
        let mut other_machine = good.clone();
        other_machine[18] = 8;
        let cut = good[..100].to_vec();
        let low = test_guest::elf(LOAD_MIN - 0x1000, &[0xf4]);
        let outside = test_guest::elf(RAM[0].start + (1 << 30), &[0xf4]);
        for (elf, part) in [
            (b"#!/bin/sh\n".to_vec(), "no ELF"),
            (other_machine, GUEST_TARGET),
            (cut, "cut off"),
            (low, "lowest address"),
            (outside, "in RAM"),
        ] {
            let error = load(&memory, &elf).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn sizes_that_make_no_machine_are_refused() {
        let most: u64 = RAM.iter().map(length).sum();
        for bytes in [0, 4096, most + 65536, (4 << 20) + 1] {
            assert!(create(bytes).is_err(), "{bytes}");
        }
    }

    #[test]
    fn memory_fills_the_places_for_ram_in_their_order() {
        let first = length(&RAM[0]);
        for bytes in [4 << 20, first] {
            assert_eq!(create(bytes).unwrap().num_regions(), 1, "{bytes:#x}");
        }
        if let Some(second) = RAM.get(1) {
            let memory = create(first + (2 << 20)).unwrap();
            let regions: Vec<_> =
                memory.iter().map(|region| (region.start_addr().0, region.len())).collect();
            assert_eq!(regions, [(RAM[0].start, first), (second.start, 2 << 20)]);
        }
    }
}
