//! The interrupt translation service: its tables and its commands (Arm IHI 0069, chapter 5 and 12.19).

mod command;

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::lpi::{INNER_SHAREABLE, TABLE_ALIGNMENT, WRITE_BACK, table};
use super::timer::Stopwatch;
use crate::mmio::Register;
use command::Command;

/// GITS_TRANSLATER: where a message goes.
pub(crate) const TRANSLATER: u64 = 0x0809_0040;

const BASE: usize = 0x0808_0000;
const CONTROL: usize = 0x00;
const TYPER: usize = 0x08;
const COMMANDS: usize = 0x80;
const WRITE_OFFSET: usize = 0x88;
const READ_OFFSET: usize = 0x90;
const TABLES: usize = 0x100;

const CONTROL_ENABLED: u32 = 1;
const CONTROL_QUIESCENT: u32 = 1 << 31;
const TYPER_PHYSICAL_TARGETS: u64 = 1 << 19;
const VALID: u64 = 1 << 63;
const INNER_WRITE_BACK: u64 = WRITE_BACK << 59;
const READ_STALLED: u64 = 1;

/// Bytes of the command queue: one table's alignment, in 4 KiB pages less one in its base register.
const QUEUE_BYTES: usize = TABLE_ALIGNMENT;
/// How long the service may take for what it was told, in milliseconds.
const PATIENCE: u32 = 1000;

/// Guest physical address of the command queue.
static QUEUE: AtomicUsize = AtomicUsize::new(0);
/// The queue has one writer at a time. Interrupt handlers are none.
static BUSY: AtomicBool = AtomicBool::new(false);

/// Gives the service its tables and switches it on. Once, on the boot processor.
pub(crate) fn initialise() -> Result<(), &'static str> {
    // A machine that was reset may have it on.
    control().write(0);
    wait(|| control().read() & CONTROL_QUIESCENT != 0)?;
    if register64(TYPER).read() & TYPER_PHYSICAL_TARGETS != 0 {
        return Err("collections want redistributor addresses");
    }
    for index in 0..8 {
        give_table(register64(TABLES | index << 3))?;
    }
    let queue = table(QUEUE_BYTES)?;
    let pages_less_one = 0xf;
    let base = VALID | INNER_WRITE_BACK | queue.physical() | INNER_SHAREABLE | pages_less_one;
    register64(COMMANDS).write(base);
    register64(WRITE_OFFSET).write(0);
    QUEUE.store(queue.start().addr().get(), Ordering::Release);
    control().write(CONTROL_ENABLED);
    Ok(())
}

/// Makes a collection of a vCPU, with the same number.
pub(crate) fn start(index: usize) -> Result<(), &'static str> {
    let vcpu = vcpu(index);
    execute([Command::map_collection(vcpu, vcpu), Command::synchronise(vcpu)].into_iter())
}

/// Maps events of a device, 0 to `count` - 1: to each, the LPI and the vCPU.
pub(crate) fn map(
    device: u8,
    count: u16,
    events: impl Iterator<Item = (u16, u32, usize)> + Clone,
) -> Result<(), &'static str> {
    let event_bits = count.max(2).next_power_of_two().trailing_zeros();
    let [entry_bytes, ..] = register64(TYPER).read().to_le_bytes();
    let entry_bytes = usize::from(entry_bytes >> 4).saturating_add(1);
    let translations = table(entry_bytes << event_bits)?;
    let map_device = Command::map_device(device, event_bits, translations.physical());
    let map_events = events
        .clone()
        .map(move |(event, lpi, index)| Command::map_event(device, event, lpi, vcpu(index)));
    let synchronise = events.map(|(_, _, index)| Command::synchronise(vcpu(index)));
    execute([map_device].into_iter().chain(map_events).chain(synchronise))
}

/// Raises an event as its message would.
pub(crate) fn raise(device: u8, event: u16) -> Result<(), &'static str> {
    execute([Command::raise(device, event)].into_iter())
}

/// Devices and collections need a table; one of 64 KiB is enough for either.
fn give_table(register: Register<u64>) -> Result<(), &'static str> {
    const KIND: u64 = 7 << 56;
    const DEVICES: u64 = 1 << 56;
    const COLLECTIONS: u64 = 4 << 56;
    const PAGE_64K: u64 = 2 << 8;
    const PAGE_BITS: u64 = 3 << 8;

    if !matches!(register.read() & KIND, DEVICES | COLLECTIONS) {
        return Ok(());
    }
    let address = table(TABLE_ALIGNMENT)?.physical();
    register.write(VALID | INNER_WRITE_BACK | address | INNER_SHAREABLE | PAGE_64K);
    match register.read() & PAGE_BITS {
        PAGE_64K => Ok(()),
        _ => Err("no pages of 64 KiB for tables"),
    }
}

/// Hands commands over, as many at a time as the queue takes, and waits until all have been executed.
fn execute(commands: impl Iterator<Item = Command>) -> Result<(), &'static str> {
    while BUSY.swap(true, Ordering::Acquire) {
        core::hint::spin_loop();
    }
    let result = execute_alone(commands);
    BUSY.store(false, Ordering::Release);
    result
}

fn execute_alone(commands: impl Iterator<Item = Command>) -> Result<(), &'static str> {
    let queue = QUEUE.load(Ordering::Acquire);
    if queue == 0 {
        return Err("no command queue");
    }
    let start = usize::try_from(register64(WRITE_OFFSET).read()).unwrap_or(0);
    let (mut offset, mut handed_over) = (start, start);
    for command in commands {
        for (word, place) in
            command.words().into_iter().zip((queue.wrapping_add(offset)..).step_by(8))
        {
            // SAFETY: inside the queue, where the service does not read yet.
            unsafe { Register::at(place) }.write(word);
        }
        offset = next(offset);
        // A full queue would look like an empty one.
        if next(offset) == handed_over {
            hand_over(offset)?;
            handed_over = offset;
        }
    }
    hand_over(offset)
}

fn hand_over(offset: usize) -> Result<(), &'static str> {
    let offset = u64::try_from(offset).unwrap_or(0);
    register64(WRITE_OFFSET).write(offset);
    let done = register64(READ_OFFSET);
    wait(|| done.read() == offset || done.read() & READ_STALLED != 0)?;
    if done.read() == offset { Ok(()) } else { Err("a command was refused") }
}

fn next(offset: usize) -> usize {
    let next = offset.wrapping_add(Command::BYTES);
    if next >= QUEUE_BYTES { 0 } else { next }
}

fn wait(mut done: impl FnMut() -> bool) -> Result<(), &'static str> {
    let stopwatch = Stopwatch::start();
    while !done() {
        if stopwatch.milliseconds() > PATIENCE {
            return Err("the translation service does not answer");
        }
        core::hint::spin_loop();
    }
    Ok(())
}

fn vcpu(index: usize) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX)
}

fn control() -> Register<u32> {
    // SAFETY: the machine contract has the register there.
    unsafe { Register::at(BASE | CONTROL) }
}

fn register64(offset: usize) -> Register<u64> {
    // SAFETY: as above; the callers' offsets are those of 64-bit registers.
    unsafe { Register::at(BASE | offset) }
}
