//! Exceptions, and interrupts from the GIC's CPU interface.

use core::arch::asm;
use core::sync::atomic::{Ordering, compiler_fence};

use aarch64_rt::{ExceptionHandlers, RegisterStateRef};
use arm_gic::gicv3::{GicCpuInterface, SgiTarget, SgiTargetGroup};
use arm_gic::{IntId, InterruptGroup, irq_disable, irq_enable, wfi};
use arm_sysregs::el1::accessors::{read_esr_el1, read_far_el1};

use super::{gic, lpi, timer};
use crate::exit::STATUS_PANIC;
use crate::interrupts::{FIRST_DEVICE, TICK, dispatch};
use crate::{exit, report, serial};

/// Switches interrupts off.
pub fn disable() {
    irq_disable();
    compiler_fence(Ordering::SeqCst);
}

/// Switches interrupts on.
pub fn enable() {
    compiler_fence(Ordering::SeqCst);
    irq_enable();
}

/// Switches interrupts on and sleeps until one has been handled; none is missed in between.
pub fn enable_and_sleep() {
    // An interrupt ends the sleep though it is masked, and is taken once it is not.
    sleep();
    enable();
    // SAFETY: makes the processor see what has been unmasked; no other effect.
    unsafe { asm!("isb", options(nostack, preserves_flags)) };
}

/// Sleeps until an interrupt is pending, masked or not.
pub(crate) fn sleep() {
    compiler_fence(Ordering::SeqCst);
    wfi();
}

/// Sends an interrupt to a vCPU, which may be the own one. The target has it pending when this returns. Only numbers below [`FIRST_DEVICE`].
pub fn send(target: usize, number: u8) {
    let Some(sgi) = number.checked_sub(TICK).filter(|_| number < FIRST_DEVICE) else { return };
    let target_list = u32::try_from(target).ok().and_then(|target| 1u16.checked_shl(target));
    let target = SgiTarget::List {
        affinity3: 0,
        affinity2: 0,
        affinity1: 0,
        target_list: target_list.unwrap_or(0),
    };
    // SAFETY: a barrier: what was stored before is there for whom the interrupt tells of it.
    unsafe { asm!("dsb ishst", options(nostack, preserves_flags)) };
    // It is an SGI, so this cannot fail.
    let _ =
        GicCpuInterface::send_sgi(IntId::sgi(sgi.into()), target, SgiTargetGroup::CurrentGroup1);
    // SAFETY: completes the write to the system register; no other effect.
    unsafe { asm!("isb", options(nostack, preserves_flags)) };
}

struct Exceptions;

aarch64_rt::exception_handlers!(Exceptions);

impl ExceptionHandlers for Exceptions {
    extern "C" fn irq_current(_: RegisterStateRef<'_>) {
        let Some(id) = GicCpuInterface::get_and_acknowledge_interrupt(InterruptGroup::Group1)
        else {
            return;
        };
        // SAFETY: a barrier: what the handler reads is no older than the interrupt.
        unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
        if id == gic::TIMER {
            timer::next_tick();
        }
        if let Some(number) = number(id) {
            dispatch(number);
        }
        GicCpuInterface::end_interrupt(id, InterruptGroup::Group1);
    }

    extern "C" fn sync_current(state: RegisterStateRef<'_>) {
        unexpected("exception", &state);
    }

    extern "C" fn serror_current(state: RegisterStateRef<'_>) {
        unexpected("SError", &state);
    }

    extern "C" fn fiq_current(state: RegisterStateRef<'_>) {
        unexpected("FIQ", &state);
    }
}

fn number(id: IntId) -> Option<u8> {
    if id == gic::TIMER {
        return Some(TICK);
    }
    match id.sgi_index() {
        Some(sgi) => u8::try_from(sgi).ok()?.checked_add(TICK),
        None => lpi::interrupt(id),
    }
}

#[cold]
fn unexpected(what: &str, state: &RegisterStateRef<'_>) -> ! {
    let (syndrome, address) = (read_esr_el1().bits(), read_far_el1().bits());
    let text = format_args!(
        "{what} at {:#x}, ESR {syndrome:#x}, FAR {address:#x}, stack {:p}",
        state.elr,
        core::ptr::from_ref(&**state)
    );
    serial::print(format_args!("guest: {text}\n"));
    report::failure_anyhow(text);
    exit(STATUS_PANIC)
}
