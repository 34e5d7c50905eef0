//! Linux kernels: a bzImage by the 64-bit boot protocol, an ELF file by PVH.
//!
//! Sources: Linux's documentation of its x86 boot protocol, and of PVH in Xen's.

use std::io::Cursor;

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, Elf, KernelLoader, PvhBootCapability};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::boot::{self, BOOT_PARAMETERS, COMMAND_LINE, GDT_LINUX};
use super::contract::LOAD_MIN;
use super::{Start, acpi};
use crate::boot::Boot;
use crate::error::MachineError;

/// Where a bzImage has its magic number, and what it is.
const BZIMAGE_MAGIC: (usize, &[u8]) = (0x202, b"HdrS");
const ELF_MAGIC: (usize, &[u8]) = (0, b"\x7fELF");
/// Other things that are called kernels.
const STRANGERS: [((usize, &[u8]), &str); 4] = [
    ((0x38, b"ARM\x64"), "it is a kernel for arm64"),
    ((4, b"zimg"), "it is a compressed EFI kernel, as arm64 and others have it"),
    ((0, b"\x1f\x8b"), "it is a gzip file, as arm64 has kernels"),
    ((0, b"MZ"), "it is an EFI program"),
];

/// A bzImage can be entered in 64-bit mode.
const KERNEL_64BIT: u16 = 1;
/// The 64-bit entry point, from where the kernel was loaded.
const ENTRY_64BIT: u64 = 0x200;
/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// Where an initrd ends at most, for kernels that do not say.
const INITRD_END: u64 = 0x3800_0000;
const PAGE_BYTES: u64 = 4096;

/// Loads a kernel, its first file system and what they are told.
///
/// # Errors
/// When the kernel is none for this machine, or the RAM is too small.
pub(crate) fn load(
    boot: &Boot<'_>,
    kernel: &[u8],
    initrd: Option<&[u8]>,
) -> Result<Start, MachineError> {
    boot::write_command_line(boot.memory, boot.command_line)?;
    boot::write_gdt(boot.memory, &GDT_LINUX)?;
    boot::write_reset_code(boot.memory)?;
    let rsdp = acpi::write(boot)?;
    if has(kernel, BZIMAGE_MAGIC) {
        load_bzimage(boot, kernel, initrd, rsdp)
    } else if has(kernel, ELF_MAGIC) {
        load_elf(boot, kernel, initrd, rsdp)
    } else {
        let stranger = STRANGERS.iter().find(|(magic, _)| has(kernel, *magic));
        let what = stranger.map_or("it is no kernel that this machine knows", |(_, what)| what);
        Err(MachineError::Guest(format!(
            "{what}; --kernel takes a bzImage for x86_64 (usually /boot/vmlinuz-VERSION), or a vmlinux with an entry for PVH"
        )))
    }
}

fn has(kernel: &[u8], (offset, magic): (usize, &[u8])) -> bool {
    kernel.get(offset..).is_some_and(|rest| rest.starts_with(magic))
}

fn load_bzimage(
    boot: &Boot<'_>,
    kernel: &[u8],
    initrd: Option<&[u8]>,
    rsdp: u64,
) -> Result<Start, MachineError> {
    let place = GuestAddress(LOAD_MIN);
    let loaded = BzImage::load(boot.memory, Some(place), &mut Cursor::new(kernel), None);
    let loaded = loaded.map_err(|error| cannot_load(&error, kernel))?;
    let mut header = loaded.setup_header.unwrap_or_default();
    if header.xloadflags & KERNEL_64BIT == 0 {
        return Err(MachineError::Guest(
            "it is a kernel for 32-bit processors; take one for x86_64 (Debian: linux-image-amd64)"
                .to_owned(),
        ));
    }
    // It unpacks itself to where it prefers to be, or behind itself.
    let unpacked = header.pref_address.max(place.0).saturating_add(header.init_size.into());
    let limit = match header.initrd_addr_max {
        0 => INITRD_END,
        last => u64::from(last).saturating_add(1),
    };
    let initrd = place_initrd(boot, initrd, loaded.kernel_end.max(unpacked), limit)?;
    if let Some((address, bytes)) = initrd {
        header.ramdisk_image = low(address);
        header.ramdisk_size = low(bytes);
    }
    header.type_of_loader = LOADER_UNDEFINED;
    header.cmd_line_ptr = low(COMMAND_LINE);
    write_boot_parameters(boot.memory, header, rsdp)?;
    boot::write_page_tables(boot.memory)?;
    Ok(Start::Linux { entry: loaded.kernel_load.0.saturating_add(ENTRY_64BIT) })
}

/// The "zero page".
fn write_boot_parameters(
    memory: &GuestMemoryMmap,
    header: setup_header,
    rsdp: u64,
) -> Result<(), MachineError> {
    let map = boot::memory_map(memory);
    let mut parameters = boot_params { hdr: header, acpi_rsdp_addr: rsdp, ..Default::default() };
    let mut table = parameters.e820_table;
    for (entry, region) in table.iter_mut().zip(&map) {
        *entry =
            boot_e820_entry { addr: region.start, size: region.bytes, r#type: region.kind as u32 };
    }
    parameters.e820_table = table;
    parameters.e820_entries = u8::try_from(map.len()).unwrap_or(0);
    let parameters = BootParams::new(&parameters, GuestAddress(BOOT_PARAMETERS));
    LinuxBootConfigurator::write_bootparams(&parameters, memory)
        .map_err(|error| MachineError::Memory(error.to_string()))
}

fn load_elf(
    boot: &Boot<'_>,
    kernel: &[u8],
    initrd: Option<&[u8]>,
    rsdp: u64,
) -> Result<Start, MachineError> {
    let lowest = GuestAddress(LOAD_MIN);
    let loaded = Elf::load(boot.memory, None, &mut Cursor::new(kernel), Some(lowest));
    let loaded = loaded.map_err(|error| cannot_load(&error, kernel))?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(MachineError::Guest(
            "it is an ELF file without an entry for PVH; build the kernel with CONFIG_PVH, take its bzImage, or give a \
             bare-metal guest without --kernel"
                .to_owned(),
        ));
    };
    let initrd = place_initrd(boot, initrd, loaded.kernel_end, u64::MAX)?;
    boot::write_start_info(boot.memory, &boot::memory_map(boot.memory), initrd, rsdp)?;
    Ok(Start::Pvh { entry: entry.0 })
}

/// Puts the initrd as high as it may be; returns its address and size.
///
/// # Errors
/// When there is no room between the kernel's end and the end of RAM below 4 GiB.
fn place_initrd(
    boot: &Boot<'_>,
    initrd: Option<&[u8]>,
    kernel_end: u64,
    limit: u64,
) -> Result<Option<(u64, u64)>, MachineError> {
    let ram_end = boot.memory.iter().next().map_or(0, GuestMemoryRegion::len);
    let bytes = initrd.map_or(0, |initrd| u64::try_from(initrd.len()).unwrap_or(u64::MAX));
    let place = ram_end.min(limit).checked_sub(bytes).map(|place| place & !(PAGE_BYTES - 1));
    let Some(place) = place.filter(|place| *place >= kernel_end) else {
        let least = kernel_end.saturating_add(bytes).div_ceil(1 << 20);
        return Err(MachineError::Config(format!(
            "{} MiB of guest memory are too few: the kernel alone needs {} MiB to unpack itself, and the initrd has {} \
             MiB; give --memory {}M or more",
            boot.memory_bytes >> 20,
            kernel_end.div_ceil(1 << 20),
            bytes.div_ceil(1 << 20),
            least.max(256)
        )));
    };
    let Some(initrd) = initrd else { return Ok(None) };
    boot::put(boot.memory, place, initrd)?;
    Ok(Some((place, bytes)))
}

/// What the loader says, and what is likely.
fn cannot_load(error: &linux_loader::loader::Error, kernel: &[u8]) -> MachineError {
    MachineError::Guest(format!(
        "{error}; the file of {} bytes is damaged, is no kernel for this machine, or --memory is too small for it",
        kernel.len()
    ))
}

/// The lower half; all addresses that are told this way lie below 4 GiB.
fn low(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use vm_memory::Bytes;

    use super::super::contract::ECAM;
    use super::*;
    use crate::config::Program;
    use crate::control::End;
    use crate::machine::Machine;
    use crate::{memory, test_guest};

    const MEBIBYTE: u64 = 1 << 20;

    /// A machine that runs this code as the 64-bit entry of a kernel; `None` where this host cannot run one.
    fn run(code: &[u8], cpus: u8) -> Option<(Machine, End)> {
        let kernel = bzimage(1 << 20, &[&[0x90; 0x200], code].concat());
        let machine = test_guest::machine(&[], |config| {
            config.program = Program::Linux { kernel, initrd: None };
            config.memory_bytes = 32 * MEBIBYTE;
            config.cpus = cpus;
        })?;
        machine.resume();
        let end = machine.wait(test_guest::LONG).unwrap();
        Some((machine, end))
    }

    #[test]
    fn the_first_processor_starts_with_the_boot_parameters_and_alone() {
        let code = [
            0x8a, 0x86, 0x10, 0x02, 0, 0, // mov al, [rsi + type_of_loader]
            0xe6, 0xf4, // out 0xf4, al
            0xf4, // hlt
        ];
        let Some((machine, end)) = run(&code, 3) else { return };
        assert_eq!(end, End::Exited(0xff));
        assert_eq!(machine.exits().total(), 1);
    }

    #[test]
    fn a_guest_that_powers_off_ends_well() {
        let code = [
            0x66, 0xba, 0x70, 0x56, // mov dx, 0x5670
            0xb0, 0x14, // mov al, 5 << 2
            0xee, // out dx, al: nothing without "enable"
            0xb0, 0x34, // mov al, 5 << 2 | enable
            0xee, // out dx, al
            0xf4, // hlt
        ];
        let Some((machine, end)) = run(&code, 1) else { return };
        assert_eq!(end, End::Exited(0));
        assert_eq!(machine.exits().total(), 2);
        assert!(machine.report().passed());
    }

    #[test]
    fn what_lies_at_the_reset_vector_resets_the_machine() {
        // The code there runs in 64-bit mode as well, but for the width of its first operand.
        let code = [
            0xb8, 0xf3, 0xff, 0x0f, 0, // mov eax, 0xffff3
            0x66, 0xba, 0xf9, 0x0c, // mov dx, 0xcf9
            0xff, 0xe0, // jmp rax
        ];
        let kernel = bzimage(1 << 20, &[&[0x90; 0x200], &code[..]].concat());
        let machine = test_guest::machine(&[], |config| {
            config.program = Program::Linux { kernel, initrd: None };
            config.memory_bytes = 32 * MEBIBYTE;
        });
        let Some(machine) = machine else { return };
        machine.resume();
        while machine.resets() < 3 {
            assert_eq!(machine.ended(), None);
            std::thread::yield_now();
        }
    }

    /// A bzImage that wants `init_size` bytes from 16 MiB on, with this as its protected-mode part.
    fn bzimage(init_size: u32, code: &[u8]) -> Vec<u8> {
        let header = setup_header {
            setup_sects: 1,
            boot_flag: 0xaa55,
            header: 0x5372_6448,
            version: 0x020f,
            loadflags: 1,
            initrd_addr_max: 0x7fff_ffff,
            xloadflags: KERNEL_64BIT,
            pref_address: 16 * MEBIBYTE,
            init_size,
            ..Default::default()
        };
        let mut file = vec![0; 1024];
        let bytes = vm_memory::ByteValued::as_slice(&header);
        file[0x1f1..0x1f1 + bytes.len()].copy_from_slice(bytes);
        file.extend(code);
        file
    }

    /// An ELF64 kernel with one segment at 2 MiB and, if wanted, an entry for PVH.
    fn vmlinux(pvh_entry: Option<u32>) -> Vec<u8> {
        let note: Vec<u8> = pvh_entry.map_or_else(Vec::new, |entry| {
            [4, 4, 18]
                .into_iter()
                .chain([u32::from_le_bytes(*b"Xen\0"), entry])
                .flat_map(u32::to_le_bytes)
                .collect()
        });
        let mut file = test_guest::elf(2 * MEBIBYTE, b"code");
        // A second program header, of a note: the first one's place moves behind it.
        file[56] = 2;
        let code = file.split_off(120);
        let mut header = Vec::new();
        header.extend(4_u32.to_le_bytes());
        header.extend(0_u32.to_le_bytes());
        let size = u64::try_from(note.len()).unwrap();
        for word in [180, 0, 0, size, size, 4] {
            header.extend(u64::to_le_bytes(word));
        }
        file.extend(header);
        file.extend(&code);
        file.extend(&note);
        file[72..80].copy_from_slice(&176_u64.to_le_bytes());
        file
    }

    fn start(
        memory: &GuestMemoryMmap,
        kernel: &[u8],
        initrd: Option<&[u8]>,
    ) -> Result<Start, MachineError> {
        let memory_bytes = memory.iter().map(GuestMemoryRegion::len).sum();
        let boot = Boot { memory, memory_bytes, command_line: "quiet", cpus: 2, doorbell: None };
        load(&boot, kernel, initrd)
    }

    fn error(megabytes: u64, kernel: &[u8], initrd: Option<&[u8]>) -> String {
        let memory = memory::create(megabytes * MEBIBYTE).unwrap();
        start(&memory, kernel, initrd).err().unwrap().to_string()
    }

    #[test]
    fn a_bzimage_is_entered_in_64bit_mode_and_finds_everything() {
        let memory = memory::create(64 * MEBIBYTE).unwrap();
        let Start::Linux { entry } =
            start(&memory, &bzimage(8 << 20, b"protected mode"), Some(b"initrd")).unwrap()
        else {
            panic!("not the 64-bit protocol")
        };
        assert_eq!(entry, MEBIBYTE + 0x200);
        let mut code = [0; 14];
        memory.read_slice(&mut code, GuestAddress(MEBIBYTE)).unwrap();
        assert_eq!(&code, b"protected mode");
        let parameters: boot_params = memory.read_obj(GuestAddress(BOOT_PARAMETERS)).unwrap();
        let header = parameters.hdr;
        assert_eq!({ header.type_of_loader }, 0xff);
        assert_eq!(u64::from(header.cmd_line_ptr), COMMAND_LINE);
        assert_eq!({ parameters.acpi_rsdp_addr }, 0xe_0000);
        assert_eq!({ header.ramdisk_size }, 6);
        let mut initrd = [0; 6];
        let address = u64::from(header.ramdisk_image);
        assert_eq!(address, 64 * MEBIBYTE - 4096, "as high as possible, on a page");
        memory.read_slice(&mut initrd, GuestAddress(address)).unwrap();
        assert_eq!(&initrd, b"initrd");
        let table = parameters.e820_table;
        let map: Vec<_> = table[..usize::from(parameters.e820_entries)]
            .iter()
            .map(|entry| (entry.addr, entry.size, entry.r#type))
            .collect();
        assert_eq!(
            map,
            [
                (0, 0xa_0000, 1),
                (0xe_0000, 0x2_0000, 2),
                (MEBIBYTE, 63 * MEBIBYTE, 1),
                (ECAM.start, 0x10_0000, 2),
            ]
        );
    }

    #[test]
    fn memory_above_4_gib_is_in_the_map_and_the_initrd_is_not_there() {
        let memory = memory::create(3072 * MEBIBYTE + 2 * MEBIBYTE).unwrap();
        start(&memory, &bzimage(8 << 20, b""), Some(b"initrd")).unwrap();
        let parameters: boot_params = memory.read_obj(GuestAddress(BOOT_PARAMETERS)).unwrap();
        let last = { parameters.e820_table }[usize::from(parameters.e820_entries) - 1];
        assert_eq!(({ last.addr }, { last.size }), (1 << 32, 2 * MEBIBYTE));
        let header = parameters.hdr;
        assert_eq!({ header.ramdisk_image }, 0x8000_0000 - 4096, "the kernel's limit");
    }

    #[test]
    fn an_elf_kernel_is_entered_by_pvh() {
        let memory = memory::create(64 * MEBIBYTE).unwrap();
        let kernel = vmlinux(Some(0x20_0004));
        let Start::Pvh { entry } = start(&memory, &kernel, Some(b"initrd")).unwrap() else {
            panic!("not PVH")
        };
        assert_eq!(entry, 0x20_0004);
        let word = |address| memory.read_obj::<u64>(GuestAddress(address)).unwrap();
        let info = boot::START_INFO;
        assert_eq!(word(info), 0x1_336e_c578, "magic, version 1");
        assert_eq!(word(info + 8), 1 << 32, "one module");
        assert_eq!(word(info + 32), 0xe_0000, "RSDP");
        assert_eq!(word(info + 48), 4, "entries of the map");
        let module = word(info + 16);
        assert_eq!((word(module), word(module + 8)), (64 * MEBIBYTE - 4096, 6));
        let mut initrd = [0; 6];
        memory.read_slice(&mut initrd, GuestAddress(word(module))).unwrap();
        assert_eq!(&initrd, b"initrd");
    }

    #[test]
    fn what_is_no_kernel_for_this_machine_is_told_with_a_remedy() {
        let mut arm64 = vec![0; 4096];
        arm64[..2].copy_from_slice(b"MZ");
        arm64[0x38..0x3c].copy_from_slice(b"ARM\x64");
        let mut zboot = vec![0; 4096];
        zboot[..8].copy_from_slice(b"MZ\0\0zimg");
        let mut old = bzimage(1 << 20, b"");
        // The low byte of xloadflags.
        old[0x236] = 0;
        for (kernel, part) in [
            (arm64, "arm64"),
            (zboot, "compressed EFI kernel"),
            (b"\x1f\x8b\x08".to_vec(), "gzip"),
            (b"#!/bin/sh\n".to_vec(), "no kernel that this machine knows"),
            (Vec::new(), "no kernel that this machine knows"),
            (old, "32-bit"),
            (bzimage(1 << 20, b"")[..600].to_vec(), "damaged"),
            (vmlinux(None), "CONFIG_PVH"),
        ] {
            let error = error(64, &kernel, None);
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn too_little_memory_is_told_with_what_is_needed() {
        let kernel = bzimage(48 << 20, b"");
        let unpack = error(32, &kernel, None);
        assert!(unpack.contains("32 MiB of guest memory") && unpack.contains("64 MiB"), "{unpack}");
        let initrd = vec![0; 80 << 20];
        let both = error(128, &kernel, Some(&initrd));
        assert!(both.contains("80 MiB") && both.contains("--memory 256M"), "{both}");
        let loader = error(2, &bzimage(1 << 20, &[0; 2 << 20]), None);
        assert!(loader.contains("--memory"), "{loader}");
    }
}
