//! What a relocatable object defines, needs and weighs.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use elf::ElfBytes;
use elf::abi;
use elf::endian::LittleEndian;
use elf::section::SectionHeader;

/// Bytes in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    /// Code and constants.
    pub(super) text: u64,
    /// What can be written.
    pub(super) data: u64,
}

/// An object, as far as it matters here.
pub(super) struct Object {
    /// Global symbols that it defines, in order.
    pub(super) symbols: Vec<String>,
    /// Its size.
    pub(super) size: Size,
    undefined: Vec<String>,
    /// Functions and objects of its own.
    local: Vec<String>,
    sections: Vec<String>,
    machine: u16,
    relocations: BTreeSet<u32>,
    /// Sections with jump tables, or with code that uses one.
    jump_tables: Vec<String>,
}

impl Object {
    /// Reads a file.
    ///
    /// # Errors
    /// When it is no object.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&bytes).with_context(|| format!("{} is no object", path.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let file = ElfBytes::<LittleEndian>::minimal_parse(bytes)?;
        let mut object = Self {
            symbols: Vec::new(),
            size: Size { text: 0, data: 0 },
            undefined: Vec::new(),
            local: Vec::new(),
            sections: Vec::new(),
            machine: file.ehdr.e_machine,
            relocations: BTreeSet::new(),
            jump_tables: Vec::new(),
        };
        let (symbols, symbol_names) = file.symbol_table()?.context("no symbols")?;
        // The first one stands for none.
        for symbol in symbols.iter().skip(1) {
            let name = symbol_names.get(usize::try_from(symbol.st_name)?)?.to_owned();
            if symbol.is_undefined() {
                object.undefined.push(name);
            } else if symbol.st_bind() == abi::STB_LOCAL {
                object.local.push(name);
            } else {
                object.symbols.push(name);
            }
        }
        object.symbols.sort_unstable();
        let (sections, names) = file.section_headers_with_strtab()?;
        let (sections, names) = (sections.context("no sections")?, names.context("no names")?);
        for section in sections.iter() {
            if section.sh_flags & u64::from(abi::SHF_ALLOC) != 0 {
                object.sections.push(names.get(usize::try_from(section.sh_name)?)?.to_owned());
                let writable = section.sh_flags & u64::from(abi::SHF_WRITE) != 0;
                let Size { text, data } = &mut object.size;
                let size = if writable { data } else { text };
                *size = size.saturating_add(section.sh_size);
            }
            let is = |section: &SectionHeader, flag: u32| section.sh_flags & u64::from(flag) != 0;
            if section.sh_type == abi::SHT_RELA {
                let relocations = file.section_data_as_relas(&section)?;
                object.relocations.extend(relocations.map(|relocation| relocation.r_type));
                // Constants that lead into code: pointers to functions are relocated, and so writable.
                let of = sections.get(usize::try_from(section.sh_info)?)?;
                let constants = is(&of, abi::SHF_ALLOC)
                    && !is(&of, abi::SHF_WRITE)
                    && !is(&of, abi::SHF_EXECINSTR);
                let leads_into_code = |symbol: u32| -> Result<bool> {
                    let symbol = symbols.get(usize::try_from(symbol)?)?;
                    let target = sections.get(usize::from(symbol.st_shndx));
                    Ok(target.is_ok_and(|target| is(&target, abi::SHF_EXECINSTR)))
                };
                for relocation in file.section_data_as_relas(&section)? {
                    if constants && leads_into_code(relocation.r_sym)? {
                        object
                            .jump_tables
                            .push(names.get(usize::try_from(of.sh_name)?)?.to_owned());
                        break;
                    }
                }
            }
            if object.machine == abi::EM_AARCH64 && is(&section, abi::SHF_EXECINSTR) {
                let (code, _) = file.section_data(&section)?;
                if uses_jump_table(code) {
                    object
                        .jump_tables
                        .push(names.get(usize::try_from(section.sh_name)?)?.to_owned());
                }
            }
        }
        Ok(object)
    }

    /// Whether no `switch` is a jump through a table.
    ///
    /// # Errors
    /// Where one is.
    pub(super) fn check_jump_tables(&self) -> Result<(), String> {
        match self.jump_tables.first() {
            Some(section) => Err(format!("there is one in {section}")),
            None => Ok(()),
        }
    }

    /// Whether a kernel can link it without providing anything: no symbols of others, no unwinding,
    /// nothing that panics, only relocations that every linker and module loader knows.
    ///
    /// # Errors
    /// The first thing that is too much.
    pub(super) fn check_contents(&self) -> Result<(), String> {
        if let Some(symbol) = self.undefined.first() {
            return Err(format!("it needs {symbol}"));
        }
        let unwind = |name: &&String| name.contains("eh_frame") || name.contains("except_table");
        if let Some(section) = self.sections.iter().find(unwind) {
            return Err(format!("it has unwind tables: {section}"));
        }
        let panics = |name: &&String| name.contains("panicking") || name.contains("unwind");
        if let Some(symbol) = self.local.iter().find(panics) {
            return Err(format!("it can panic: {symbol}"));
        }
        let plain = plain_relocations(self.machine);
        match self.relocations.iter().find(|relocation| !plain.contains(relocation)) {
            Some(relocation) => Err(format!("it has a relocation of type {relocation}")),
            None => Ok(()),
        }
    }
}

/// Whether arm64 code jumps by a table. Its entries are distances from an address in the code, without relocations: `adr` loads that address, a few instructions before the `br` to the sum. A tail call by a pointer has no such `adr`.
fn uses_jump_table(code: &[u8]) -> bool {
    const NEARBY: usize = 16;
    const REGISTER: u32 = 0x1f;
    let words: Vec<u32> = code
        .chunks_exact(4)
        .filter_map(|word| word.try_into().ok())
        .map(u32::from_le_bytes)
        .collect();
    let is_adr = |word: &&u32| **word & 0x9f00_0000 == 0x1000_0000;
    words.iter().enumerate().any(|(at, word)| {
        let before = words.iter().take(at).rev().take(NEARBY);
        word & 0xffff_fc1f == 0xd61f_0000
            && before.filter(is_adr).any(|adr| adr & REGISTER == word >> 5 & REGISTER)
    })
}

/// Absolute 64-bit pointers, and distances within an image: no global offset table, no place that
/// the code must be linked at.
fn plain_relocations(machine: u16) -> &'static [u32] {
    match machine {
        abi::EM_X86_64 => &[abi::R_X86_64_64, abi::R_X86_64_PC32, abi::R_X86_64_PLT32],
        abi::EM_AARCH64 => &[
            abi::R_AARCH64_ABS64,
            abi::R_AARCH64_PREL32,
            abi::R_AARCH64_ADR_PREL_PG_HI21,
            abi::R_AARCH64_ADD_ABS_LO12_NC,
            abi::R_AARCH64_LDST8_ABS_LO12_NC,
            abi::R_AARCH64_LDST16_ABS_LO12_NC,
            abi::R_AARCH64_LDST32_ABS_LO12_NC,
            abi::R_AARCH64_LDST64_ABS_LO12_NC,
            abi::R_AARCH64_LDST128_ABS_LO12_NC,
            abi::R_AARCH64_CALL26,
            abi::R_AARCH64_JUMP26,
        ],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_by_a_table_are_told_from_calls_by_a_pointer() {
        const ADR_X10: u32 = 0x1000_014a;
        const ADD_X10: u32 = 0x8b2b_094a;
        const BR_X10: u32 = 0xd61f_0140;
        const BR_X2: u32 = 0xd61f_0040;
        let uses = |words: &[u32]| {
            let code: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            uses_jump_table(&code)
        };
        assert!(uses(&[ADR_X10, ADD_X10, BR_X10]));
        assert!(!uses(&[ADR_X10, ADD_X10, BR_X2]), "a tail call");
        assert!(!uses(&[BR_X10, ADR_X10]), "the address is for something else");
        assert!(!uses(&[]));
    }
}
