//! What a relocatable object defines, needs and weighs.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use elf::ElfBytes;
use elf::abi;
use elf::endian::LittleEndian;

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
        };
        let (symbols, names) = file.symbol_table()?.context("no symbols")?;
        // The first one stands for none.
        for symbol in symbols.iter().skip(1) {
            let name = names.get(usize::try_from(symbol.st_name)?)?.to_owned();
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
            if section.sh_type == abi::SHT_RELA {
                let relocations = file.section_data_as_relas(&section)?;
                object.relocations.extend(relocations.map(|relocation| relocation.r_type));
            }
        }
        Ok(object)
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
