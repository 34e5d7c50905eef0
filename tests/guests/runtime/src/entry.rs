//! From the machine's entry point to a guest's main function.

use core::arch::global_asm;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::exit::STATUS_PANIC;
use crate::{Start, apic, exit, interrupts, memory, report, serial, vcpu};

/// Bytes of stack of each vCPU; the stacks follow the image.
pub(crate) const STACK_BYTES: usize = 64 << 10;

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
    vcpus = const crate::VCPUS_MAX,
    stack = const STACK_BYTES,
    boot = sym boot,
);

static BOOTED: AtomicBool = AtomicBool::new(false);

unsafe extern "Rust" {
    /// Defined by [`entry!`](crate::entry).
    safe fn pvmsi_guest_main(start: &Start, index: usize) -> !;
}

/// Names the function that every vCPU runs: `fn(&Start, usize) -> !`, the second argument being the vCPU index.
///
/// It starts with interrupts off.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        const _: () = {
            #[unsafe(no_mangle)]
            fn pvmsi_guest_main(start: &$crate::Start, index: usize) -> ! {
                let main: fn(&$crate::Start, usize) -> ! = $main;
                main(start, index)
            }
        };
    };
}

extern "sysv64" fn boot(start_info: u64, index: usize) -> ! {
    let start = Start::read(start_info);
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
    vcpu::online();
    pvmsi_guest_main(&start, index)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    serial::print(format_args!("guest panic: {info}\n"));
    report::failure_anyhow(format_args!("guest panic: {info}"));
    exit(STATUS_PANIC)
}
