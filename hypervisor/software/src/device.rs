//! The device itself: registers, vector table and pending bits in shared memory.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use pvmsi_protocol::{TableMessage, VectorIndex};
use vm_memory::{Bytes, MmapRegion, VolatileArrayRef, VolatileMemory};
use vmm_sys_util::eventfd::EventFd;

use crate::registers::{
    BAR_BYTES, CONTROL, DONE, DOORBELL, EVENTS, FIRST, ID, ID_VALUE, PACE, PENDING, RESET,
    ROTATION, SENDING, SENT, START, STARTED, STARTED_WITHOUT_INTERRUPTS, TABLE, VECTORS,
    entry_word, of_vector, pending_word,
};
use crate::sync::{Mutex, MutexGuard};

/// Where the registers end.
pub(crate) const REGISTERS_END: u64 = 0x20;
/// Address of the messages that the host gives to software functions: an address that no guest
/// would choose, so that a guest message in the table is noticed.
const HOST_DOORBELL: u64 = 0x5650_0000_0000;
/// Of the second half of an entry: what is neither data nor the mask bit.
const OTHER_BITS: u64 = 0xffff_fffe_0000_0000;
/// Events raised in one round at most, so that a round stays short.
const EVENTS_PER_ROUND: u32 = 64;
/// A next event that is due sooner counts as work.
const BUSY_WAIT: Duration = Duration::from_micros(100);
/// Counts up in place of an address of its own for each function.
static INSTANCES: AtomicU64 = AtomicU64::new(0);

/// The device side of a software function. All methods may be called from any thread.
#[derive(Debug)]
pub struct SoftwareDevice {
    memory: Arc<MmapRegion>,
    pub(crate) vectors: u16,
    address: u64,
    pub(crate) raised: AtomicU64,
    pub(crate) blocked: AtomicU64,
    /// Whether the host's loads from the table give zeros.
    unreadable: AtomicBool,
    core: Mutex<Core>,
}

/// What the device keeps to itself. Its lock is the order in which messages leave.
#[derive(Debug, Default)]
pub(crate) struct Core {
    /// The function's own MSI-X Enable.
    enabled: bool,
    /// What the host's kernel knows of it: it sets what it takes for clear.
    known_enabled: bool,
    /// Where a message with data `i` arrives: the function's own interrupts, as the interrupt remapping unit knows them.
    events: Vec<OwnedFd>,
    /// Total of DOORBELL that has been served.
    pub(crate) done: u32,
    pub(crate) next_event: Option<Instant>,
}

impl SoftwareDevice {
    pub(crate) fn new(vectors: u16) -> io::Result<Self> {
        let size = usize::try_from(BAR_BYTES).map_err(io::Error::other)?;
        let memory = MmapRegion::new(size).map_err(io::Error::other)?;
        let instance = INSTANCES.fetch_add(1, Ordering::Relaxed);
        let device = Self {
            memory: Arc::new(memory),
            vectors,
            address: HOST_DOORBELL.wrapping_add((instance & 0xffff) << 12),
            raised: AtomicU64::new(0),
            blocked: AtomicU64::new(0),
            unreadable: AtomicBool::new(false),
            core: Mutex::new(Core::default()),
        };
        device.reset();
        Ok(device)
    }

    /// Raises an event of a vector: counts it, then emits the vector's message or, where the mask bit is set, sets its pending bit. `false` when the function has no such vector.
    pub fn raise(&self, vector: VectorIndex) -> bool {
        let core = self.lock();
        self.raise_locked(&core, vector)
    }

    /// One round of the device's work: serves DOORBELL and CONTROL, and emits the messages of pending vectors that are unmasked by now. `false` when there was nothing to do, as when all pending vectors are masked or the next event is not due yet; the caller may then sleep a little.
    pub fn run(&self) -> bool {
        let mut core = self.lock();
        match self.load(CONTROL) {
            RESET => {
                self.reset_locked(&mut core);
                return true;
            }
            // As an NVMe controller when a queue is created.
            START if core.enabled => self.store(CONTROL, STARTED),
            START => self.store(CONTROL, STARTED_WITHOUT_INTERRUPTS),
            _ => {}
        }
        self.serve_doorbell(&mut core) | self.serve_pending(&core)
    }

    /// Events that were raised since the function was created.
    pub fn raised(&self) -> u64 {
        self.raised.load(Ordering::Relaxed)
    }

    /// Messages that matched none of the function's own interrupts, and went nowhere.
    pub fn blocked(&self) -> u64 {
        self.blocked.load(Ordering::Relaxed)
    }

    /// MSI-X Enable as the function itself has it, whatever the guest reads. The device looks at it when it is started.
    pub fn enabled(&self) -> bool {
        self.lock().enabled
    }

    /// From now on the host's loads from the vector table give zeros, and its stores work: for tests. There are such functions.
    pub fn give_zeros(&self) {
        self.unreadable.store(true, Ordering::Relaxed);
    }

    pub(crate) fn gives_zeros(&self) -> bool {
        self.unreadable.load(Ordering::Relaxed)
    }

    pub(crate) fn memory(&self) -> Arc<MmapRegion> {
        Arc::clone(&self.memory)
    }

    pub(crate) fn set_enabled(&self, enabled: bool) -> io::Result<()> {
        let mut core = self.lock();
        if core.known_enabled == enabled {
            return Ok(());
        }
        core.known_enabled = enabled;
        core.enabled = enabled;
        self.connect(&mut core, VectorIndex(0), &[])
    }

    pub(crate) fn set_up_interrupts(
        &self,
        first: VectorIndex,
        events: &[&EventFd],
    ) -> io::Result<()> {
        let mut core = self.lock();
        self.connect(&mut core, first, events)?;
        if !events.is_empty() && !core.known_enabled {
            core.known_enabled = true;
            core.enabled = true;
        }
        Ok(())
    }

    /// Gives the vectors from `first` on these events, unmasked, and masks those behind.
    fn connect(&self, core: &mut Core, first: VectorIndex, events: &[&EventFd]) -> io::Result<()> {
        let mut own = Vec::with_capacity(events.len());
        for event in events {
            own.push(duplicate(event)?);
        }
        core.events.truncate(first.as_usize());
        core.events.append(&mut own);
        let set_up = u16::try_from(core.events.len()).unwrap_or(u16::MAX).min(self.vectors);
        let table = self.table()?;
        for number in first.0..set_up {
            let entry = usize::from(number) << 1;
            table.store(entry, self.address);
            // With vector control, in the upper half: unmasked, and the rest as it was.
            let control = table.load(entry | 1) & OTHER_BITS;
            table.store(entry | 1, control | u64::from(number));
        }
        for number in first.0.max(set_up)..self.vectors {
            let vector = VectorIndex(number);
            self.store_entry(vector, 3, self.control(vector)? | 1);
        }
        Ok(())
    }

    pub(crate) fn table_message(&self, vector: VectorIndex) -> io::Result<TableMessage> {
        let mut message = TableMessage::default();
        self.table_messages(vector.0..vector.0.saturating_add(1), |_, read| message = read)?;
        Ok(message)
    }

    pub(crate) fn table_messages(
        &self,
        vectors: Range<u16>,
        mut take: impl FnMut(VectorIndex, TableMessage),
    ) -> io::Result<()> {
        if vectors.end > self.vectors {
            return Err(no_such_vector());
        }
        let table = self.table()?;
        for vector in vectors.map(VectorIndex) {
            let entry = vector.as_usize() << 1;
            // Of the second half, data is the lower one.
            let [d0, d1, d2, d3, ..] = table.load(entry | 1).to_le_bytes();
            let data = u32::from_le_bytes([d0, d1, d2, d3]);
            take(vector, TableMessage { address: table.load(entry), data });
        }
        Ok(())
    }

    /// The vector table, by halves of entries. What is written under the lock goes to nobody before that is free.
    #[inline]
    fn table(&self) -> io::Result<VolatileArrayRef<'_, u64>> {
        let halves = usize::from(self.vectors) << 1;
        let start = usize::try_from(TABLE).map_err(io::Error::other)?;
        self.memory.get_array_ref(start, halves).map_err(io::Error::other)
    }

    pub(crate) fn set_table_message(
        &self,
        vector: VectorIndex,
        TableMessage { address, data }: TableMessage,
    ) -> io::Result<()> {
        if !self.store_entry(vector, 2, data) {
            return Err(no_such_vector());
        }
        self.table()?.store(vector.as_usize() << 1, address);
        Ok(())
    }

    pub(crate) fn masked(&self, vector: VectorIndex) -> io::Result<bool> {
        self.control(vector).map(|control| control & 1 != 0)
    }

    /// Bits of vector control beside the mask bit mean nothing to this function: it keeps them.
    pub(crate) fn control(&self, vector: VectorIndex) -> io::Result<u32> {
        self.load_entry(vector, 3).ok_or_else(no_such_vector)
    }

    /// As in hardware, what was pending has left when the bit is seen clear, and what was under way has arrived.
    pub(crate) fn set_masked(&self, vector: VectorIndex, masked: bool) -> io::Result<()> {
        self.change_control(vector, masked, |control| {
            if masked {
                control.fetch_or(1, Ordering::SeqCst);
            } else {
                control.fetch_and(!1, Ordering::SeqCst);
            }
        })
    }

    /// The same with all bits.
    pub(crate) fn set_control(&self, vector: VectorIndex, value: u32) -> io::Result<()> {
        let store = |control: &AtomicU32| control.store(value, Ordering::SeqCst);
        self.change_control(vector, value & 1 != 0, store)
    }

    fn change_control(
        &self,
        vector: VectorIndex,
        masked: bool,
        change: impl FnOnce(&AtomicU32),
    ) -> io::Result<()> {
        let changed = self.entry_word(vector, 3).and_then(|offset| self.word(offset, change));
        changed.ok_or_else(no_such_vector)?;
        let core = self.lock();
        if !masked {
            self.emit_if_unmasked(&core, vector);
        }
        Ok(())
    }

    pub(crate) fn pending(&self, vector: VectorIndex) -> io::Result<bool> {
        let (offset, bit) = self.pending_bit(vector).ok_or_else(no_such_vector)?;
        Ok(self.load(offset) & bit != 0)
    }

    /// Waits for the message that is under way.
    pub(crate) fn settle(&self) {
        drop(self.lock());
    }

    /// Reads registers. What the guest may have scribbled there in direct mode is what it gets.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        if let Ok(at) = usize::try_from(offset) {
            // Out of range leaves the ones that the caller has put there.
            let _ = self.memory.as_volatile_slice().read_slice(data, at);
        }
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        let read_only = |start: u64| offset >= start && offset < start.saturating_add(4);
        if read_only(ID) || read_only(VECTORS) || read_only(DONE) || offset >= EVENTS {
            return;
        }
        if let Ok(at) = usize::try_from(offset) {
            let _ = self.memory.as_volatile_slice().write_slice(data, at);
        }
    }

    /// Function level reset: everything but the interrupt set-up and the counters for tests.
    pub(crate) fn reset(&self) {
        self.reset_locked(&mut self.lock());
    }

    /// A reset that nobody makes good: the function's own MSI-X Enable goes as well.
    pub(crate) fn self_test(&self) {
        let mut core = self.lock();
        self.reset_locked(&mut core);
        core.enabled = false;
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reset_locked(&self, core: &mut Core) {
        for number in 0..self.vectors {
            let vector = VectorIndex(number);
            self.store_entry(vector, 3, 1);
            for word in 0..3 {
                self.store_entry(vector, word, 0);
            }
            if let Some((offset, bit)) = self.pending_bit(vector) {
                self.word(offset, |pending| pending.fetch_and(!bit, Ordering::SeqCst));
            }
        }
        core.done = 0;
        core.next_event = None;
        for offset in (0..REGISTERS_END).step_by(4) {
            self.store(offset, 0);
        }
        self.store(ID, ID_VALUE);
        self.store(VECTORS, u32::from(self.vectors));
    }

    fn serve_doorbell(&self, core: &mut Core) -> bool {
        let mut worked = false;
        let pace = Duration::from_nanos(u64::from(self.load(PACE)));
        for _ in 0..EVENTS_PER_ROUND {
            if core.done == self.load(DOORBELL) {
                core.next_event = None;
                break;
            }
            let now = Instant::now();
            if let Some(next) = core.next_event.filter(|&next| now < next) {
                // Busy until the next event is due, if that is soon: a longer time can be slept through.
                return worked || next.saturating_duration_since(now) < BUSY_WAIT;
            }
            core.next_event = now.checked_add(pace);
            let step = core.done.checked_rem(self.load(ROTATION)).unwrap_or(0);
            let vector = self.load(FIRST).wrapping_add(step);
            if let Ok(number) = u16::try_from(vector) {
                self.raise_locked(core, VectorIndex(number));
            }
            core.done = core.done.wrapping_add(1);
            self.store(DONE, core.done);
            worked = true;
        }
        worked
    }

    fn serve_pending(&self, core: &Core) -> bool {
        let mut emitted = false;
        for word in 0..self.vectors.div_ceil(32) {
            let offset = of_vector(PENDING, word);
            let mut bits = self.load(offset);
            while bits != 0 {
                let bit = u16::try_from(bits.trailing_zeros()).unwrap_or(0);
                bits &= bits.wrapping_sub(1);
                let vector = VectorIndex(word.saturating_mul(32).saturating_add(bit));
                emitted |= self.emit_if_unmasked(core, vector);
            }
        }
        emitted
    }

    fn raise_locked(&self, core: &Core, vector: VectorIndex) -> bool {
        let Some((offset, bit)) = self.pending_bit(vector) else {
            return false;
        };
        self.raised.fetch_add(1, Ordering::Relaxed);
        self.count(EVENTS, vector);
        if self.load(CONTROL) == STARTED_WITHOUT_INTERRUPTS {
            return true;
        }
        self.word(offset, |pending| pending.fetch_or(bit, Ordering::SeqCst));
        self.emit_if_unmasked(core, vector);
        true
    }

    /// The only place that emits messages. SENDING is set before the mask bit is looked at: a
    /// driver that has set the bit and then finds SENDING clear knows that nothing is under way.
    fn emit_if_unmasked(&self, core: &Core, vector: VectorIndex) -> bool {
        let Some((offset, bit)) = self.pending_bit(vector) else {
            return false;
        };
        // It is set and cleared under the lock.
        if self.load(offset) & bit == 0 {
            return false;
        }
        let mut emitted = false;
        let sending = of_vector(SENDING, vector.0);
        self.store(sending, 1);
        let unmasked = self.masked(vector).is_ok_and(|masked| !masked);
        if unmasked && core.enabled {
            let pending = self.word(offset, |word| word.fetch_and(!bit, Ordering::SeqCst));
            if pending.unwrap_or(0) & bit != 0 {
                self.count(SENT, vector);
                self.emit(core, vector);
                emitted = true;
            }
        }
        self.store(sending, 0);
        emitted
    }

    fn emit(&self, core: &Core, vector: VectorIndex) {
        let own = self
            .table_message(vector)
            .ok()
            .filter(|message| message.address == self.address)
            .and_then(|message| usize::try_from(message.data).ok())
            .and_then(|number| core.events.get(number));
        match own {
            // An eventfd's counter that is full still wakes whoever waits for it.
            Some(event) => drop(rustix::io::write(event, &1_u64.to_ne_bytes())),
            None => drop(self.blocked.fetch_add(1, Ordering::Relaxed)),
        }
    }

    fn count(&self, counters: u64, vector: VectorIndex) {
        self.word(of_vector(counters, vector.0), |counter| counter.fetch_add(1, Ordering::SeqCst));
    }

    fn pending_bit(&self, vector: VectorIndex) -> Option<(u64, u32)> {
        (vector.0 < self.vectors).then(|| (pending_word(vector.0), 1 << (vector.0 % 32)))
    }

    fn entry_word(&self, vector: VectorIndex, word: u64) -> Option<u64> {
        (vector.0 < self.vectors).then(|| entry_word(vector.0, word))
    }

    fn load_entry(&self, vector: VectorIndex, word: u64) -> Option<u32> {
        self.entry_word(vector, word).map(|offset| self.load(offset))
    }

    fn store_entry(&self, vector: VectorIndex, word: u64, value: u32) -> bool {
        self.entry_word(vector, word).map(|offset| self.store(offset, value)).is_some()
    }

    pub(crate) fn load(&self, offset: u64) -> u32 {
        self.word(offset, |word| word.load(Ordering::SeqCst)).unwrap_or(u32::MAX)
    }

    pub(crate) fn store(&self, offset: u64, value: u32) {
        self.word(offset, |word| word.store(value, Ordering::SeqCst));
    }

    /// A 32-bit word of the shared memory; offsets come from the layout, so they are inside and aligned.
    fn word<T>(&self, offset: u64, act: impl FnOnce(&AtomicU32) -> T) -> Option<T> {
        let offset = usize::try_from(offset).ok()?;
        self.memory.as_volatile_slice().get_atomic_ref(offset).ok().map(act)
    }
}

/// Another file descriptor of the event: the service may close its own.
fn duplicate(event: &EventFd) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is open for as long as `event` is borrowed, which is longer than this
    // value is used.
    let event = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    Ok(rustix::io::fcntl_dupfd_cloexec(event, 0)?)
}

fn no_such_vector() -> io::Error {
    io::Error::other("the function has no such vector")
}
