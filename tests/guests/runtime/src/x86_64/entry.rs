//! From the machine's entry point to the guest, on every vCPU.

use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, Ordering};

use super::{apic, interrupts, start};
use crate::entry::enter;
use crate::memory::{self, PAGE};

/// The most vCPUs that get a stack; others are parked.
pub(crate) const VCPUS_MAX: usize = 32;

/// Bytes of stack of each vCPU; the stacks follow the image.
const STACK_BYTES: usize = 64 << 10;

// RDI: start info, RSI: vCPU index. The boot processor clears what the image
// does not fill (memory is not zero after a machine reset) and only then lets
// the others go on; `released` lies in initialised data for that reason.
global_asm!(
    ".pushsection .data",
    "released: .long 0",
    ".popsection",
    ".pushsection .text",
    ".globl _start",
    "_start:",
    "    cli",
    "    cld",
    "    cmp rsi, {vcpus}",
    "    jae 3f",
    "    test rsi, rsi",
    "    jnz 2f",
    "    mov rbx, rdi",
    "    lea rdi, [rip + __bss_start]",
    "    lea rcx, [rip + _end + 7]",
    "    sub rcx, rdi",
    "    shr rcx, 3",
    "    xor eax, eax",
    "    rep stosq",
    "    mov rdi, rbx",
    "    mov dword ptr [rip + released], 1",
    "2:  pause",
    "    cmp dword ptr [rip + released], 0",
    "    je 2b",
    "    lea rsp, [rip + _end + 4095]",
    "    and rsp, -4096",
    "    lea rax, [rsi + 1]",
    "    imul rax, rax, {stack}",
    "    add rsp, rax",
    "    xor ebp, ebp",
    "    call {boot}",
    "3:  cli",
    "    hlt",
    "    jmp 3b",
    ".popsection",
    vcpus = const VCPUS_MAX,
    stack = const STACK_BYTES,
    boot = sym boot,
);

static BOOTED: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    /// The end of the image; the linker defines it. The stacks follow it.
    static _end: u8;
}

/// The end of image and stacks.
pub(crate) fn image_end() -> usize {
    let stacks = STACK_BYTES.saturating_mul(VCPUS_MAX);
    (&raw const _end).expose_provenance().next_multiple_of(PAGE).saturating_add(stacks)
}

/// The index of the vCPU that runs this, from where its stack lies: cheaper than the local APIC's id.
pub(crate) fn vcpu_index() -> usize {
    let here = 0u8;
    let stacks = (&raw const _end).addr().next_multiple_of(PAGE);
    (&raw const here).addr().saturating_sub(stacks) / STACK_BYTES
}

extern "sysv64" fn boot(start_info: u64, index: usize) -> ! {
    let start = start::read(start_info);
    if index == 0 {
        memory::initialise(start.ram_end());
        interrupts::initialise();
        apic::mask_legacy_controllers();
        BOOTED.store(true, Ordering::Release);
    } else {
        while !BOOTED.load(Ordering::Acquire) {
            core::hint::spin_loop();
        }
    }
    interrupts::load();
    apic::enable();
    enter(&start, index)
}
