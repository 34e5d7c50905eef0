//! The controller: reset, admin commands, creation of queues (NVM Express Base Specification 1.4, sections 3.1, 5 and 7.6).

use pvmsi_guest_runtime::memory::{self, PAGE};
use pvmsi_guest_runtime::mmio::Register;
use pvmsi_guest_runtime::vcpu;

use super::buffer::READ_BYTES;
use super::queue::{self, Command, ENTRIES, QueuePair};

/// The namespace that is read.
pub(crate) const NAMESPACE: u32 = 1;

const CAPABILITIES: usize = 0x00;
const CONFIGURATION: usize = 0x14;
const STATUS: usize = 0x1c;
const ADMIN_SIZES: usize = 0x24;
const ADMIN_SUBMISSIONS: usize = 0x28;
const ADMIN_COMPLETIONS: usize = 0x30;

const ENABLE: u32 = 1;
const READY: u32 = 1;
const FATAL: u32 = 1 << 1;
/// Entry sizes: 64-byte commands, 16-byte completions; pages of 4 KiB.
const ENTRY_SIZES: u32 = 4 << 20 | 6 << 16;

const CREATE_SUBMISSIONS: u8 = 0x01;
const CREATE_COMPLETIONS: u8 = 0x05;
const IDENTIFY: u8 = 0x06;
const SET_FEATURES: u8 = 0x09;
const NUMBER_OF_QUEUES: u32 = 0x07;

/// How long the controller may take to get ready, in milliseconds.
const PATIENCE: u32 = 10_000;

/// A controller whose registers are in the identity map.
pub(crate) struct Controller {
    base: usize,
    /// Bytes between two doorbells.
    stride: usize,
    admin: QueuePair,
}

/// What is read, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Disk {
    /// Bytes of one read.
    pub(crate) read_bytes: u32,
    /// Such reads on the disk.
    pub(crate) reads: u64,
    /// Bytes of a block, as a power of two.
    pub(crate) block_shift: u8,
}

impl Controller {
    /// A controller at `base` that nobody uses. `None` when the RAM is used up.
    pub(crate) fn new(base: usize) -> Option<Self> {
        // SAFETY: the capabilities register inside BAR 0, aligned.
        let capabilities = unsafe { Register::<u64>::at(base.wrapping_add(CAPABILITIES)) };
        let [_, _, _, _, stride, ..] = capabilities.read().to_le_bytes();
        let stride = 4usize << (stride & 0xf);
        Some(Self { base, stride, admin: QueuePair::new(base, stride, 0)? })
    }

    /// Resets the controller and switches it on, with its admin queue.
    pub(crate) fn start(&mut self) -> Result<(), &'static str> {
        self.stop();
        self.admin.reset();
        let (submissions, completions) = self.admin.addresses();
        let size = u32::from(ENTRIES).wrapping_sub(1);
        self.register(ADMIN_SIZES).write(size << 16 | size);
        self.write64(ADMIN_SUBMISSIONS, submissions);
        self.write64(ADMIN_COMPLETIONS, completions);
        self.register(CONFIGURATION).write(ENTRY_SIZES | ENABLE);
        let status = self.register(STATUS);
        if !vcpu::wait_until(PATIENCE, || status.read() & (READY | FATAL) != 0)
            || status.read() & FATAL != 0
        {
            return Err("the controller does not get ready");
        }
        Ok(())
    }

    /// Resets the controller: no queue exists afterwards. A controller that does not answer is left alone.
    pub(crate) fn stop(&self) {
        self.register(CONFIGURATION).write(0);
        let status = self.register(STATUS);
        vcpu::wait_until(PATIENCE, || status.read() & READY == 0);
    }

    /// Asks how large disk and reads are.
    pub(crate) fn identify(&mut self) -> Result<Disk, &'static str> {
        let page = memory::allocate(PAGE).ok_or("no RAM left")?;
        let identify = |namespace, what| Command {
            opcode: IDENTIFY,
            namespace,
            data: page.physical(),
            arguments: [what, 0, 0],
            ..Command::default()
        };
        self.call(identify(0, 1))?;
        let [_, most, ..] = queue::word(page, 76 / 4).read().to_le_bytes();
        // A power of two in pages; 0 is no limit.
        let most = match most {
            0 => READ_BYTES,
            most => PAGE.checked_shl(most.into()).unwrap_or(READ_BYTES),
        };
        self.call(identify(NAMESPACE, 0))?;
        let [low, high] = [0, 1].map(|index| u64::from(queue::word(page, index).read()));
        let [_, _, format, _] = queue::word(page, 24 / 4).read().to_le_bytes();
        let format = queue::word(page, usize::from(format & 0xf).wrapping_add(128 / 4)).read();
        let [_, _, block_shift, _] = format.to_le_bytes();
        let bytes = (high << 32 | low).checked_shl(block_shift.into()).unwrap_or(0);
        let read_bytes = u32::try_from(READ_BYTES.min(most)).unwrap_or(4096);
        let reads = bytes.checked_div(read_bytes.into()).unwrap_or(0);
        if !(9..=12).contains(&block_shift) || reads == 0 {
            return Err("namespace 1 is missing, too small, or has odd blocks");
        }
        Ok(Disk { read_bytes, reads, block_shift })
    }

    /// Asks for so many I/O queue pairs, at least 1; returns how many there may be.
    pub(crate) fn request_queues(&mut self, wanted: u16) -> Result<u16, &'static str> {
        let count = u32::from(wanted).saturating_sub(1);
        let answer = self.call(Command {
            opcode: SET_FEATURES,
            arguments: [NUMBER_OF_QUEUES, count << 16 | count, 0],
            ..Command::default()
        })?;
        let [s0, s1, c0, c1] = answer.to_le_bytes();
        let given = u16::from_le_bytes([s0, s1]).min(u16::from_le_bytes([c0, c1]));
        Ok(wanted.min(given.saturating_add(1)))
    }

    /// Memory and doorbells for I/O queue pair `number`. `None` when the RAM is used up.
    pub(crate) fn queue_pair(&self, number: u16) -> Option<QueuePair> {
        QueuePair::new(self.base, self.stride, number)
    }

    /// Creates the completion queue, with the vector of the pair's number, and the submission queue.
    pub(crate) fn create(&mut self, queue: &mut QueuePair) -> Result<(), &'static str> {
        const CONTIGUOUS: u32 = 1;
        const INTERRUPTS: u32 = 1 << 1;

        queue.reset();
        let number = u32::from(queue.number());
        let (submissions, completions) = queue.addresses();
        let which = u32::from(ENTRIES).wrapping_sub(1) << 16 | number;
        self.call(Command {
            opcode: CREATE_COMPLETIONS,
            data: completions,
            arguments: [which, number << 16 | INTERRUPTS | CONTIGUOUS, 0],
            ..Command::default()
        })?;
        self.call(Command {
            opcode: CREATE_SUBMISSIONS,
            data: submissions,
            arguments: [which, number << 16 | CONTIGUOUS, 0],
            ..Command::default()
        })?;
        Ok(())
    }

    /// Executes one admin command; its completion comes by interrupt too.
    fn call(&mut self, command: Command) -> Result<u32, &'static str> {
        self.admin.submit(0, command);
        loop {
            if !self.admin.wait_for_interrupt() {
                return Err("no interrupt for an admin command");
            }
            if let Some(completion) = self.admin.complete() {
                return match completion.status {
                    0 => Ok(completion.result),
                    _ => Err("an admin command failed"),
                };
            }
        }
    }

    fn register(&self, offset: usize) -> Register<u32> {
        // SAFETY: a controller register inside BAR 0, aligned.
        unsafe { Register::at(self.base.wrapping_add(offset)) }
    }

    /// Two 32-bit writes: what every controller takes.
    fn write64(&self, offset: usize, value: u64) {
        let [b0, b1, b2, b3, b4, b5, b6, b7] = value.to_le_bytes();
        self.register(offset).write(u32::from_le_bytes([b0, b1, b2, b3]));
        self.register(offset | 4).write(u32::from_le_bytes([b4, b5, b6, b7]));
    }
}
