//! Interrupts under load: vCPU 0 takes them while vCPU 1 masks and unmasks.

use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering, fence};

use pvmsi_guest::{MsiX, PciFunction as _, VectorIndex};
use pvmsi_guest_report::{Event, Outcome, Section};
use pvmsi_guest_runtime::mmio::Register;
use pvmsi_guest_runtime::{interrupts, println, report, software, timer, vcpu};
use pvmsi_software::registers::{
    DONE, DOORBELL, EVENTS, FIRST, PACE, ROTATION, SENDING, SENT, of_vector,
};

use crate::accounting;
use crate::device::{Device, Interrupts, VECTORS};
use crate::options::Options;

/// How long a vCPU or the device may take for one thing, in milliseconds.
const PATIENCE: u32 = 3000;
/// How long a late interrupt is waited for in the end, in milliseconds.
const QUIET_TIME: u32 = 1000;
/// How long one interrupt too many is waited for, in milliseconds.
const AFTERMATH: u32 = 20;
/// Events of each vector between two times when everything must have arrived.
const EVENTS_PER_BURST: u32 = 8;
/// Events of a burst at least: each ends with a wait for everything to arrive.
const BURST_MIN: u32 = 1000;
/// Glances at the table while a vector is masked and quiet.
const DWELL: u32 = 20;

/// What the masker works on; written before it starts.
static MSIX: AtomicPtr<MsiX<Interrupts>> = AtomicPtr::new(core::ptr::null_mut());
static SENDING_BASE: AtomicUsize = AtomicUsize::new(0);
static MASKER_FIRST: AtomicU32 = AtomicU32::new(0);
static LENGTH: AtomicU32 = AtomicU32::new(0);
/// Tells the masker to stop.
static STOP: AtomicBool = AtomicBool::new(false);
/// What the masker did and saw, since the guest started.
static CYCLES: AtomicU32 = AtomicU32::new(0);
static WHILE_MASKED: AtomicU32 = AtomicU32::new(0);

/// Registers of the software function.
pub(crate) struct Registers {
    base: usize,
    /// Total of events asked for.
    pub(crate) doorbell: Register<u32>,
    first: Register<u32>,
    rotation: Register<u32>,
    pace: Register<u32>,
    done: Register<u32>,
}

impl Registers {
    /// The registers of the software function whose BAR 0 is at `base`.
    pub(crate) fn new(base: usize) -> Self {
        // SAFETY: the offsets are those of the data sheet, inside the BAR and aligned.
        let register = |offset| unsafe { Register::at(software::address(base, offset)) };
        Self {
            base,
            doorbell: register(DOORBELL),
            first: register(FIRST),
            rotation: register(ROTATION),
            pace: register(PACE),
            done: register(DONE),
        }
    }

    /// Asks for more events; they go to `length` vectors in turn, from `first` on.
    fn ask(&self, first: u16, length: u16, events: u32) -> u32 {
        let total = self.doorbell.read().wrapping_add(events);
        self.first.write(u32::from(first));
        self.rotation.write(u32::from(length));
        self.doorbell.write(total);
        total
    }

    fn counters(&self, kind: u64, first: u16) -> usize {
        software::address(self.base, of_vector(kind, first))
    }
}

/// Measures the section.
pub(crate) fn run(device: &Device, granted: u16, options: &Options) {
    let registers = Registers::new(device.bar0);
    interrupts::set_handler(accounting::handle);
    let spurious = accounting::spurious();
    let while_masked = WHILE_MASKED.load(Ordering::Acquire);
    let cycles = CYCLES.load(Ordering::Acquire);
    let mut requested = 0u64;
    let mut observed = 0u64;
    let mut events_left = options.events;
    let mut vectors_left = granted;
    registers.pace.write(options.pace);
    timer::start_tick();

    report::send(&Event::SectionStart(Section::Interrupts));
    for first in (0..granted).step_by(usize::from(VECTORS)) {
        let length = vectors_left.min(VECTORS);
        // Each window gets its share, the last one what is left.
        let share = u64::from(events_left).saturating_mul(u64::from(length));
        let share = share.checked_div(u64::from(vectors_left)).unwrap_or(0);
        let events = u32::try_from(share).unwrap_or(events_left);
        events_left = events_left.saturating_sub(events);
        vectors_left = vectors_left.saturating_sub(length);

        accounting::open(
            registers.counters(EVENTS, first),
            registers.counters(SENT, first),
            length,
        );
        requested = requested.wrapping_add(u64::from(length)).wrapping_add(u64::from(events));
        let alone = one_by_one(device, &registers, first, length);
        let loaded = under_load(device, &registers, Window { first, length, events }, options);
        observed = observed.wrapping_add(alone.into()).wrapping_add(loaded.into());
    }
    let spurious = accounting::spurious().wrapping_sub(spurious);
    let while_masked = WHILE_MASKED.load(Ordering::Acquire).wrapping_sub(while_masked);
    let mask_cycles = CYCLES.load(Ordering::Acquire).wrapping_sub(cycles);
    report::send(&Event::SectionEnd(Outcome::Interrupts {
        requested,
        observed,
        spurious: spurious.into(),
        while_masked: while_masked.into(),
        mask_cycles: mask_cycles.into(),
    }));
    println!(
        "guest: {observed} of {requested} events observed, {spurious} spurious interrupts, {while_masked} while masked, {mask_cycles} mask cycles"
    );
    if accounting::spurious() != 0 {
        let [vector, length, sent, taken] = accounting::first_spurious();
        println!(
            "guest: the first spurious interrupt: vector {vector} of a window of {length}, {sent} messages sent, interrupt {taken} of the window"
        );
    }
    timer::stop_tick();
}

/// Vectors that can be told apart, and what they are asked for.
#[derive(Clone, Copy)]
struct Window {
    first: u16,
    length: u16,
    events: u32,
}

/// One event for each vector, the next when its interrupt has come: exactly one each. Returns how many were observed.
fn one_by_one(device: &Device, registers: &Registers, first: u16, length: u16) -> u32 {
    let before = accounting::write_off();
    let mut missing = 0u16;
    for index in 0..length {
        registers.ask(first.saturating_add(index), 1, 1);
        // What does not come is missing in `seen`; after the first few it is not waited for so long.
        let patience = if missing < 3 { QUIET_TIME } else { AFTERMATH };
        if !vcpu::wait_until(patience, || accounting::taken(index) != 0) {
            missing = missing.saturating_add(1);
            if missing == 1 {
                let vector = first.saturating_add(index);
                report::failure(format_args!("{device}: vector {vector}: no interrupt"));
            }
        }
    }
    vcpu::wait_until(AFTERMATH, || false);
    let wrong = (0..length).filter(|&index| accounting::taken(index) > 1).count();
    if wrong != 0 {
        report::failure(format_args!("{device}: {wrong} vectors interrupted twice for one event"));
    }
    accounting::seen().wrapping_sub(before)
}

/// All events, with vectors masked and unmasked throughout. Returns how many were observed.
fn under_load(device: &Device, registers: &Registers, window: Window, options: &Options) -> u32 {
    let Window { first, length, events } = window;
    let masking = options.vcpus > 1;
    if masking {
        MSIX.store(core::ptr::from_ref(device.msix).cast_mut(), Ordering::Relaxed);
        SENDING_BASE.store(registers.counters(SENDING, first), Ordering::Relaxed);
        MASKER_FIRST.store(first.into(), Ordering::Relaxed);
        LENGTH.store(length.into(), Ordering::Relaxed);
        STOP.store(false, Ordering::Release);
        if !vcpu::start(1, masker) {
            report::failure(format_args!("{device}: vCPU 1 is busy, nobody masks"));
        }
    }
    // In bursts: a lost event shows when no later one of its vector follows, so there has to be
    // a last one often.
    let burst = u32::from(length).saturating_mul(EVENTS_PER_BURST).max(BURST_MIN);
    let mut left = events;
    let mut observed = 0u32;
    while left != 0 {
        let events = left.min(burst);
        left = left.saturating_sub(events);
        let before = accounting::write_off();
        let total = registers.ask(first, length, events);
        if let Err(missing) = wait_for_device(registers, total) {
            report::failure(format_args!("{device}: the device stopped {missing} events early"));
            left = 0;
        }
        // The masker unmasks each vector again: what is missing after a while is lost.
        vcpu::wait_until(QUIET_TIME, accounting::is_complete);
        observed = observed.wrapping_add(accounting::seen().wrapping_sub(before));
    }
    if masking {
        STOP.store(true, Ordering::Release);
        if !vcpu::wait_until(PATIENCE.saturating_mul(2), || vcpu::is_idle(1)) {
            report::failure(format_args!("{device}: vCPU 1 does not stop masking"));
        }
    }
    vcpu::wait_until(AFTERMATH, || false);
    observed
}

/// Waits until the device has raised all events, as long as it goes on raising.
fn wait_for_device(registers: &Registers, total: u32) -> Result<(), u32> {
    // DONE may cost an exit: it is looked at once a tick.
    let mut last = registers.done.read();
    let mut moved = interrupts::ticks();
    let mut looked = moved;
    vcpu::wait_until(u32::MAX, || {
        let now = interrupts::ticks();
        if now == looked {
            return false;
        }
        looked = now;
        let done = registers.done.read();
        if done != last {
            last = done;
            moved = now;
        }
        done == total || now.wrapping_sub(moved) > PATIENCE / timer::TICK_MS
    });
    if last == total { Ok(()) } else { Err(total.wrapping_sub(last)) }
}

/// Masks and unmasks vectors in turn, on vCPU 1, until it is told to stop.
fn masker(_index: usize) {
    let msix = MSIX.load(Ordering::Relaxed);
    // SAFETY: `under_load` stored a reference that lives for ever.
    let Some(msix) = (unsafe { msix.as_ref() }) else { return };
    let sending = SENDING_BASE.load(Ordering::Relaxed);
    let [first, length] = [&MASKER_FIRST, &LENGTH]
        .map(|value| u16::try_from(value.load(Ordering::Relaxed)).unwrap_or(0));
    let mut index = 0;
    while !STOP.load(Ordering::Acquire) {
        let vector = VectorIndex(first.wrapping_add(index));
        // SAFETY: SENDING of a vector of the window.
        let sending = unsafe {
            Register::<u32>::at(sending.wrapping_add(usize::from(index).wrapping_mul(4)))
        };
        if let Err(text) = mask_cycle(msix, vector, index, sending) {
            report::failure(format_args!("{} vector {vector}: {text}", msix.function().id()));
            let _ = msix.unmask(vector);
            return;
        }
        CYCLES.fetch_add(1, Ordering::Release);
        index = index.wrapping_add(1);
        if index >= length {
            index = 0;
        }
    }
}

/// Masks one vector, watches it, and unmasks it.
///
/// After `mask` and SENDING = 0 no message of the vector is under way; after a
/// round trip through vCPU 0 at lower priority none waits there either. What is handled between that and a second round trip came while the
/// vector was masked.
fn mask_cycle(
    msix: &MsiX<Interrupts>,
    vector: VectorIndex,
    index: u16,
    sending: Register<u32>,
) -> Result<(), &'static str> {
    msix.mask(vector).map_err(|_| "cannot be masked")?;
    // The device looks at the mask bit after it has written SENDING, this the other way round.
    fence(Ordering::SeqCst);
    if !vcpu::spin_until(PATIENCE, || sending.read() == 0) {
        return Err("the device sends for ever");
    }
    synchronise()?;
    let quiet = accounting::taken(index);
    for _ in 0..DWELL {
        core::hint::spin_loop();
    }
    synchronise()?;
    let came = accounting::taken(index).wrapping_sub(quiet);
    if came != 0 {
        WHILE_MASKED.fetch_add(came, Ordering::Release);
    }
    msix.unmask(vector).map_err(|_| "cannot be unmasked")
}

/// Returns when vCPU 0 has handled every device interrupt that it had pending.
fn synchronise() -> Result<(), &'static str> {
    let before = accounting::syncs();
    interrupts::send(0, accounting::SYNC);
    if vcpu::spin_until(PATIENCE, || accounting::syncs() != before) {
        Ok(())
    } else {
        Err("vCPU 0 does not take interrupts")
    }
}
