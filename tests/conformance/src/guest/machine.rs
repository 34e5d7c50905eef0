//! The machine of the tests: RAM, a function, and a host that answers as it is told.
//!
//! Whatever the test, every ring is held against the clauses that all requests
//! must keep; what does not keep them is a *fault*, and the test fails.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ptr::NonNull;

use pvmsi_protocol::{CallError, CallId, Encode, FunctionId, Header, Status, TableMessage};
use vm_memory::{Bytes, MmapRegion, VolatileMemory};

use super::call::{Call, Fault, Terms};
use super::good_host::{GoodHost, Reply};
use super::{Doorbell, GuestFactory, GuestMachine, GuestUnderTest, RAM_BYTES};
use crate::suite::{Stop, Verdict};

/// MSI-X Enable in Message Control.
pub(crate) const ENABLE: u16 = 0x8000;
/// Function Mask in Message Control.
pub(crate) const FUNCTION_MASK: u16 = 0x4000;
/// Where discovery says that the doorbell is.
pub(crate) const DOORBELL: Doorbell = Doorbell::Port(0x5650);
/// After so many rings in one test the host stops to play along.
pub(crate) const RINGS_MAX: usize = 20_000;

const MSIX: u16 = 0x60;
const TABLE_BYTES: usize = 2048 * 16;
const PENDING_BYTES: usize = 4096;

type Script<'s> = Box<dyn FnMut(&Call, &mut GoodHost) -> Reply + 's>;

/// A machine for one test.
pub(crate) struct Scripted<'s> {
    ram: MmapRegion,
    table: MmapRegion,
    pending: MmapRegion,
    config: RefCell<[u8; 256]>,
    vectors: u16,
    leaves: RefCell<BTreeMap<u32, [u32; 4]>>,
    script: RefCell<Script<'s>>,
    pub(crate) host: RefCell<GoodHost>,
    terms: Cell<Terms>,
    /// Requests are read by another thread, as by the processor that runs the VMM.
    pub(crate) read_elsewhere: Cell<bool>,
    pub(crate) rings: Cell<usize>,
    pub(crate) waited_us: Cell<u64>,
    pub(crate) calls: RefCell<Vec<Call>>,
    /// Message Control at each write: Enable and Function Mask.
    pub(crate) controls: RefCell<Vec<u16>>,
    /// Message Control at the last `configure`.
    pub(crate) control_at_configure: Cell<Option<u16>>,
    pub(crate) delivered: RefCell<Vec<u16>>,
    faults: RefCell<Vec<Fault>>,
}

impl<'s> Scripted<'s> {
    /// A machine whose host does everything right.
    pub(crate) fn good(vectors: u16) -> Verdict<Self> {
        Self::new(vectors, |call, host| host.answer(call))
    }

    /// A machine whose host answers by a script, which may ask a good host what to say.
    pub(crate) fn new(
        vectors: u16,
        script: impl FnMut(&Call, &mut GoodHost) -> Reply + 's,
    ) -> Verdict<Self> {
        let memory = |bytes| MmapRegion::new(bytes).map_err(|e| Stop::Skipped(e.to_string()));
        let function = FunctionId(0x18);
        let machine = Self {
            ram: memory(RAM_BYTES)?,
            table: memory(TABLE_BYTES)?,
            pending: memory(PENDING_BYTES)?,
            config: RefCell::new(config_space(vectors)),
            vectors,
            leaves: RefCell::new(BTreeMap::new()),
            script: RefCell::new(Box::new(script)),
            host: RefCell::new(GoodHost::new()),
            terms: Cell::new(Terms { agreed: None, function }),
            read_elsewhere: Cell::new(false),
            rings: Cell::new(0),
            waited_us: Cell::new(0),
            calls: RefCell::default(),
            controls: RefCell::default(),
            control_at_configure: Cell::new(None),
            delivered: RefCell::default(),
            faults: RefCell::default(),
        };
        machine.offer_at(0x4000_0100);
        machine.reset_table();
        Ok(machine)
    }

    /// Puts the service block at a base, and KVM's beside it.
    pub(crate) fn offer_at(&self, base: u32) {
        self.leaves.borrow_mut().clear();
        self.put_leaf(0x4000_0000, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]);
        let limits = self.host.borrow().limits;
        let leaves = [
            [base + 3, 0x4d2d_5650, 0x4953, 0],
            [1 << 16, 1, 0, 0],
            [0x5650, 0, 0, 0],
            [limits.buffer_bytes, limits.vectors.into(), 0, 0],
        ];
        for (leaf, words) in (base..).zip(leaves) {
            self.put_leaf(leaf, words);
        }
    }

    /// Leaves only KVM's block.
    pub(crate) fn take_offer_back(&self) {
        self.leaves.borrow_mut().retain(|leaf, _| *leaf == 0x4000_0000);
    }

    pub(crate) fn put_leaf(&self, leaf: u32, words: [u32; 4]) {
        self.leaves.borrow_mut().insert(leaf, words);
    }

    /// What a reset of the function does to its table.
    pub(crate) fn reset_table(&self) {
        for vector in 0..self.vectors {
            for (word, value) in (0..).zip([0, 0, 0, 1]) {
                self.poke(vector, word, value);
            }
        }
    }

    pub(crate) fn entry(&self, vector: u16) -> [u32; 4] {
        [0, 1, 2, 3].map(|word| {
            self.table.as_volatile_slice().read_obj(entry_at(vector, word)).unwrap_or(u32::MAX)
        })
    }

    pub(crate) fn poke(&self, vector: u16, word: usize, value: u32) {
        let _ = self.table.as_volatile_slice().write_obj(value, entry_at(vector, word));
    }

    pub(crate) fn masked(&self, vector: u16) -> bool {
        self.entry(vector)[3] & 1 != 0
    }

    /// Writes the table messages of the host, as its set-up of interrupts does.
    pub(crate) fn write_table_messages(&self) {
        let host = self.host.borrow();
        for vector in 0..host.assigned {
            for (word, value) in (0..).zip(words(host.table_message(vector))) {
                self.poke(vector, word, value);
            }
        }
    }

    /// Whether the entries of all assigned vectors hold what the host put there, or what a reset leaves.
    pub(crate) fn check_table(&self, when: &str) {
        let host = self.host.borrow();
        for vector in 0..host.assigned {
            let [low, high, data, _] = self.entry(vector);
            let message = [low, high, data];
            if message != words(host.table_message(vector)) && message != [0; 3] {
                let seen =
                    format!("{when}, entry {vector} holds {message:x?}, not a table message");
                self.fault(("G-520", seen));
            }
        }
    }

    /// Enable and Function Mask.
    pub(crate) fn control(&self) -> u16 {
        self.read_config_u16(MSIX + 2) & (ENABLE | FUNCTION_MASK)
    }

    /// The calls of a kind so far.
    pub(crate) fn calls_of(&self, id: CallId) -> Vec<Call> {
        self.calls.borrow().iter().filter(|call| call.id == id).cloned().collect()
    }

    pub(crate) fn fault(&self, fault: Fault) {
        let mut faults = self.faults.borrow_mut();
        if faults.len() < 8 {
            faults.push(fault);
        }
    }

    /// Runs a test's steps with a guest; what all requests must keep comes on top.
    pub(crate) fn drive(
        &self,
        factory: &dyn GuestFactory,
        act: impl FnOnce(&mut dyn GuestUnderTest) -> Verdict,
    ) -> Verdict {
        let mut guest = factory.create(self).map_err(Stop::Skipped)?;
        let verdict = act(guest.as_mut());
        self.check_table("at the end");
        match self.faults.borrow().first() {
            Some((clause, seen)) => Err(Stop::Failed(format!("{clause}: {seen}"))),
            None => verdict,
        }
    }

    fn read_ram(&self, address: usize, length: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.ram.as_volatile_slice().read_slice(&mut bytes, address).ok()?;
        Some(bytes)
    }

    /// Header and body at an address.
    fn read_request(&self, address: usize) -> Result<(Header, Vec<u8>), Fault> {
        let outside = || ("G-201", format!("the buffer at {address:#x} does not lie in RAM"));
        let bytes = self.read_ram(address, Header::SIZE).ok_or_else(outside)?;
        let header = Header::from_bytes(bytes.first_chunk().ok_or_else(outside)?);
        let length = usize::try_from(header.buffer_length).unwrap_or(usize::MAX);
        if address.saturating_add(length) > RAM_BYTES {
            return Err(outside());
        }
        let length = usize::try_from(header.body_length).unwrap_or(usize::MAX).min(0x1_0000);
        let body = self.read_ram(address + Header::SIZE, length).ok_or_else(outside)?;
        Ok((header, body))
    }

    /// Another processor must see the whole request once the bell rings.
    fn compare_from_elsewhere(&self, address: usize) {
        let ram = &self.ram;
        let read = || {
            let mut bytes = vec![0; 4096];
            ram.as_volatile_slice().read_slice(&mut bytes, address).ok().map(|()| bytes)
        };
        let there = std::thread::scope(|scope| scope.spawn(read).join().ok().flatten());
        if there.is_none() || there != read() {
            self.fault(("G-206", "another processor sees another request".to_owned()));
        }
    }

    fn take_call(&self, address: usize) -> Result<Call, Fault> {
        let (header, body) = self.read_request(address)?;
        let call = Call::parse(header, &body)?;
        for fault in call.faults(&body, &self.terms.get()) {
            self.fault(fault);
        }
        if call.id == CallId::Configure {
            self.control_at_configure.set(Some(self.control()));
        }
        self.calls.borrow_mut().push(call.clone());
        Ok(call)
    }

    /// Answers a call as the script says.
    fn answer(&self, address: usize, call: &Call) {
        let reply = if self.rings.get() > RINGS_MAX {
            Reply::Error(CallError::Hardware)
        } else {
            (self.script.borrow_mut())(call, &mut self.host.borrow_mut())
        };
        let (status, body) = match reply {
            Reply::Silent => return,
            Reply::Error(error) => {
                let mut body = vec![0; 32];
                let used = error.encode(&mut body).unwrap_or(0);
                body.truncate(used);
                (error.status().0, body)
            }
            Reply::Success(body) => (Status::SUCCESS.0, body),
            Reply::Raw(status, body) => (status, body),
        };
        self.note_agreement(call, status, &body);
        if status == Status::SUCCESS.0 && call.id != CallId::Update {
            self.write_table_messages();
        }
        let length = u32::try_from(body.len()).unwrap_or(0);
        let header = call.header.answered(Status(status), length);
        let memory = self.ram.as_volatile_slice();
        let _ = memory.write_slice(&body, address + Header::SIZE);
        let _ = memory.write_slice(&header.to_bytes(), address);
    }

    fn note_agreement(&self, call: &Call, status: u32, body: &[u8]) {
        if call.id == CallId::Negotiate
            && status == Status::SUCCESS.0
            && let Ok(answer) = pvmsi_protocol::NegotiateAnswer::decode(body)
        {
            let agreed = (answer.version, answer.limits.buffer_bytes, answer.limits.vectors);
            self.terms.set(Terms { agreed: Some(agreed), ..self.terms.get() });
        }
    }
}

impl GuestMachine for Scripted<'_> {
    fn cpuid(&self, leaf: u32) -> [u32; 4] {
        self.leaves.borrow().get(&leaf).copied().unwrap_or_default()
    }

    fn ram(&self) -> NonNull<u8> {
        NonNull::new(self.ram.as_ptr()).unwrap_or(NonNull::dangling())
    }

    fn ring(&self, doorbell: Doorbell, value: u32) {
        self.rings.set(self.rings.get() + 1);
        if self.rings.get() == RINGS_MAX {
            self.fault(("G-906", format!("the guest has called {RINGS_MAX} times in one test")));
        }
        let offered = self.leaves.borrow().values().any(|words| words[0] == 0x5650);
        if doorbell != DOORBELL || !offered {
            return self.fault(("G-105", format!("{doorbell:?} was rung, which nobody named")));
        }
        self.check_table("at a ring");
        let address = usize::try_from(u64::from(value) << 12).unwrap_or(usize::MAX);
        if self.read_elsewhere.get() {
            self.compare_from_elsewhere(address);
        }
        match self.take_call(address) {
            Ok(call) => self.answer(address, &call),
            Err(fault) => self.fault(fault),
        }
    }

    fn delay_us(&self, microseconds: u32) {
        self.waited_us.set(self.waited_us.get().saturating_add(microseconds.into()));
    }

    fn function(&self) -> FunctionId {
        self.terms.get().function
    }

    fn read_config_u16(&self, offset: u16) -> u16 {
        let at = usize::from(offset);
        let config = self.config.borrow();
        let byte = |at: usize| config.get(at).copied().unwrap_or(0xff);
        u16::from_le_bytes([byte(at), byte(at + 1)])
    }

    fn write_config_u16(&self, offset: u16, value: u16) {
        if offset != MSIX + 2 {
            return;
        }
        self.check_table("at a write of Message Control");
        let bits = value & (ENABLE | FUNCTION_MASK);
        let [low, high] = (bits | (self.vectors - 1)).to_le_bytes();
        let at = usize::from(offset);
        let mut config = self.config.borrow_mut();
        for (byte, value) in config.iter_mut().skip(at).zip([low, high]) {
            *byte = value;
        }
        self.controls.borrow_mut().push(bits);
        if bits & ENABLE == 0 {
            self.host.borrow_mut().assigned = 0;
        }
    }

    fn table(&self) -> NonNull<u32> {
        NonNull::new(self.table.as_ptr().cast()).unwrap_or(NonNull::dangling())
    }

    fn pending(&self) -> NonNull<u32> {
        NonNull::new(self.pending.as_ptr().cast()).unwrap_or(NonNull::dangling())
    }

    fn deliver(&self, vector: u16) {
        if self.masked(vector) {
            self.fault(("G-445", format!("vector {vector} was delivered while masked")));
        }
        self.delivered.borrow_mut().push(vector);
    }
}

fn entry_at(vector: u16, word: usize) -> usize {
    usize::from(vector) * 16 + word * 4
}

fn words(message: TableMessage) -> [u32; 3] {
    let [a0, a1, a2, a3, a4, a5, a6, a7] = message.address.to_le_bytes();
    [u32::from_le_bytes([a0, a1, a2, a3]), u32::from_le_bytes([a4, a5, a6, a7]), message.data]
}

/// Capabilities: one that is the vendor's, then MSI-X.
fn config_space(vectors: u16) -> [u8; 256] {
    let [size_low, size_high] = (vectors - 1).to_le_bytes();
    let parts: [(usize, &[u8]); 4] = [
        (0x06, &[0x10]),
        (0x34, &[0x40]),
        (0x40, &[0x09, 0x60]),
        (0x60, &[0x11, 0, size_low, size_high, 0, 0x20, 0, 0, 0, 0xa0, 0, 0]),
    ];
    let mut config = [0; 256];
    for (at, bytes) in parts {
        for (target, byte) in config.iter_mut().skip(at).zip(bytes) {
            *target = *byte;
        }
    }
    config
}
