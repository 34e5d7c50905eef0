/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* The entry point (X0 holds the device tree), and the exception vectors. */

/* SCTLR_EL1: MMU, data cache, instruction cache. */
#define SCTLR_ON ((1 << 0) | (1 << 2) | (1 << 12))
/* TCR_EL1: 39 bits of address, 4 KiB granule, tables in write-back inner shareable memory, no
 * TTBR1, 36 bits of physical address. */
#define TCR (25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 1 << 32)
/* MAIR_EL1: attribute 0 is device memory (nGnRnE), attribute 1 is write-back memory. */
#define MAIR 0xff00

/* Blocks of 1 GiB. Accessed; never executable at EL0. */
#define BLOCK (1 | 1 << 10 | 1 << 54)
#define DEVICE (BLOCK | 1 << 53)
#define RAM (BLOCK | 1 << 2 | 3 << 8)

    .section .text.entry, "ax"
    .globl _start
_start:
    mov x19, x0
    adr x1, vectors
    msr vbar_el1, x1
    /* The table is part of the image: nothing was written before the caches are on. */
    adrp x1, translation_table
    msr ttbr0_el1, x1
    mov x1, #MAIR
    msr mair_el1, x1
    ldr x1, =TCR
    msr tcr_el1, x1
    tlbi vmalle1
    dsb nsh
    isb
    mrs x1, sctlr_el1
    ldr x2, =SCTLR_ON
    orr x1, x1, x2
    msr sctlr_el1, x1
    isb
    /* Memory is not zero after a machine reset. */
    adrp x1, bss_start
    add x1, x1, :lo12:bss_start
    adrp x2, bss_end
    add x2, x2, :lo12:bss_end
1:  cmp x1, x2
    b.hs 2f
    str xzr, [x1], #8
    b 1b
2:  adrp x1, stack_end
    add x1, x1, :lo12:stack_end
    mov sp, x1
    mov x29, xzr
    mov x30, xzr
    mov x0, x19
    bl guest_main
3:  wfi
    b 3b

    .macro vector target
    .balign 128
    b \target
    .endm

    .balign 2048
vectors:
    /* From the current level with SP_EL0. */
    vector unexpected
    vector unexpected
    vector unexpected
    vector unexpected
    /* From the current level with SP_EL1: synchronous, IRQ, FIQ, SError. */
    vector unexpected
    vector interrupt
    vector unexpected
    vector unexpected
    /* From lower levels, which nothing runs at. */
    .rept 8
    vector unexpected
    .endr

interrupt:
    stp x29, x30, [sp, #-176]!
    stp x0, x1, [sp, #16]
    stp x2, x3, [sp, #32]
    stp x4, x5, [sp, #48]
    stp x6, x7, [sp, #64]
    stp x8, x9, [sp, #80]
    stp x10, x11, [sp, #96]
    stp x12, x13, [sp, #112]
    stp x14, x15, [sp, #128]
    stp x16, x17, [sp, #144]
    str x18, [sp, #160]
    bl gic_interrupt
    ldp x0, x1, [sp, #16]
    ldp x2, x3, [sp, #32]
    ldp x4, x5, [sp, #48]
    ldp x6, x7, [sp, #64]
    ldp x8, x9, [sp, #80]
    ldp x10, x11, [sp, #96]
    ldp x12, x13, [sp, #112]
    ldp x14, x15, [sp, #128]
    ldp x16, x17, [sp, #144]
    ldr x18, [sp, #160]
    ldp x29, x30, [sp], #176
    eret

unexpected:
    bl machine_exception
    b unexpected

    .section .rodata, "a"
    .balign 4096
translation_table:
    .quad DEVICE
    .quad RAM | 1 << 30
    .quad RAM | 2 << 30
    .quad RAM | 3 << 30
    .skip 508 * 8

    .bss
    .balign 16
    .skip 16384
stack_end:

    .section .note.GNU-stack, "", @progbits
