//! The entry of machines that start a kernel by PVH, in 32-bit mode without paging.
//!
//! An ELF note (`XEN_ELFNOTE_PHYS32_ENTRY`) names it. It makes what the reference machine hands over
//! with the 64-bit entry: the first 4 GiB mapped one to one, flat segments, start info in RDI, and a
//! vCPU index of 0. PVH starts the boot processor alone; the guest does not start others.

use core::arch::global_asm;

/// Type of the ELF note that names the 32-bit entry point.
const PHYS32_ENTRY: u32 = 18;
/// Model-specific register EFER.
const EFER: u32 = 0xc000_0080;
/// EFER: long mode enable.
const LONG_MODE: u32 = 1 << 8;
/// CR4: physical address extension.
const PHYSICAL_ADDRESS_EXTENSION: u32 = 1 << 5;
/// CR0: paging.
const PAGING: u32 = 1 << 31;
/// A table entry: present, writable.
const TABLE: u32 = 0b11;
/// A page directory's entry: present, writable, 2 MiB.
const LARGE_PAGE: u32 = 0b1000_0011;
/// Page directories, a GiB each.
const DIRECTORIES: u32 = 4;

// EBX: start info. The tables lie in initialised data, because `_start` clears the rest while they
// are in use: page map level 4, page directory pointers, page directories.
global_asm!(
    ".pushsection .note.Xen, \"a\", @note",
    ".balign 4",
    ".long 4, 4, {note}",
    ".asciz \"Xen\"",
    ".long pvh_start",
    ".popsection",
    ".pushsection .data.pvh, \"aw\", @progbits",
    ".balign 4096",
    "pvh_tables: .fill 4096 * (2 + {directories}), 1, 0",
    "pvh_gdt: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff",
    "pvh_gdt_pointer: .word 23",
    "    .long pvh_gdt",
    ".popsection",
    ".pushsection .text",
    ".code32",
    "pvh_start:",
    "    cli",
    "    cld",
    "    mov edi, offset pvh_tables",
    "    lea eax, [edi + 0x1000 + {table}]",
    "    mov [edi], eax",
    "    xor ecx, ecx",
    "2:  lea eax, [ecx + 2]",
    "    shl eax, 12",
    "    lea eax, [eax + edi + {table}]",
    "    mov [edi + 0x1000 + 8 * ecx], eax",
    "    inc ecx",
    "    cmp ecx, {directories}",
    "    jb 2b",
    "    xor ecx, ecx",
    "3:  mov eax, ecx",
    "    shl eax, 21",
    "    or eax, {large_page}",
    "    mov [edi + 0x2000 + 8 * ecx], eax",
    "    inc ecx",
    "    cmp ecx, 512 * {directories}",
    "    jb 3b",
    "    mov cr3, edi",
    "    mov eax, cr4",
    "    or eax, {pae}",
    "    mov cr4, eax",
    "    mov ecx, {efer}",
    "    rdmsr",
    "    or eax, {long_mode}",
    "    wrmsr",
    "    mov eax, cr0",
    "    or eax, {paging}",
    "    mov cr0, eax",
    "    lgdt [pvh_gdt_pointer]",
    "    mov eax, 0x10",
    "    mov ds, eax",
    "    mov es, eax",
    "    mov ss, eax",
    // A far jump to code segment 8: `jmp 8:pvh_long` in bytes, which every assembler takes.
    "    .byte 0xea",
    "    .long pvh_long",
    "    .word 8",
    ".code64",
    "pvh_long:",
    "    mov edi, ebx",
    "    xor esi, esi",
    "    jmp _start",
    ".popsection",
    note = const PHYS32_ENTRY,
    directories = const DIRECTORIES,
    table = const TABLE,
    large_page = const LARGE_PAGE,
    pae = const PHYSICAL_ADDRESS_EXTENSION,
    efer = const EFER,
    long_mode = const LONG_MODE,
    paging = const PAGING,
);
