//! The host's strings to `pvmsi-puppet`: vCPUs of a guest that do what a test says.
//!
//! The mailbox is described in `tests/guests/puppet/src/main.rs`. Every wait
//! has an end: a guest that does not answer is an error, never a hang.

use std::fmt;
use std::sync::atomic::{Ordering, fence};
use std::thread::sleep;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};

const PAGE: u64 = 0x8000;
const SLOT_BYTES: u64 = 256;
const MAGIC: u32 = u32::from_le_bytes(*b"PUPT");
const COUNTERS: u64 = PAGE + 8;

const SEQUENCE: u64 = 0;
const DONE: u64 = 4;
const OPCODE: u64 = 8;
const READY: u64 = 12;
const ARGUMENTS: u64 = 16;
const RESULTS: u64 = 48;
const STOP: u64 = 80;
const ROUNDS: u64 = 84;

/// How long a vCPU may take for a command, unless told otherwise: KVM waits for all vCPUs when memory slots change, which takes seconds on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a command has no result.
#[derive(Debug)]
pub enum PuppetError {
    /// The guest did not do it in time.
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
    },
    /// The guest knows no such command, or not with this width.
    Refused {
        /// The command.
        what: String,
    },
    /// The mailbox is not in the guest's memory.
    Memory(GuestMemoryError),
}

impl fmt::Display for PuppetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout { what, waited } => {
                write!(f, "the puppet guest did not answer within {waited:?}: {what}")
            }
            Self::Refused { what } => write!(f, "the puppet guest refuses: {what}"),
            Self::Memory(error) => write!(f, "the puppet's mailbox is out of reach: {error}"),
        }
    }
}

impl std::error::Error for PuppetError {}

impl From<GuestMemoryError> for PuppetError {
    fn from(error: GuestMemoryError) -> Self {
        Self::Memory(error)
    }
}

/// Bytes that one access moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 8 bits.
    Byte = 1,
    /// 16 bits.
    Word = 2,
    /// 32 bits.
    Double = 4,
    /// 64 bits; not for ports.
    Quad = 8,
}

/// What a vCPU can be told. The numbers are the guest's.
#[derive(Clone, Copy, Debug)]
enum Command {
    Load { address: u64, width: Width },
    Store { address: u64, width: Width, value: u64 },
    PortIn { port: u16, width: Width },
    PortOut { port: u16, width: Width, value: u32 },
    Cpuid { leaf: u32, subleaf: u32 },
    ClearCounters,
    InterruptsOn,
    InterruptsOff,
    StoreLoop { address: u64, width: Width, value: u64, times: u64 },
    MaskLoop { address: u64 },
    WatchedMaskLoop { address: u64, sending: u64, interrupt: u8 },
    CallLoop { bytes: u64, buffer: u64, doorbell: u64, times: u64 },
}

/// A running puppet guest. Cheap to clone; each vCPU takes one command at a time, different vCPUs may be commanded from different threads.
#[derive(Clone, Debug)]
pub struct Puppet<M> {
    memory: M,
}

/// A command that is running; see [`Puppet::start_mask_loop`] and [`Puppet::start_halt`].
#[derive(Debug)]
#[must_use = "the vCPU takes no other command until this one is finished"]
pub struct Running<'p, M> {
    puppet: &'p Puppet<M>,
    vcpu: u64,
    sequence: u32,
    command: Command,
}

impl<M: GuestMemory + Clone> Puppet<M> {
    /// Forgets a puppet that ran in this memory before. Call it before a guest is started, or started again.
    ///
    /// # Errors
    /// [`PuppetError::Memory`] when the page is not RAM.
    pub fn prepare(memory: &M) -> Result<(), PuppetError> {
        Ok(memory.write_slice(&[0; 4096], GuestAddress(PAGE))?)
    }

    /// Waits until the guest runs and its first `vcpus` vCPUs take commands.
    ///
    /// # Errors
    /// [`PuppetError::Timeout`] when they do not within a minute.
    pub fn attach(memory: M, vcpus: u64) -> Result<Self, PuppetError> {
        let puppet = Self { memory };
        puppet.wait(
            PATIENCE,
            || "start of the guest".into(),
            || Ok(puppet.word(PAGE)? == MAGIC),
        )?;
        for vcpu in 0..vcpus {
            let ready = field(vcpu, READY);
            puppet.wait(
                PATIENCE,
                || format!("start of vCPU {vcpu}"),
                || Ok(puppet.word(ready)? == 1),
            )?;
        }
        Ok(puppet)
    }

    /// Loads from a guest physical address.
    ///
    /// # Errors
    /// [`PuppetError`]; so for all commands.
    pub fn load(&self, vcpu: u64, address: u64, width: Width) -> Result<u64, PuppetError> {
        Ok(self.execute(vcpu, Command::Load { address, width })?[0])
    }

    /// Loads 32 bits.
    pub fn load_u32(&self, vcpu: u64, address: u64) -> Result<u32, PuppetError> {
        let value = self.load(vcpu, address, Width::Double)?;
        Ok(u32::try_from(value).unwrap_or(u32::MAX))
    }

    /// Stores to a guest physical address.
    pub fn store(
        &self,
        vcpu: u64,
        address: u64,
        width: Width,
        value: u64,
    ) -> Result<(), PuppetError> {
        self.execute(vcpu, Command::Store { address, width, value }).map(drop)
    }

    /// Stores 32 bits.
    pub fn store_u32(&self, vcpu: u64, address: u64, value: u32) -> Result<(), PuppetError> {
        self.store(vcpu, address, Width::Double, value.into())
    }

    /// Stores the same value again and again.
    pub fn store_loop(
        &self,
        vcpu: u64,
        address: u64,
        width: Width,
        value: u64,
        times: u64,
    ) -> Result<(), PuppetError> {
        self.execute(vcpu, Command::StoreLoop { address, width, value, times }).map(drop)
    }

    /// Reads an I/O port.
    pub fn port_in(&self, vcpu: u64, port: u16, width: Width) -> Result<u32, PuppetError> {
        let value = self.execute(vcpu, Command::PortIn { port, width })?[0];
        Ok(u32::try_from(value).unwrap_or(u32::MAX))
    }

    /// Writes an I/O port.
    pub fn port_out(
        &self,
        vcpu: u64,
        port: u16,
        width: Width,
        value: u32,
    ) -> Result<(), PuppetError> {
        self.execute(vcpu, Command::PortOut { port, width, value }).map(drop)
    }

    /// EAX, EBX, ECX and EDX of a CPUID leaf.
    pub fn cpuid(&self, vcpu: u64, leaf: u32, subleaf: u32) -> Result<[u32; 4], PuppetError> {
        let results = self.execute(vcpu, Command::Cpuid { leaf, subleaf })?;
        Ok(results.map(|value| u32::try_from(value).unwrap_or(u32::MAX)))
    }

    /// Switches the vCPU's interrupts on or off; they start off.
    pub fn interrupts(&self, vcpu: u64, on: bool) -> Result<(), PuppetError> {
        let command = if on { Command::InterruptsOn } else { Command::InterruptsOff };
        self.execute(vcpu, command).map(drop)
    }

    /// How many interrupts of an interrupt vector the vCPU has handled since the last [`clear_counters`](Self::clear_counters).
    pub fn count(&self, vcpu: u64, vector: u8) -> Result<u32, PuppetError> {
        let counters: u64 = self.memory.read_obj(GuestAddress(COUNTERS))?;
        let index = vcpu.wrapping_mul(256).wrapping_add(vector.into());
        self.word(counters.wrapping_add(index.wrapping_mul(4)))
    }

    /// The interrupts of all 256 vectors together.
    pub fn count_all(&self, vcpu: u64) -> Result<u64, PuppetError> {
        (0..=255).map(|vector| Ok(u64::from(self.count(vcpu, vector)?))).sum()
    }

    /// Waits until the vCPU has handled `count` interrupts of the vector or more.
    pub fn wait_count(
        &self,
        vcpu: u64,
        vector: u8,
        count: u32,
        patience: Duration,
    ) -> Result<(), PuppetError> {
        let what = || {
            let seen = self.count(vcpu, vector);
            format!("{count} interrupts {vector:#x} on vCPU {vcpu}, seen: {seen:?}")
        };
        self.wait(patience, what, || Ok(self.count(vcpu, vector)? >= count))
    }

    /// Starts all counters of a vCPU from 0.
    pub fn clear_counters(&self, vcpu: u64) -> Result<(), PuppetError> {
        self.execute(vcpu, Command::ClearCounters).map(drop)
    }

    /// Lets the vCPU set and clear the mask bit at `address` (a vector control) until it is stopped.
    pub fn start_mask_loop(&self, vcpu: u64, address: u64) -> Result<Running<'_, M>, PuppetError> {
        self.begin(vcpu, Command::MaskLoop { address })
    }

    /// As [`start_mask_loop`](Self::start_mask_loop); besides, the vCPU watches how often vCPU 0, which has interrupts on, takes `interrupt` while the vector is masked and the device has none of it under way. `sending` is the address of SENDING of the vector.
    pub fn start_watched_mask_loop(
        &self,
        vcpu: u64,
        address: u64,
        sending: u64,
        interrupt: u8,
    ) -> Result<Running<'_, M>, PuppetError> {
        self.begin(vcpu, Command::WatchedMaskLoop { address, sending, interrupt })
    }

    /// As [`store_loop`](Self::store_loop), without waiting for its end.
    pub fn start_store_loop(
        &self,
        vcpu: u64,
        address: u64,
        width: Width,
        value: u64,
        times: u64,
    ) -> Result<Running<'_, M>, PuppetError> {
        self.begin(vcpu, Command::StoreLoop { address, width, value, times })
    }

    /// Lets the vCPU copy the 64 bytes at `bytes` into a call buffer and ring the doorbell's register, so many times.
    pub fn start_call_loop(
        &self,
        vcpu: u64,
        bytes: u64,
        buffer: u64,
        doorbell: u64,
        times: u64,
    ) -> Result<Running<'_, M>, PuppetError> {
        self.begin(vcpu, Command::CallLoop { bytes, buffer, doorbell, times })
    }

    fn execute(&self, vcpu: u64, command: Command) -> Result<[u64; 4], PuppetError> {
        self.begin(vcpu, command)?.finish()
    }

    fn begin(&self, vcpu: u64, command: Command) -> Result<Running<'_, M>, PuppetError> {
        let at = |offset| GuestAddress(field(vcpu, offset));
        if let Command::PortIn { width: Width::Quad, .. }
        | Command::PortOut { width: Width::Quad, .. } = command
        {
            return Err(PuppetError::Refused { what: format!("{command:x?}: ports have 32 bits") });
        }
        let (opcode, arguments) = command.encode();
        let sequence = self.word(field(vcpu, SEQUENCE))?;
        if self.word(field(vcpu, DONE))? != sequence {
            let what = format!("{command:x?}: vCPU {vcpu} still does something else");
            return Err(PuppetError::Refused { what });
        }
        self.memory.write_obj(arguments, at(ARGUMENTS))?;
        self.memory.write_obj(opcode, at(OPCODE))?;
        self.memory.write_obj([0u32; 2], at(STOP))?;
        fence(Ordering::SeqCst);
        let sequence = sequence.wrapping_add(1);
        self.memory.store(sequence, at(SEQUENCE), Ordering::SeqCst)?;
        Ok(Running { puppet: self, vcpu, sequence, command })
    }

    fn word(&self, address: u64) -> Result<u32, PuppetError> {
        Ok(self.memory.load(GuestAddress(address), Ordering::SeqCst)?)
    }

    fn wait(
        &self,
        patience: Duration,
        what: impl Fn() -> String,
        mut done: impl FnMut() -> Result<bool, PuppetError>,
    ) -> Result<(), PuppetError> {
        let start = Instant::now();
        loop {
            if done()? {
                return Ok(());
            }
            let waited = start.elapsed();
            if waited > patience {
                return Err(PuppetError::Timeout { what: what(), waited });
            }
            sleep(Duration::from_micros(20));
        }
    }
}

impl<M: GuestMemory + Clone> Running<'_, M> {
    /// Whether the vCPU is done with it.
    pub fn is_done(&self) -> Result<bool, PuppetError> {
        Ok(self.puppet.word(field(self.vcpu, DONE))? == self.sequence)
    }

    /// Rounds of a mask loop so far.
    pub fn rounds(&self) -> Result<u32, PuppetError> {
        self.puppet.word(field(self.vcpu, ROUNDS))
    }

    /// Waits until a mask loop has done so many rounds.
    pub fn wait_rounds(&self, rounds: u32) -> Result<(), PuppetError> {
        let what = || format!("{rounds} rounds of {:x?} on vCPU {}", self.command, self.vcpu);
        self.puppet.wait(PATIENCE, what, || Ok(self.rounds()? >= rounds))
    }

    /// Stops a mask loop and waits for its end; returns the rounds.
    pub fn stop(self) -> Result<u64, PuppetError> {
        let stop = GuestAddress(field(self.vcpu, STOP));
        self.puppet.memory.store(1u32, stop, Ordering::SeqCst)?;
        Ok(self.finish()?[0])
    }

    /// Stops a watched mask loop and waits for its end; returns the rounds, and the interrupts that came while masked.
    pub fn stop_watching(self) -> Result<[u64; 2], PuppetError> {
        let stop = GuestAddress(field(self.vcpu, STOP));
        self.puppet.memory.store(1u32, stop, Ordering::SeqCst)?;
        let [rounds, came, ..] = self.finish()?;
        Ok([rounds, came])
    }

    /// Waits for the end of the command, a minute at most; returns its results.
    pub fn finish(self) -> Result<[u64; 4], PuppetError> {
        self.finish_within(PATIENCE)
    }

    /// As [`finish`](Self::finish), with another patience.
    pub fn finish_within(self, patience: Duration) -> Result<[u64; 4], PuppetError> {
        let what = || format!("{:x?} on vCPU {}", self.command, self.vcpu);
        self.puppet.wait(patience, what, || self.is_done())?;
        let results = field(self.vcpu, RESULTS);
        Ok(self.puppet.memory.read_obj(GuestAddress(results))?)
    }
}

impl Command {
    fn encode(self) -> (u32, [u64; 4]) {
        let bytes = |width: Width| width as u64;
        match self {
            Self::Load { address, width } => (1, [address, bytes(width), 0, 0]),
            Self::Store { address, width, value } => (2, [address, bytes(width), value, 0]),
            Self::PortIn { port, width } => (3, [port.into(), bytes(width), 0, 0]),
            Self::PortOut { port, width, value } => {
                (4, [port.into(), bytes(width), value.into(), 0])
            }
            Self::Cpuid { leaf, subleaf } => (5, [leaf.into(), subleaf.into(), 0, 0]),
            Self::ClearCounters => (6, [0; 4]),
            Self::InterruptsOn => (7, [0; 4]),
            Self::InterruptsOff => (8, [0; 4]),
            Self::StoreLoop { address, width, value, times } => {
                (9, [address, bytes(width), value, times])
            }
            Self::MaskLoop { address } => (10, [address, 0, 0, 0]),
            Self::CallLoop { bytes, buffer, doorbell, times } => {
                (12, [bytes, buffer, doorbell, times])
            }
            Self::WatchedMaskLoop { address, sending, interrupt } => {
                (11, [address, sending, interrupt.into(), 0])
            }
        }
    }
}

/// Guest physical address of a field of a vCPU's slot; the header stands before the first slot.
fn field(vcpu: u64, offset: u64) -> u64 {
    let slot = vcpu.wrapping_add(1).wrapping_mul(SLOT_BYTES);
    PAGE.wrapping_add(slot).wrapping_add(offset)
}
