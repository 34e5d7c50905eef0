//! A small NVMe driver: reads a disk by interrupts only, with a queue pair for each vCPU (NVM Express Base Specification 1.4).
//!
//! MSI-X is enabled when it comes, and all vectors are masked. It creates each queue first and
//! unmasks the queue's vector last, as Linux does: a controller looks at its MSI-X Enable
//! when a queue is created, and a queue that finds it clear has no interrupts.

mod buffer;
mod controller;
mod queue;

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use pvmsi_guest::VectorIndex;
use pvmsi_guest_report::{Event, Outcome, Section};
use pvmsi_guest_runtime::{VCPUS_MAX, interrupts, println, report, timer, vcpu};

use crate::device::Device;
use crate::options::Options;
use buffer::{Buffer, DEPTH};
use controller::{Controller, Disk, NAMESPACE};
use queue::{Command, QueuePair};

const READ: u8 = 0x02;
/// How long the last interrupts may take, in milliseconds.
const AFTERMATH: u32 = 20;

/// One vCPU's share of the work.
struct Worker {
    queue: UnsafeCell<Option<QueuePair>>,
    buffers: UnsafeCell<Option<[Buffer; DEPTH]>>,
}

// SAFETY: a worker is used by vCPU 0 while its vCPU is idle, and by its vCPU otherwise; `vcpu::start` and `vcpu::is_idle` hand it over.
unsafe impl Sync for Worker {}

static WORKERS: [Worker; VCPUS_MAX] =
    [const { Worker { queue: UnsafeCell::new(None), buffers: UnsafeCell::new(None) } }; VCPUS_MAX];

/// What all workers read, and what they found; written while they are idle.
static QUEUES: AtomicU32 = AtomicU32::new(0);
static BLOCK_SHIFT: AtomicU32 = AtomicU32::new(0);
static READ_SIZE: AtomicU32 = AtomicU32::new(0);
static READS: AtomicU64 = AtomicU64::new(0);
static READS_ON_DISK: AtomicU64 = AtomicU64::new(0);
static COMMANDS: AtomicU64 = AtomicU64::new(0);
static BYTES_READ: AtomicU64 = AtomicU64::new(0);
static BYTES_WRONG: AtomicU64 = AtomicU64::new(0);
static FAILED: AtomicBool = AtomicBool::new(false);

/// Brings the controller up and measures the section. No vector has been unmasked before.
pub(crate) fn run(device: &Device, granted: u16, options: &Options) {
    if device.bar0 == 0 {
        report::failure(format_args!("{device}: registers are not below 4 GiB"));
        return;
    }
    interrupts::set_handler(queue::handle);
    timer::start_tick();
    match Controller::new(device.bar0) {
        Some(mut controller) => {
            let result = prepare(device, &mut controller, granted, options);
            if let Err(error) = result.and_then(|()| read_disk(options)) {
                report::failure(format_args!("{device}: {error}"));
            }
            controller.stop();
            // An interrupt whose completion was found with an earlier one's may still wait for
            // this vCPU. Whoever switches interrupts on next would take it for one of its own
            // function: the numbers are the same.
            vcpu::wait_until(AFTERMATH, || false);
        }
        None => report::failure(format_args!("{device}: no RAM left for the admin queue")),
    }
    timer::stop_tick();
}

/// Brings the controller up, with one queue pair for each vCPU, each with its own vector, as far as queues and vectors go.
fn prepare(
    device: &Device,
    controller: &mut Controller,
    granted: u16,
    options: &Options,
) -> Result<(), &'static str> {
    let unmask = |vector| {
        let unmasked = device.msix.unmask(VectorIndex(vector));
        unmasked.map_err(|_| "the vector of a queue cannot be unmasked")
    };
    controller.start()?;
    unmask(0)?;
    let Disk { read_bytes, reads, block_shift } = controller.identify()?;
    READ_SIZE.store(read_bytes, Ordering::Relaxed);
    READS_ON_DISK.store(reads, Ordering::Relaxed);
    BLOCK_SHIFT.store(block_shift.into(), Ordering::Relaxed);
    let vcpus = u16::try_from(options.vcpus.min(VCPUS_MAX)).unwrap_or(1);
    let wanted = vcpus.min(granted.saturating_sub(1));
    if wanted == 0 {
        return Err("one vector is not enough for two queues");
    }
    let queues = controller.request_queues(wanted)?;
    if queues < vcpus {
        println!("guest: NVMe: {queues} I/O queues for {vcpus} vCPUs");
    }
    for (number, worker) in (1..=queues).zip(&WORKERS) {
        // SAFETY: the worker's vCPU is idle (see `Worker`).
        let slot = unsafe { &mut *worker.queue.get() };
        // Another controller may have had the one before.
        let queue = controller.queue_pair(number).ok_or("no RAM left for queues")?;
        controller.create(slot.insert(queue))?;
        unmask(number)?;
        // SAFETY: as above.
        let buffers = unsafe { &mut *worker.buffers.get() };
        if buffers.is_none() {
            *buffers = Buffer::several();
        }
        if buffers.is_none() {
            return Err("no RAM left for data");
        }
    }
    QUEUES.store(queues.into(), Ordering::Relaxed);
    Ok(())
}

fn read_disk(options: &Options) -> Result<(), &'static str> {
    let queues = QUEUES.load(Ordering::Relaxed);
    let read_size = u64::from(READ_SIZE.load(Ordering::Relaxed));
    let bytes = u64::from(options.io_mib) << 20;
    READS.store(bytes.div_ceil(read_size.max(1)), Ordering::Relaxed);
    COMMANDS.store(0, Ordering::Relaxed);
    BYTES_READ.store(0, Ordering::Relaxed);
    BYTES_WRONG.store(0, Ordering::Relaxed);
    FAILED.store(false, Ordering::Release);
    let workers = || (0..VCPUS_MAX).zip(0..queues).map(|(index, _)| index);
    let interrupts = || {
        let numbers = (1..=u16::MAX).zip(workers());
        numbers.fold(0u64, |sum, (number, _)| sum.wrapping_add(queue::taken(number).into()))
    };
    let interrupts_before = interrupts();

    report::send(&Event::SectionStart(Section::Io));
    let mut started = true;
    for index in workers().skip(1) {
        started &= vcpu::start(index, work);
    }
    work(0);
    // Each worker gives up by itself when its queue is stuck.
    while !workers().skip(1).all(vcpu::is_idle) {
        vcpu::wait_until(timer::TICK_MS, || false);
    }
    let bytes_verified = BYTES_READ.load(Ordering::Acquire);
    let bytes_wrong = BYTES_WRONG.load(Ordering::Acquire);
    let interrupts = interrupts().wrapping_sub(interrupts_before);
    report::send(&Event::SectionEnd(Outcome::Io {
        commands: COMMANDS.load(Ordering::Acquire),
        blocks: bytes_verified >> BLOCK_SHIFT.load(Ordering::Relaxed),
        bytes_verified,
        bytes_wrong,
        interrupts,
        queues: u16::try_from(queues).unwrap_or(0),
    }));
    println!(
        "guest: {bytes_verified} bytes read by {interrupts} interrupts of {queues} queues, {bytes_wrong} wrong"
    );
    if !started {
        return Err("a vCPU was busy and did not read");
    }
    if FAILED.load(Ordering::Acquire) { Err("not everything was read") } else { Ok(()) }
}

/// Reads one queue's share of the disk and verifies it, on the queue's vCPU.
fn work(index: usize) {
    if index != 0 {
        timer::start_tick();
    }
    let Some(worker) = WORKERS.get(index) else { return };
    // SAFETY: this vCPU has been told to work, so the worker is its own (see `Worker`).
    let queue = unsafe { &mut *worker.queue.get() };
    // SAFETY: as above.
    let buffers = unsafe { &*worker.buffers.get() };
    let result = match (queue, buffers) {
        (Some(queue), Some(buffers)) => read_share(index, queue, buffers),
        _ => Err(Stuck::NotReady),
    };
    if let Err(stuck) = result {
        FAILED.store(true, Ordering::Release);
        report::failure(format_args!("NVMe on vCPU {index}: {stuck:?}"));
    }
    if index != 0 {
        timer::stop_tick();
    }
}

/// Why a queue's share could not be read.
#[derive(Debug)]
#[allow(dead_code, reason = "printed")]
enum Stuck {
    /// Queue or buffers are missing.
    NotReady,
    /// No completion interrupt came.
    NoInterrupt { under_way: u16 },
    /// A read failed.
    Status(u16),
    /// A completion names no read.
    Id(u16),
}

fn read_share(index: usize, queue: &mut QueuePair, buffers: &[Buffer; DEPTH]) -> Result<(), Stuck> {
    let read_size = u64::from(READ_SIZE.load(Ordering::Relaxed));
    let shift = BLOCK_SHIFT.load(Ordering::Relaxed);
    let on_disk = READS_ON_DISK.load(Ordering::Relaxed).max(1);
    let queues = usize::try_from(QUEUES.load(Ordering::Relaxed)).unwrap_or(1);
    let reads = usize::try_from(READS.load(Ordering::Relaxed)).unwrap_or(0);
    let mut todo = (index..reads).step_by(queues.max(1));
    let blocks = u32::try_from(read_size >> shift).unwrap_or(1);
    let mut offsets = [0u64; DEPTH];
    let mut under_way = 0u16;
    let start = |queue: &mut QueuePair, id: u16, buffer: &Buffer, number: usize| {
        let number = u64::try_from(number).unwrap_or(0).checked_rem(on_disk).unwrap_or(0);
        let offset = number.wrapping_mul(read_size);
        let [b0, b1, b2, b3, b4, b5, b6, b7] = (offset >> shift).to_le_bytes();
        let low = u32::from_le_bytes([b0, b1, b2, b3]);
        let high = u32::from_le_bytes([b4, b5, b6, b7]);
        queue.submit(
            id,
            Command {
                opcode: READ,
                namespace: NAMESPACE,
                data: buffer.data.physical(),
                more_data: buffer.second(read_size),
                arguments: [low, high, blocks.wrapping_sub(1)],
            },
        );
        COMMANDS.fetch_add(1, Ordering::AcqRel);
        offset
    };
    for ((id, buffer), slot) in (0..).zip(buffers).zip(&mut offsets) {
        if let Some(number) = todo.next() {
            *slot = start(queue, id, buffer, number);
            under_way = under_way.wrapping_add(1);
        }
    }
    while under_way != 0 {
        if !queue.wait_for_interrupt() {
            return Err(Stuck::NoInterrupt { under_way });
        }
        // Only what this interrupt has announced: new reads start afterwards, and wait for theirs.
        let mut completions = [None; DEPTH];
        for slot in &mut completions {
            *slot = queue.complete();
        }
        for completion in completions.into_iter().flatten() {
            under_way = under_way.wrapping_sub(1);
            if completion.status != 0 {
                return Err(Stuck::Status(completion.status));
            }
            let id = usize::from(completion.id);
            let (Some(buffer), Some(slot)) = (buffers.get(id), offsets.get_mut(id)) else {
                return Err(Stuck::Id(completion.id));
            };
            let wrong = buffer.wrong_bytes(*slot, read_size);
            BYTES_READ.fetch_add(read_size, Ordering::AcqRel);
            BYTES_WRONG.fetch_add(wrong, Ordering::AcqRel);
            if let Some(number) = todo.next() {
                *slot = start(queue, completion.id, buffer, number);
                under_way = under_way.wrapping_add(1);
            }
        }
    }
    Ok(())
}
