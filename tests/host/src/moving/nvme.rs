//! An NVMe drive, a command at a time on each queue, so that each interrupt is accounted for.
//!
//! Registers and commands: NVM Express Base Specification 2.0, sections 3.1, 3.3 and 5; NVM Command
//! Set Specification 1.0, section 3.2.

use std::sync::atomic::{Ordering, fence};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::bar::Bar;
use crate::guest::FREE_RAM;

const CAPABILITIES_HIGH: u64 = 0x04;
const CONFIGURATION: u64 = 0x14;
const STATUS: u64 = 0x1c;
const ADMIN_QUEUE_SIZES: u64 = 0x24;
const ADMIN_SUBMISSION: u64 = 0x28;
const ADMIN_COMPLETION: u64 = 0x30;
const DOORBELLS: u64 = 0x1000;
/// Entries of 64 and of 16 bytes, enabled.
const ENABLE: u32 = 6 << 16 | 4 << 20 | 1;
const READY: u32 = 1;

const CREATE_SUBMISSION: u32 = 0x01;
const CREATE_COMPLETION: u32 = 0x05;
const SET_FEATURES: u32 = 0x09;
const NUMBER_OF_QUEUES: u32 = 0x07;
const READ: u32 = 0x02;
const CONTIGUOUS: u32 = 1;
const INTERRUPTS: u32 = 2;

/// Entries of a queue. A command at a time needs two, but more find an error of the ring.
const ENTRIES: u16 = 8;
const COMMAND_BYTES: u64 = 64;
const COMPLETION_BYTES: u64 = 16;
const PAGE: u64 = 0x1000;
/// Bound of a command.
const PATIENCE: Duration = Duration::from_secs(30);

/// The drive.
pub(crate) struct Nvme {
    queues: Vec<Queue>,
    /// Distance of doorbells, in bytes.
    stride: u64,
}

/// A pair of queues; its vector has the queue's number.
struct Queue {
    number: u16,
    submitted: u16,
    completed: u16,
}

impl Queue {
    const fn new(number: u16) -> Self {
        Self { number, submitted: 0, completed: 0 }
    }

    /// Its pages: of submissions, of completions, of data.
    fn page(&self, page: u64) -> u64 {
        let pages = u64::from(self.number).saturating_mul(3).saturating_add(page);
        FREE_RAM.saturating_add(pages.saturating_mul(PAGE))
    }
}

impl Nvme {
    /// Starts the drive, with so many I/O queues. MSI-X must be enabled.
    ///
    /// # Errors
    /// Where it does not start.
    pub(crate) fn start(bar: &Bar, memory: &GuestMemoryMmap, queues: u16) -> Result<Self> {
        let stride = 4_u64 << (bar.read(CAPABILITIES_HIGH)? & 0xf);
        bar.write(CONFIGURATION, 0)?;
        wait_until("the drive stops", || Ok(bar.read(STATUS)? & READY == 0))?;
        let admin = Queue::new(0);
        let size = u32::from(ENTRIES.saturating_sub(1));
        bar.write(ADMIN_QUEUE_SIZES, size << 16 | size)?;
        for (register, page) in [(ADMIN_SUBMISSION, 0), (ADMIN_COMPLETION, 1)] {
            bar.write(register, u32::try_from(admin.page(page))?)?;
            bar.write(register.saturating_add(4), 0)?;
        }
        bar.write(CONFIGURATION, ENABLE)?;
        wait_until("the drive starts", || Ok(bar.read(STATUS)? & READY != 0))?;
        let mut drive = Self { queues: vec![admin], stride };
        let count = u32::from(queues.saturating_sub(1));
        drive.admin(bar, memory, [SET_FEATURES, NUMBER_OF_QUEUES, count << 16 | count], 0)?;
        for number in 1..=queues {
            let queue = Queue::new(number);
            let [submissions, completions] = [queue.page(0), queue.page(1)];
            let number = u32::from(number);
            let shape = size << 16 | number;
            let kind = number << 16 | INTERRUPTS | CONTIGUOUS;
            drive.admin(bar, memory, [CREATE_COMPLETION, shape, kind], completions)?;
            let kind = number << 16 | CONTIGUOUS;
            drive.admin(bar, memory, [CREATE_SUBMISSION, shape, kind], submissions)?;
            drive.queues.push(queue);
        }
        Ok(drive)
    }

    /// Asks an I/O queue for a block.
    ///
    /// # Errors
    /// Where there is no such queue.
    pub(crate) fn submit(&mut self, bar: &Bar, memory: &GuestMemoryMmap, queue: u16) -> Result<()> {
        let data = self.queue(queue)?.page(2);
        self.send(bar, memory, queue, [READ, 0, 0], 1, data)
    }

    /// Waits until the queue's command is complete, by looking into memory, and makes room for the next.
    ///
    /// # Errors
    /// Where that does not come, or the command has failed.
    pub(crate) fn complete(
        &mut self,
        bar: &Bar,
        memory: &GuestMemoryMmap,
        queue: u16,
    ) -> Result<()> {
        let stride = self.stride;
        let it = self.queue(queue)?;
        let slot = it.completed % ENTRIES;
        // The phase changes with each pass over the ring; in the first it is 1.
        let phase = u32::from((it.completed / ENTRIES).is_multiple_of(2));
        let entry = it.page(1).saturating_add(u64::from(slot).saturating_mul(COMPLETION_BYTES));
        let status = GuestAddress(entry.saturating_add(12));
        let mut word = 0;
        wait_until("a command completes", || {
            word = u32::from_le(memory.read_obj(status)?);
            Ok(word >> 16 & 1 == phase)
        })?;
        fence(Ordering::Acquire);
        ensure!(word >> 17 == 0, "a command of queue {queue} has failed: {word:#x}");
        it.completed = it.completed.wrapping_add(1);
        let head = u32::from(it.completed % ENTRIES);
        bar.write(doorbell(stride, queue, 1), head)
    }

    fn admin(
        &mut self,
        bar: &Bar,
        memory: &GuestMemoryMmap,
        words: [u32; 3],
        page: u64,
    ) -> Result<()> {
        self.send(bar, memory, 0, words, 0, page)?;
        self.complete(bar, memory, 0)
    }

    /// Submits a command: operation, double words 10 and 11, namespace, and the page that it is about.
    fn send(
        &mut self,
        bar: &Bar,
        memory: &GuestMemoryMmap,
        queue: u16,
        [operation, word10, word11]: [u32; 3],
        namespace: u32,
        page: u64,
    ) -> Result<()> {
        let stride = self.stride;
        let it = self.queue(queue)?;
        let slot = it.submitted % ENTRIES;
        let start = it.page(0).saturating_add(u64::from(slot).saturating_mul(COMMAND_BYTES));
        it.submitted = it.submitted.wrapping_add(1);
        let tail = u32::from(it.submitted % ENTRIES);
        let identifier = u32::from(it.submitted) << 16;
        let page = u32::try_from(page)?;
        let command =
            [identifier | operation, namespace, 0, 0, 0, 0, page, 0, 0, 0, word10, word11];
        for index in 0..16_u64 {
            let word = usize::try_from(index)?;
            let word = command.get(word).copied().unwrap_or(0);
            let address = start.saturating_add(index.saturating_mul(4));
            memory.write_obj(word.to_le(), GuestAddress(address))?;
        }
        fence(Ordering::SeqCst);
        bar.write(doorbell(stride, queue, 0), tail)
    }

    fn queue(&mut self, number: u16) -> Result<&mut Queue> {
        match self.queues.get_mut(usize::from(number)) {
            Some(queue) => Ok(queue),
            None => bail!("the drive has no queue {number}"),
        }
    }
}

/// The doorbell of a queue's submissions (0) or completions (1).
fn doorbell(stride: u64, queue: u16, which: u64) -> u64 {
    let index = u64::from(queue).saturating_mul(2).saturating_add(which);
    DOORBELLS.saturating_add(index.saturating_mul(stride))
}

fn wait_until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !holds()? {
        ensure!(start.elapsed() < PATIENCE, "in vain was waited until {what}");
        thread::yield_now();
    }
    Ok(())
}
