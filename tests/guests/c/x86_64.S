/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* The entry point: RDI holds the start info, RSI the index of the vCPU. */
    .section .text.entry, "ax"
    .globl _start
_start:
    cli
    cld
    test %rsi, %rsi
    jnz 1f
    /* Memory is not zero after a machine reset. */
    mov %rdi, %rbx
    lea bss_start(%rip), %rdi
    lea bss_end(%rip), %rcx
    sub %rdi, %rcx
    xor %eax, %eax
    rep stosb
    lea stack_end(%rip), %rsp
    mov %rbx, %rdi
    xor %ebp, %ebp
    call guest_main
1:  cli
    hlt
    jmp 1b

    .bss
    .balign 16
    .skip 16384
stack_end:

    .section .note.GNU-stack, "", @progbits
