//! Takes MSI-X interrupts the standard way and knows nothing of PV-MSI.
//!
//! It does things in the order in which Linux does them: enables MSI-X with all
//! vectors masked, starts the first software function, and programs and
//! unmasks the vectors last. Then it checks each step: the function has found its
//! MSI-X Enable set; one interrupt for each event, none while a vector is masked, one
//! afterwards, nothing missing under load with masking in between. The run
//! ends with exit status 0 when all is well, else 1 and a line on COM1.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};

use pvmsi_guest_runtime::mmio::Register;
use pvmsi_guest_runtime::msi::{self, Route};
use pvmsi_guest_runtime::software::{address, is_software};
use pvmsi_guest_runtime::{Start, entry, exit, interrupts, park, pci, println, timer, vcpu};
use pvmsi_software::registers::{
    CONTROL, DONE, DOORBELL, EVENTS, FIRST, PACE, ROTATION, START, STARTED,
    STARTED_WITHOUT_INTERRUPTS, of_vector,
};

/// Vectors that are used, at most.
const VECTORS_MAX: u16 = 32;
/// How long an interrupt may take, in milliseconds.
const PATIENCE: u32 = 2000;
/// How long one is waited for that must not come.
const QUIET_TIME: u32 = 30;

const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
const ENTRY_BYTES: usize = 16;

static TAKEN: [AtomicU32; VECTORS_MAX as usize] =
    [const { AtomicU32::new(0) }; VECTORS_MAX as usize];
/// EVENTS of each vector, as its handler saw it last.
static SEEN: [AtomicU32; VECTORS_MAX as usize] =
    [const { AtomicU32::new(0) }; VECTORS_MAX as usize];
/// BAR 0 of the function, at most 4 GiB.
static BASE: AtomicU32 = AtomicU32::new(0);

entry!(main);

fn main(_: &Start, index: usize) -> ! {
    if index != 0 {
        park();
    }
    timer::start_tick();
    match run() {
        Ok(vectors) => {
            println!("plain guest: {vectors} vectors work the standard way");
            exit(0)
        }
        Err(error) => {
            println!("plain guest: {error}");
            exit(1)
        }
    }
}

fn run() -> Result<u16, &'static str> {
    let function = pci::functions().find(is_software).ok_or("no software function on bus 0")?;
    let capability = function.capability(pci::CAPABILITY_MSIX).ok_or("no MSI-X capability")?;
    function.enable();
    let base = function.bar(0).ok_or("BAR 0 is not below 4 GiB")?;
    BASE.store(u32::try_from(base).map_err(|_| "BAR 0 is not below 4 GiB")?, Ordering::Relaxed);
    interrupts::set_handler(handle);

    let control = capability.wrapping_add(2);
    let others = function.read_u16(control) & !(ENABLE | FUNCTION_MASK);
    let vectors = (others & 0x7ff).wrapping_add(1).min(VECTORS_MAX);
    let table = location(function, capability.wrapping_add(4)).ok_or("no vector table")?;
    let pending = location(function, capability.wrapping_add(8)).ok_or("no pending bit array")?;
    msi::prepare(function, vectors, route)?;
    let device = Device { base, table, pending, vectors };
    device.start(STARTED_WITHOUT_INTERRUPTS).map_err(|()| "the function was enabled already")?;
    function.write_u16(control, others | ENABLE | FUNCTION_MASK);
    for vector in 0..vectors {
        device.mask(vector, true);
    }
    function.write_u16(control, others | ENABLE);
    device.start(STARTED).map_err(|()| "MSI-X is not enabled in the function itself")?;
    for vector in 0..vectors {
        device.program(vector);
    }
    device.one_by_one()?;
    device.masked()?;
    device.under_load()?;
    function.write_u16(control, others);
    device.disabled()?;
    device.start(STARTED_WITHOUT_INTERRUPTS).map_err(|()| "the function stays enabled")?;
    Ok(vectors)
}

fn handle(number: u8) {
    let Some(vector) = number.checked_sub(interrupts::FIRST_DEVICE) else { return };
    let index = usize::from(vector);
    let (Some(taken), Some(seen)) = (TAKEN.get(index), SEEN.get(index)) else { return };
    taken.fetch_add(1, Ordering::Relaxed);
    let base = usize::try_from(BASE.load(Ordering::Relaxed)).unwrap_or(0);
    let events = register(address(base, of_vector(EVENTS, vector.into())));
    seen.store(events.read(), Ordering::Release);
}

/// Each vector is an interrupt of its own of vCPU 0.
fn route(vector: u16) -> Route {
    let step = u8::try_from(vector).unwrap_or(0);
    Route { vcpu: 0, interrupt: interrupts::FIRST_DEVICE.saturating_add(step) }
}

fn taken(vector: u16) -> u32 {
    TAKEN.get(usize::from(vector)).map_or(0, |taken| taken.load(Ordering::Acquire))
}

fn seen(vector: u16) -> u32 {
    SEEN.get(usize::from(vector)).map_or(0, |seen| seen.load(Ordering::Acquire))
}

/// The software function.
struct Device {
    base: usize,
    table: usize,
    pending: usize,
    vectors: u16,
}

impl Device {
    /// Writes an entry and unmasks it.
    fn program(&self, vector: u16) {
        let (address, data) = msi::message(vector, route(vector));
        let [a0, a1, a2, a3, a4, a5, a6, a7] = address.to_le_bytes();
        self.mask(vector, true);
        self.entry(vector, 0).write(u32::from_le_bytes([a0, a1, a2, a3]));
        self.entry(vector, 4).write(u32::from_le_bytes([a4, a5, a6, a7]));
        self.entry(vector, 8).write(data);
        self.mask(vector, false);
    }

    /// Sets or clears the mask bit; the read makes sure that it has arrived.
    fn mask(&self, vector: u16, masked: bool) {
        let control = self.entry(vector, 12);
        control.write(u32::from(masked));
        control.read();
    }

    fn entry(&self, vector: u16, offset: usize) -> Register<u32> {
        let entry = usize::from(vector).wrapping_mul(ENTRY_BYTES);
        register(self.table.wrapping_add(entry).wrapping_add(offset))
    }

    fn is_pending(&self, vector: u16) -> bool {
        let word = register(self.pending.wrapping_add(usize::from(vector / 32).wrapping_mul(4)));
        word.read() & (1 << (vector & 31)) != 0
    }

    fn events(&self, vector: u16) -> u32 {
        register(address(self.base, of_vector(EVENTS, vector))).read()
    }

    /// Starts the device; what it must have found.
    fn start(&self, found: u32) -> Result<(), ()> {
        let control = register(address(self.base, CONTROL));
        control.write(START);
        let started = vcpu::wait_until(PATIENCE, || control.read() != START);
        if started && control.read() == found { Ok(()) } else { Err(()) }
    }

    /// Asks for events and waits until the device has raised them.
    fn raise(&self, first: u16, rotation: u16, events: u32) -> Result<(), &'static str> {
        let [doorbell, first_register, rotation_register, pace, done] =
            [DOORBELL, FIRST, ROTATION, PACE, DONE]
                .map(|offset| register(address(self.base, offset)));
        let total = doorbell.read().wrapping_add(events);
        first_register.write(first.into());
        rotation_register.write(rotation.into());
        pace.write(20_000);
        doorbell.write(total);
        let raised = vcpu::wait_until(PATIENCE.saturating_mul(5), || done.read() == total);
        if raised { Ok(()) } else { Err("the device does not raise what it was asked for") }
    }

    fn one_by_one(&self) -> Result<(), &'static str> {
        for vector in 0..self.vectors {
            self.raise(vector, 1, 1)?;
            if !vcpu::wait_until(PATIENCE, || taken(vector) != 0) {
                return Err("an event without an interrupt");
            }
        }
        vcpu::wait_until(QUIET_TIME, || false);
        match (0..self.vectors).all(|vector| taken(vector) == 1) {
            true => Ok(()),
            false => Err("two interrupts for one event"),
        }
    }

    fn masked(&self) -> Result<(), &'static str> {
        let vector = self.vectors.wrapping_sub(1);
        self.mask(vector, true);
        self.raise(vector, 1, 3)?;
        if vcpu::wait_until(QUIET_TIME, || taken(vector) != 1) {
            return Err("an interrupt of a masked vector");
        }
        if !self.is_pending(vector) {
            return Err("no pending bit of a masked vector that had an event");
        }
        self.mask(vector, false);
        if !vcpu::wait_until(PATIENCE, || taken(vector) != 1) {
            return Err("a pending event without an interrupt after unmasking");
        }
        vcpu::wait_until(QUIET_TIME, || false);
        if taken(vector) != 2 {
            return Err("more than one interrupt for one pending bit");
        }
        if self.is_pending(vector) {
            return Err("a pending bit after its interrupt");
        }
        Ok(())
    }

    fn under_load(&self) -> Result<(), &'static str> {
        for round in 0..20u16 {
            let vector = round.checked_rem(self.vectors).unwrap_or(0);
            self.mask(vector, true);
            self.raise(0, self.vectors, 100)?;
            self.mask(vector, false);
        }
        let complete = || (0..self.vectors).all(|vector| seen(vector) == self.events(vector));
        if vcpu::wait_until(PATIENCE, complete) { Ok(()) } else { Err("an event was lost") }
    }

    fn disabled(&self) -> Result<(), &'static str> {
        let before = taken(0);
        self.raise(0, 1, 1)?;
        match vcpu::wait_until(QUIET_TIME, || taken(0) != before) {
            true => Err("an interrupt with MSI-X disabled"),
            false => Ok(()),
        }
    }
}

fn location(function: pci::Function, offset: u16) -> Option<usize> {
    let value = function.read_u32(offset);
    let bar = u8::try_from(value & 7).ok()?;
    function.bar(bar)?.checked_add(usize::try_from(value & !7).ok()?)
}

fn register(address: usize) -> Register<u32> {
    // SAFETY: registers, table, pending bits and counters of the function, aligned.
    unsafe { Register::at(address) }
}
