//! The guest half: a client and the interrupts of one function, against a host that is a script.
//!
//! The only file here that knows the interface of `pvmsi-guest`.

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;

use anyhow::{Context, Result, ensure};
use pvmsi_guest::{
    CallBuffer, Client, Doorbell, MsiX, MsiXCapability, PciFunction, TableLocation, World,
};
use pvmsi_protocol::{
    BUFFER_MAX, BufferPage, CallId, ConfigureAnswer, Encode, EncodeError, FunctionId, Generation,
    Header, Kind, Reasons, Status, TableMessage, TableMode, UpdateAnswer, VectorAnswer,
    VectorIndex, VectorSetup,
};

use crate::host::message;
use crate::meter::{count, exclude};

const FUNCTION: FunctionId = FunctionId(8);
/// Guest physical page of the call buffer. Nobody looks there.
const PAGE: BufferPage = BufferPage(0x1234);
/// Where the MSI-X capability is in configuration space.
const CAPABILITY: u16 = 0x90;
const MESSAGE_CONTROL: u16 = CAPABILITY + 2;
/// Words of a table entry.
const ENTRY_WORDS: usize = 4;

/// What the guest's accesses and calls have come to, apart from those to the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Doorbells.
    pub rings: u64,
    /// Accesses to configuration space.
    pub config_accesses: u64,
    /// Bytes of requests and answers, headers included.
    pub bytes: u64,
}

/// The function's vector table as memory, zeros at first, and the memory of a call buffer.
pub struct Memory {
    table: Box<[u32]>,
    buffer: Box<Buffer>,
}

#[repr(C, align(4096))]
struct Buffer([u8; BUFFER_MAX]);

impl Memory {
    /// For a table of `vectors` entries.
    pub fn new(vectors: u16) -> Self {
        let words = usize::from(vectors).saturating_mul(ENTRY_WORDS);
        Self { table: vec![0; words].into_boxed_slice(), buffer: Box::new(Buffer([0; BUFFER_MAX])) }
    }

    /// Where the table lies, in bytes.
    pub fn table(&self) -> std::ops::Range<usize> {
        let start = self.table.as_ptr().addr();
        start..start.saturating_add(size_of_val(&*self.table))
    }
}

/// A guest kernel whose host grants all vectors with a direct table.
pub struct Guest<'m> {
    host: &'m Script,
    client: Client<'m, &'m Script>,
    msix: MsiX<&'m Script>,
    vectors: u16,
}

/// Runs `act` in a guest with a function of `vectors` vectors; `memory` is the function's and the guest's.
///
/// # Errors
/// Those of `act`.
pub fn with_guest<T>(
    vectors: u16,
    memory: &mut Memory,
    act: impl FnOnce(&mut Guest<'_>) -> Result<T>,
) -> Result<T> {
    let table = NonNull::from(&mut *memory.table).cast();
    let buffer = NonNull::from(&mut memory.buffer.0).cast();
    let script = Script {
        buffer,
        control: Cell::new(0),
        traffic: Cell::default(),
        answer: RefCell::new(configure_answer(vectors)?),
    };
    // SAFETY: the memory is borrowed exclusively for as long as the buffer exists, and only
    // `Script::ring` touches it besides. Nobody looks at the physical address.
    let buffer = unsafe { CallBuffer::new(buffer, BUFFER_MAX, PAGE.address()) };
    let capability = MsiXCapability {
        offset: CAPABILITY,
        table_size: vectors,
        table: TableLocation { bar: 0, offset: 0 },
        pba: TableLocation { bar: 0, offset: 0 },
    };
    let mut guest = Guest {
        host: &script,
        client: Client::new(buffer.context("no call buffer")?, &script, |_| {}),
        // SAFETY: the table is memory of 16 bytes for each vector, which is borrowed exclusively
        // for as long as the value exists.
        msix: unsafe { MsiX::new(&script, capability, table, None) },
        vectors,
    };
    act(&mut guest)
}

impl Guest<'_> {
    /// `configure` of all vectors, masked, with a message each or with none; the answer is read.
    ///
    /// # Errors
    /// Where not all are granted.
    pub fn configure(&mut self, messages: bool) -> Result<()> {
        let Self { client, vectors, .. } = self;
        let mut seen = 0_u16;
        let grant = count(|| {
            Some(if messages {
                let setups = (0..*vectors)
                    .map(|vector| VectorSetup { message: Some(message(vector)), masked: true });
                client.configure(FUNCTION, Kind::MsiX, *vectors, setups, |_, answer| {
                    seen = seen.saturating_add(u16::from(answer.table_message.is_some()));
                })
            } else {
                client.configure(FUNCTION, Kind::MsiX, *vectors, std::iter::empty(), |_, answer| {
                    seen = seen.saturating_add(u16::from(answer.table_message.is_some()));
                })
            })
        });
        ensure!(
            grant.is_some_and(|grant| grant.is_ok()) && seen == *vectors,
            "{seen} vectors granted"
        );
        Ok(())
    }

    /// `enable` of all vectors with a message each: by a call, or in the standard way.
    ///
    /// # Errors
    /// Where it went the other way.
    pub fn enable(&mut self, by_call: bool) -> Result<()> {
        let client = by_call.then_some(&mut self.client);
        let messages = |VectorIndex(vector)| Some(message(vector));
        let granted = count(|| Some(self.msix.enable_with(client, self.vectors, messages)));
        let world = if by_call { World::Paravirtual } else { World::Legacy };
        ensure!(
            granted == Some(Ok(self.vectors)) && self.msix.world() == world,
            "{granted:?} vectors granted, in world {:?}",
            self.msix.world()
        );
        Ok(())
    }

    /// Moves an interrupt, to the message of the vector `to`.
    ///
    /// # Errors
    /// Where the host refuses.
    pub fn set(&mut self, vector: u16, to: u16) -> Result<()> {
        let client = (self.msix.world() == World::Paravirtual).then_some(&mut self.client);
        done(count(|| self.msix.set(client, VectorIndex(vector), message(to)).ok()))
    }

    /// Masks a vector.
    ///
    /// # Errors
    /// Where there is no such vector.
    pub fn mask(&self, vector: u16) -> Result<()> {
        done(count(|| self.msix.mask(VectorIndex(vector)).ok()))
    }

    /// Unmasks a vector.
    ///
    /// # Errors
    /// Where there is no such vector.
    pub fn unmask(&self, vector: u16) -> Result<()> {
        done(count(|| self.msix.unmask(VectorIndex(vector)).ok()))
    }

    /// Masks all vectors and clears MSI-X Enable.
    pub fn disable(&self) {
        count(|| self.msix.disable());
    }

    /// What it has come to so far.
    pub fn traffic(&self) -> Traffic {
        self.host.traffic.get()
    }
}

impl Traffic {
    /// What has come since `earlier`.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self {
            rings: self.rings.saturating_sub(earlier.rings),
            config_accesses: self.config_accesses.saturating_sub(earlier.config_accesses),
            bytes: self.bytes.saturating_sub(earlier.bytes),
        }
    }
}

/// A host that grants whatever it is asked for, and the function's configuration space.
#[derive(Debug)]
struct Script {
    buffer: NonNull<u8>,
    control: Cell<u16>,
    traffic: Cell<Traffic>,
    /// The body that answers `configure`.
    answer: RefCell<Vec<u8>>,
}

impl Script {
    fn count(&self, rings: u64, config_accesses: u64, bytes: usize) {
        let traffic = self.traffic.get();
        self.traffic.set(Traffic {
            rings: traffic.rings.saturating_add(rings),
            config_accesses: traffic.config_accesses.saturating_add(config_accesses),
            bytes: traffic.bytes.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX)),
        });
    }

    /// Overwrites a request with its answer.
    fn serve(&self, buffer: &mut [u8]) -> Result<()> {
        let (head, body) = buffer.split_first_chunk_mut().context("no header")?;
        let request = Header::from_bytes(head);
        let answer = if request.call == CallId::Configure.number() {
            self.answer.take()
        } else {
            encoded(|buffer| UpdateAnswer { generation: Generation(1) }.encode(buffer))?
        };
        body.get_mut(..answer.len()).context("a short buffer")?.copy_from_slice(&answer);
        let asked = usize::try_from(request.body_length)?.saturating_add(Header::SIZE);
        let answered = answer.len().saturating_add(Header::SIZE);
        self.count(1, 0, asked.saturating_add(answered));
        *head = request.answered(Status::SUCCESS, u32::try_from(answer.len())?).to_bytes();
        if request.call == CallId::Configure.number() {
            self.answer.replace(answer);
        }
        Ok(())
    }
}

impl Doorbell for Script {
    fn ring(&self, _: BufferPage) {
        exclude(|| {
            // SAFETY: the memory of `with_guest`, and the guest does not touch it while it rings.
            let buffer = unsafe { NonNull::slice_from_raw_parts(self.buffer, BUFFER_MAX).as_mut() };
            // Without an answer the guest finds its sentinel, and the operation fails.
            let _ = self.serve(buffer).ok();
        });
    }
}

impl PciFunction for Script {
    fn id(&self) -> FunctionId {
        FUNCTION
    }

    fn read_config_u16(&self, offset: u16) -> u16 {
        exclude(|| self.count(0, 1, 0));
        if offset == MESSAGE_CONTROL { self.control.get() } else { 0 }
    }

    fn read_config_u32(&self, _: u16) -> u32 {
        exclude(|| self.count(0, 1, 0));
        0
    }

    fn write_config_u16(&self, offset: u16, value: u16) {
        exclude(|| self.count(0, 1, 0));
        if offset == MESSAGE_CONTROL {
            self.control.set(value);
        }
    }

    fn deliver(&self, _: VectorIndex) {}
}

/// What a host answers that grants all vectors: the messages are as long as those of software functions.
fn configure_answer(vectors: u16) -> Result<Vec<u8>> {
    let answers = (0..vectors).map(|vector| VectorAnswer {
        table_message: Some(TableMessage { address: 0x5650_0000_0000, data: u32::from(vector) }),
        pending: false,
    });
    encoded(|buffer| {
        ConfigureAnswer::encode(TableMode::Direct, Reasons::empty(), Generation(1), answers, buffer)
    })
}

fn done(result: Option<()>) -> Result<()> {
    result.context("the guest half has refused")
}

fn encoded(encode: impl FnOnce(&mut [u8]) -> Result<usize, EncodeError>) -> Result<Vec<u8>> {
    let mut body = vec![0; BUFFER_MAX];
    let length = encode(&mut body)?;
    body.truncate(length);
    Ok(body)
}
