//! A pair of NVMe queues whose completions are looked at only after an interrupt (NVM Express Base Specification 1.4, section 4).

use core::sync::atomic::{AtomicU32, Ordering, fence};

use pvmsi_guest_runtime::mmio::Register;
use pvmsi_guest_runtime::{VCPUS_MAX, interrupts, memory, vcpu};

/// Entries of each queue.
pub(crate) const ENTRIES: u16 = 32;

const DOORBELLS: usize = 0x1000;
const COMMAND_BYTES: usize = 64;
const COMPLETION_BYTES: usize = 16;
/// How long a command may take, in milliseconds.
const PATIENCE: u32 = 10_000;

/// Interrupts taken of each vector: the admin queue's, then those of the I/O queues.
static TAKEN: [AtomicU32; VCPUS_MAX + 1] = [const { AtomicU32::new(0) }; VCPUS_MAX + 1];

/// The interrupt handler.
pub(crate) fn handle(number: u8) {
    let slot = number
        .checked_sub(interrupts::FIRST_DEVICE)
        .and_then(|index| TAKEN.get(usize::from(index)));
    if let Some(taken) = slot {
        taken.fetch_add(1, Ordering::Release);
    }
}

/// Interrupts taken for a queue since the guest started, modulo 2^32.
pub(crate) fn taken(queue: u16) -> u32 {
    TAKEN.get(usize::from(queue)).map_or(0, |taken| taken.load(Ordering::Acquire))
}

/// A command, as 16 double words.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Command {
    /// The opcode, in bits 7..0 of double word 0.
    pub(crate) opcode: u8,
    /// The namespace.
    pub(crate) namespace: u32,
    /// PRP entry 1: the first page of data.
    pub(crate) data: u64,
    /// PRP entry 2: the second page, or the list of the rest.
    pub(crate) more_data: u64,
    /// Command double words 10 to 12.
    pub(crate) arguments: [u32; 3],
}

/// A completion.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    /// The number that [`QueuePair::submit`] was given.
    pub(crate) id: u16,
    /// Command specific.
    pub(crate) result: u32,
    /// Status code and type; 0 is success.
    pub(crate) status: u16,
}

/// A submission queue and the completion queue that belongs to it. Used by one vCPU.
#[derive(Debug)]
pub(crate) struct QueuePair {
    number: u16,
    submissions: memory::Area,
    completions: memory::Area,
    submission_doorbell: Register<u32>,
    completion_doorbell: Register<u32>,
    tail: u16,
    head: u16,
    phase: bool,
    /// Interrupts whose completions have been looked for.
    noticed: u32,
}

impl QueuePair {
    /// Queue number `number` of the controller at `base`, empty. `None` when the RAM is used up.
    pub(crate) fn new(base: usize, stride: usize, number: u16) -> Option<Self> {
        let doorbell = |index: usize| {
            let offset = stride.wrapping_mul(index).wrapping_add(DOORBELLS);
            // SAFETY: the doorbells of a queue that the controller has; aligned.
            unsafe { Register::at(base.wrapping_add(offset)) }
        };
        let index = usize::from(number).wrapping_mul(2);
        Some(Self {
            number,
            submissions: memory::allocate(usize::from(ENTRIES).wrapping_mul(COMMAND_BYTES))?,
            completions: memory::allocate(usize::from(ENTRIES).wrapping_mul(COMPLETION_BYTES))?,
            submission_doorbell: doorbell(index),
            completion_doorbell: doorbell(index.wrapping_add(1)),
            tail: 0,
            head: 0,
            phase: true,
            noticed: taken(number),
        })
    }

    /// The queue's number.
    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    /// Guest physical addresses: submissions, completions.
    pub(crate) fn addresses(&self) -> (u64, u64) {
        (self.submissions.physical(), self.completions.physical())
    }

    /// Forgets everything: the controller was reset.
    pub(crate) fn reset(&mut self) {
        (self.tail, self.head, self.phase) = (0, 0, true);
        self.noticed = taken(self.number);
        for (area, entry) in
            [(self.submissions, COMMAND_BYTES), (self.completions, COMPLETION_BYTES)]
        {
            let words = usize::from(ENTRIES).wrapping_mul(entry) / 4;
            for index in 0..words {
                word(area, index).write(0);
            }
        }
    }

    /// Hands a command over. At most [`ENTRIES`] - 1 may be under way.
    pub(crate) fn submit(&mut self, id: u16, command: Command) {
        let halves = |value: u64| {
            let [b0, b1, b2, b3, b4, b5, b6, b7] = value.to_le_bytes();
            [u32::from_le_bytes([b0, b1, b2, b3]), u32::from_le_bytes([b4, b5, b6, b7])]
        };
        let [data_low, data_high] = halves(command.data);
        let [more_low, more_high] = halves(command.more_data);
        let [argument10, argument11, argument12] = command.arguments;
        let words = [
            u32::from(id) << 16 | u32::from(command.opcode),
            command.namespace,
            0,
            0,
            0,
            0,
            data_low,
            data_high,
            more_low,
            more_high,
            argument10,
            argument11,
            argument12,
            0,
            0,
            0,
        ];
        let first = usize::from(self.tail).wrapping_mul(COMMAND_BYTES / 4);
        for (index, value) in (first..).zip(words) {
            word(self.submissions, index).write(value);
        }
        self.tail = next(self.tail);
        fence(Ordering::SeqCst);
        self.submission_doorbell.write(self.tail.into());
    }

    /// Sleeps until there is an interrupt that has not been looked after. False when none comes.
    pub(crate) fn wait_for_interrupt(&mut self) -> bool {
        let (number, noticed) = (self.number, self.noticed);
        let came = vcpu::wait_until(PATIENCE, || taken(number) != noticed);
        self.noticed = taken(number);
        came
    }

    /// Takes the next completion out of the queue. Only after [`wait_for_interrupt`](Self::wait_for_interrupt), until there is none.
    pub(crate) fn complete(&mut self) -> Option<Completion> {
        let first = usize::from(self.head).wrapping_mul(COMPLETION_BYTES / 4);
        let last = word(self.completions, first.wrapping_add(3)).read();
        if (last & 1 << 16 != 0) != self.phase {
            return None;
        }
        fence(Ordering::SeqCst);
        let result = word(self.completions, first).read();
        let [id0, id1, status0, status1] = last.to_le_bytes();
        self.head = next(self.head);
        if self.head == 0 {
            self.phase = !self.phase;
        }
        self.completion_doorbell.write(self.head.into());
        Some(Completion {
            id: u16::from_le_bytes([id0, id1]),
            result,
            status: u16::from_le_bytes([status0, status1]) >> 1,
        })
    }
}

fn next(index: u16) -> u16 {
    let next = index.wrapping_add(1);
    if next == ENTRIES { 0 } else { next }
}

/// A 32-bit word of memory that the controller shares.
pub(crate) fn word(area: memory::Area, index: usize) -> Register<u32> {
    let offset = index.wrapping_mul(4).checked_rem(area.bytes()).unwrap_or(0);
    // SAFETY: inside an area that only the driver and the controller use; never a reference to it.
    unsafe { Register::at(area.start().addr().get().wrapping_add(offset)) }
}
