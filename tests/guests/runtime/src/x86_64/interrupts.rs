//! The interrupt table: one stub for each of 256 vectors. Interrupt numbers are vectors.

use core::arch::global_asm;
use core::cell::UnsafeCell;

use x86_64::VirtAddr;
pub(crate) use x86_64::instructions::hlt as sleep;
pub use x86_64::instructions::interrupts::{disable, enable, enable_and_hlt as enable_and_sleep};
use x86_64::registers::control::Cr2;
use x86_64::structures::idt::InterruptDescriptorTable;

use super::apic;
use crate::exit::STATUS_PANIC;
use crate::{exit, report, serial};

/// The first vector that is not an exception.
const FIRST: u8 = 0x20;

// Each stub leaves its vector number on the stack, above an error code (the
// processor's, or 0). Only what Rust code may change is saved; there are no
// vector registers. Stubs are 16 bytes each.
global_asm!(
    ".pushsection .text",
    ".balign 16",
    "interrupt_stubs:",
    ".set vector, 0",
    ".rept 256",
    ".balign 16",
    ".if (vector == 8) || (vector == 10) || (vector == 11) || (vector == 12) || (vector == 13) || (vector == 14) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)",
    ".else",
    "    push 0",
    ".endif",
    "    .byte 0x68",
    "    .long vector",
    "    jmp interrupt_common",
    ".set vector, vector + 1",
    ".endr",
    ".balign 16",
    "interrupt_common:",
    "    push rax",
    "    push rcx",
    "    push rdx",
    "    push rsi",
    "    push rdi",
    "    push r8",
    "    push r9",
    "    push r10",
    "    push r11",
    "    lea rdi, [rsp + 72]",
    "    cld",
    "    call {dispatch}",
    "    pop r11",
    "    pop r10",
    "    pop r9",
    "    pop r8",
    "    pop rdi",
    "    pop rsi",
    "    pop rdx",
    "    pop rcx",
    "    pop rax",
    "    add rsp, 16",
    "    iretq",
    ".popsection",
    dispatch = sym dispatch,
);

/// What a stub and the processor leave on the stack.
#[repr(C)]
struct Frame {
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

struct Table(UnsafeCell<InterruptDescriptorTable>);

// SAFETY: written by the boot processor before the others may load it, and by nobody later.
unsafe impl Sync for Table {}

static TABLE: Table = Table(UnsafeCell::new(InterruptDescriptorTable::new()));

unsafe extern "C" {
    static interrupt_stubs: u8;
}

fn stub(vector: u8) -> VirtAddr {
    let stubs = (&raw const interrupt_stubs).addr() as u64;
    VirtAddr::new(stubs.saturating_add(u64::from(vector).saturating_mul(16)))
}

pub(crate) fn initialise() {
    // SAFETY: only the boot processor runs this, before the others go on.
    let table = unsafe { &mut *TABLE.0.get() };
    macro_rules! exceptions {
        ($($vector:literal $entry:ident),+ $(,)?) => {$(
            // SAFETY: the stub follows the processor's calling convention for this vector.
            unsafe { table.$entry.set_handler_addr(stub($vector)); }
        )+};
    }
    exceptions!(
        0 divide_error, 1 debug, 2 non_maskable_interrupt, 3 breakpoint, 4 overflow,
        5 bound_range_exceeded, 6 invalid_opcode, 7 device_not_available, 8 double_fault,
        10 invalid_tss, 11 segment_not_present, 12 stack_segment_fault,
        13 general_protection_fault, 14 page_fault, 16 x87_floating_point, 17 alignment_check,
        18 machine_check, 19 simd_floating_point,
    );
    for vector in FIRST..=u8::MAX {
        // SAFETY: as above.
        #[allow(clippy::indexing_slicing, reason = "the table has an entry for each of these")]
        unsafe {
            table[vector].set_handler_addr(stub(vector))
        };
    }
}

pub(crate) fn load() {
    // SAFETY: `initialise` has filled the table, and nobody changes it any more.
    let table: &'static InterruptDescriptorTable = unsafe { &*TABLE.0.get() };
    table.load();
}

/// Sends an interrupt to a vCPU, which may be the own one. The target has it pending when this returns.
pub fn send(target: usize, number: u8) {
    if let Ok(target) = u8::try_from(target) {
        apic::send_ipi(target, number);
    }
}

extern "sysv64" fn dispatch(frame: &Frame) {
    let [vector, ..] = frame.vector.to_le_bytes();
    if vector < FIRST {
        exception(frame);
    }
    crate::interrupts::dispatch(vector);
    if vector != apic::SPURIOUS_VECTOR {
        apic::end_of_interrupt();
    }
}

#[cold]
fn exception(frame: &Frame) -> ! {
    let address = Cr2::read_raw();
    let text = format_args!(
        "exception {} at {:#x}, error code {:#x}, CR2 {address:#x}, stack {:#x}",
        frame.vector, frame.rip, frame.error, frame.rsp
    );
    serial::print(format_args!("guest: {text}\n"));
    report::failure_anyhow(text);
    exit(STATUS_PANIC)
}
