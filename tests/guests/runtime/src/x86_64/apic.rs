//! The local APIC in its memory-mapped form, at its power-on address (Intel SDM volume 3, chapter 12).

use x86_64::instructions::port::Port;

use crate::interrupts::TICK;
use crate::mmio::Register;
use crate::timer::TICK_MS;

const BASE: usize = 0xfee0_0000;
const TASK_PRIORITY: usize = 0x80;
const EOI: usize = 0xb0;
const SPURIOUS: usize = 0xf0;
const COMMAND_LOW: usize = 0x300;
const COMMAND_HIGH: usize = 0x310;
const TIMER_VECTOR: usize = 0x320;
const TIMER_INITIAL: usize = 0x380;
const TIMER_CURRENT: usize = 0x390;
const TIMER_DIVIDE: usize = 0x3e0;

const SOFTWARE_ENABLE: u32 = 1 << 8;
const ASSERT: u32 = 1 << 14;
const DELIVERY_PENDING: u32 = 1 << 12;
const MASKED: u32 = 1 << 16;
const PERIODIC: u32 = 1 << 17;
const DIVIDE_BY_1: u32 = 0b1011;

/// The vector of spurious interrupts of the local APIC itself.
pub(crate) const SPURIOUS_VECTOR: u8 = 0xff;
/// KVM's timer counts nanoseconds.
const TIMER_HZ: u32 = 1_000_000_000;

fn register(offset: usize) -> Register<u32> {
    // SAFETY: the local APIC is at this address (machine contract), its
    // registers are aligned, and no Rust object lies there.
    unsafe { Register::at(BASE | offset) }
}

/// Switches this vCPU's local APIC on, with all priorities accepted.
pub(crate) fn enable() {
    register(TASK_PRIORITY).write(0);
    register(TIMER_VECTOR).write(MASKED);
    register(SPURIOUS).write(SOFTWARE_ENABLE | u32::from(SPURIOUS_VECTOR));
}

/// Masks the legacy interrupt controllers (8259): whatever firmware has left there would look like an exception.
pub(crate) fn mask_legacy_controllers() {
    for data in [0x21, 0xa1] {
        let mut port = Port::<u8>::new(data);
        // SAFETY: writes the mask register of an 8259; nobody uses it.
        unsafe { port.write(0xff) };
    }
}

/// Ends the interrupt that is in service.
pub(crate) fn end_of_interrupt() {
    register(EOI).write(0);
}

/// Sends a fixed interrupt to the vCPU with this APIC id; it may be the own one. The interrupt is in the target's request register when this returns (KVM delivers it in the write).
pub(crate) fn send_ipi(target: u8, vector: u8) {
    register(COMMAND_HIGH).write(u32::from(target) << 24);
    register(COMMAND_LOW).write(ASSERT | u32::from(vector));
    for _ in 0..1000 {
        if register(COMMAND_LOW).read() & DELIVERY_PENDING == 0 {
            break;
        }
    }
}

/// Makes [`TICK`] come to this vCPU every [`TICK_MS`], so that it never sleeps for ever.
pub fn start_tick() {
    register(TIMER_DIVIDE).write(DIVIDE_BY_1);
    register(TIMER_VECTOR).write(PERIODIC | u32::from(TICK));
    register(TIMER_INITIAL).write(TICK_MS.saturating_mul(TIMER_HZ / 1000));
}

/// Measures time up to four seconds with interrupts off. The vCPU has no tick while one is in use.
#[derive(Debug)]
pub struct Stopwatch(());

impl Stopwatch {
    /// Starts at 0.
    pub fn start() -> Self {
        register(TIMER_VECTOR).write(MASKED);
        register(TIMER_DIVIDE).write(DIVIDE_BY_1);
        register(TIMER_INITIAL).write(u32::MAX);
        Self(())
    }

    /// Milliseconds since the start; stops at about 4294.
    pub fn milliseconds(&self) -> u32 {
        u32::MAX.saturating_sub(register(TIMER_CURRENT).read()) / (TIMER_HZ / 1000)
    }
}

/// Ends the ticks.
pub fn stop_tick() {
    register(TIMER_VECTOR).write(MASKED);
    register(TIMER_INITIAL).write(0);
}
