//! The guest physical memory map, and the program in it.

use std::io::Cursor;

use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::error::MachineError;

/// The most RAM: it ends where the BARs begin.
pub(crate) const RAM_MAX: u64 = 3 << 30;
/// The least RAM: the first MiB is the machine's.
pub(crate) const RAM_MIN: u64 = 2 << 20;
/// Where BARs are placed.
pub(crate) const BAR_WINDOW: std::ops::Range<u64> = 0xc000_0000..0xfebf_f000;
/// The page of the MMIO doorbell.
pub(crate) const DOORBELL_PAGE: u64 = 0xfebf_f000;
/// Bytes of the page of the MMIO doorbell.
pub(crate) const DOORBELL_PAGE_BYTES: u64 = 0x1000;
/// Where KVM keeps what it needs for old Intel processors: three pages and one, outside everything else.
pub(crate) const KVM_TSS: usize = 0xfffb_d000;
/// Segments of the guest lie here or above.
const LOAD_MIN: u64 = 1 << 20;

/// RAM of a machine.
///
/// # Errors
/// When the size is not possible, or the host has no memory left.
pub(crate) fn create(bytes: u64) -> Result<GuestMemoryMmap, MachineError> {
    if !(RAM_MIN..=RAM_MAX).contains(&bytes) || !bytes.is_multiple_of(4096) {
        return Err(MachineError::Config(format!(
            "{bytes} bytes of guest memory are not possible; 2M to 3G in steps of 4K are"
        )));
    }
    let size = usize::try_from(bytes).map_err(|error| MachineError::Memory(error.to_string()))?;
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)])
        .map_err(|error| MachineError::Memory(error.to_string()))
}

/// Copies the segments of an ELF64 program to their physical addresses; returns the entry point.
///
/// # Errors
/// When it is no such program, or does not fit the RAM.
pub(crate) fn load(memory: &GuestMemoryMmap, elf: &[u8]) -> Result<u64, MachineError> {
    check(elf)?;
    let loaded = Elf::load(memory, None, &mut Cursor::new(elf), Some(GuestAddress(LOAD_MIN)))
        .map_err(|error| {
            MachineError::Guest(format!(
                "{error}; it must be an ELF64 program for x86_64 whose segments lie in RAM, at 1 MiB or above"
            ))
        })?;
    Ok(loaded.kernel_load.0)
}

/// What the loader does not look at: the machine type, and segments over the machine's own structures.
fn check(elf: &[u8]) -> Result<(), MachineError> {
    const ELF64_X86_64: (u8, u16) = (2, 62);
    let half = |at: usize| -> Option<u16> {
        let bytes = elf.get(at..)?.first_chunk::<2>()?;
        Some(u16::from_le_bytes(*bytes))
    };
    let word = |at: u64| -> Option<u64> {
        let bytes = elf.get(usize::try_from(at).ok()?..)?.first_chunk::<8>()?;
        Some(u64::from_le_bytes(*bytes))
    };
    let wrong = |why: &str| Err(MachineError::Guest(why.to_owned()));
    if elf.get(..4) != Some(b"\x7fELF") {
        return wrong("it is no ELF program");
    }
    if elf.get(4).copied().zip(half(18)) != Some(ELF64_X86_64) {
        return wrong("it is no 64-bit program for x86_64; build it for x86_64-unknown-none");
    }
    let (Some(headers), Some(size), Some(count)) = (word(32), half(54), half(56)) else {
        return wrong("its header is cut off");
    };
    for index in 0..u64::from(count) {
        let header = headers.saturating_add(index.saturating_mul(u64::from(size)));
        let kind = word(header).map(|word| word & 0xffff_ffff);
        let address = word(header.saturating_add(24));
        let memory_bytes = word(header.saturating_add(40));
        let (Some(kind), Some(address), Some(bytes)) = (kind, address, memory_bytes) else {
            return wrong("its program headers are cut off");
        };
        if kind == 1 && bytes > 0 && address < LOAD_MIN {
            return Err(MachineError::Guest(format!(
                "a segment lies at {address:#x}; 1 MiB is the lowest address"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_guest;
    use vm_memory::Bytes;

    #[test]
    fn a_program_is_loaded_at_its_physical_address() {
        let memory = create(4 << 20).unwrap();
        let entry = load(&memory, &test_guest::elf(0x20_0000, &[0xf4, 0x90])).unwrap();
        assert_eq!(entry, 0x20_0000);
        assert_eq!(memory.read_obj::<u16>(GuestAddress(0x20_0000)).unwrap(), 0x90f4);
    }

    #[test]
    fn what_is_no_guest_is_refused() {
        let memory = create(4 << 20).unwrap();
        let good = test_guest::elf(0x20_0000, &[0xf4]);
        let mut other_machine = good.clone();
        other_machine[18] = 183;
        let cut = good[..100].to_vec();
        let low = test_guest::elf(0x9000, &[0xf4]);
        let outside = test_guest::elf(0x4000_0000, &[0xf4]);
        for (elf, part) in [
            (b"#!/bin/sh\n".to_vec(), "no ELF"),
            (other_machine, "x86_64-unknown-none"),
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
        for bytes in [0, 4096, (3 << 30) + 4096, (4 << 20) + 1] {
            assert!(create(bytes).is_err(), "{bytes}");
        }
    }
}
