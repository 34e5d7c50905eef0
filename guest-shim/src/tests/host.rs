//! A host that answers calls as a test tells it to.

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;

use pvmsi_protocol::{
    BUFFER_MAX, BufferPage, CallError, CallId, ConfigureAnswer, Encode, EncodeError, Generation,
    GuestMessage, Header, Reasons, ReleaseAnswer, Request, RestoreAnswer, Status, TableMode,
    UpdateAnswer, VectorAnswer,
};

use crate::{CallBuffer, Client, Doorbell, FunctionId};

const PAGE: u32 = 0x1234;

/// What the host does with a call.
pub(super) enum Reply {
    /// Nobody is there.
    Silent,
    Error(CallError),
    /// Success, with a body of this many bytes, which the script has written.
    Success(usize),
    /// The script has written the whole buffer, header included.
    Raw,
}

impl From<Result<usize, EncodeError>> for Reply {
    fn from(length: Result<usize, EncodeError>) -> Self {
        Self::Success(length.unwrap())
    }
}

/// A call as the host has seen it, without the vectors of a list.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seen {
    pub(super) call: CallId,
    pub(super) function: FunctionId,
    pub(super) buffer_length: u32,
    /// Of `configure`.
    pub(super) sequence: u32,
    /// Of `update`, and the messages in `configure`.
    pub(super) messages: Vec<(u16, GuestMessage)>,
}

type Script<'s> = dyn FnMut(&Request<'_>, &mut [u8]) -> Reply + 's;

pub(super) struct Host<'s> {
    memory: NonNull<u8>,
    script: RefCell<Box<Script<'s>>>,
    pub(super) seen: RefCell<Vec<Seen>>,
    pub(super) rings: Cell<usize>,
}

impl<'s> Host<'s> {
    /// `script` gets the request and the buffer: its body for all replies but [`Reply::Raw`], which gets all of it.
    pub(super) fn new(script: impl FnMut(&Request<'_>, &mut [u8]) -> Reply + 's) -> Self {
        #[repr(align(4096))]
        struct Memory(#[expect(dead_code, reason = "used through a pointer")] [u8; BUFFER_MAX]);

        Self {
            memory: NonNull::from(Box::leak(Box::new(Memory([0; BUFFER_MAX])))).cast(),
            script: RefCell::new(Box::new(script)),
            seen: RefCell::new(Vec::new()),
            rings: Cell::new(0),
        }
    }

    pub(super) fn client(&self, length: usize) -> Client<'static, &Self> {
        self.client_with_delay(length, |_| {})
    }

    pub(super) fn client_with_delay(
        &self,
        length: usize,
        delay_us: fn(u32),
    ) -> Client<'static, &Self> {
        let physical = BufferPage(PAGE).address();
        // SAFETY: the memory is leaked, and only the host of this test touches it, in `ring`.
        let buffer = unsafe { CallBuffer::new(self.memory, length, physical) };
        Client::new(buffer.unwrap(), self, delay_us)
    }

    pub(super) fn calls(&self) -> Vec<CallId> {
        self.seen.borrow().iter().map(|seen| seen.call).collect()
    }
}

impl Doorbell for Host<'_> {
    fn ring(&self, page: BufferPage) {
        assert_eq!(page, BufferPage(PAGE));
        self.rings.set(self.rings.get() + 1);
        // SAFETY: nobody else uses the memory while the doorbell is rung.
        let buffer = unsafe { core::slice::from_raw_parts_mut(self.memory.as_ptr(), BUFFER_MAX) };
        let header = Header::from_bytes(buffer.first_chunk().unwrap());
        assert_eq!(header.check_request(), Ok(()));
        assert_eq!(header.status, Status::SENTINEL);
        let buffer = &mut buffer[..header.buffer_length as usize];
        let request = buffer[Header::SIZE..][..header.body_length as usize].to_vec();
        let request = Request::parse(header.call, &request).unwrap();
        self.seen.borrow_mut().push(see(&header, &request));

        let (head, body) = buffer.split_at_mut(Header::SIZE);
        let answered = match (self.script.borrow_mut())(&request, body) {
            Reply::Silent => return,
            Reply::Raw => {
                let raw = body[..Header::SIZE].to_vec();
                head.copy_from_slice(&raw);
                body.copy_within(Header::SIZE.., 0);
                return;
            }
            Reply::Error(error) => {
                let length = error.encode(body).unwrap();
                header.answered(error.status(), length.try_into().unwrap())
            }
            Reply::Success(length) => header.answered(Status::SUCCESS, length.try_into().unwrap()),
        };
        head.copy_from_slice(&answered.to_bytes());
    }
}

fn see(header: &Header, request: &Request<'_>) -> Seen {
    let (sequence, messages) = match request {
        Request::Configure(request) => (
            request.sequence.0,
            (0..)
                .zip(request.vectors)
                .filter_map(|(vector, setup)| Some((vector, setup.unwrap().message?)))
                .collect(),
        ),
        Request::Update(request) => (
            0,
            request
                .vectors
                .into_iter()
                .map(|update| update.unwrap())
                .map(|update| (update.vector.0, update.message))
                .collect(),
        ),
        _ => (0, Vec::new()),
    };
    Seen {
        call: request.call(),
        function: header.function,
        buffer_length: header.buffer_length,
        sequence,
        messages,
    }
}

/// A host that grants up to `vectors` vectors with a direct table, and reports those in `pending` once.
pub(super) fn direct_host(vectors: u16, pending: &[u16]) -> Host<'static> {
    let pending = pending.to_vec();
    Host::new(move |request, body| match request {
        Request::Configure(request) => {
            let granted = request.requested.min(vectors);
            ConfigureAnswer::encode(
                TableMode::Direct,
                Reasons::empty(),
                Generation(7),
                (0..granted).map(|vector| VectorAnswer {
                    table_message: None,
                    pending: pending.contains(&vector),
                }),
                body,
            )
            .into()
        }
        Request::Update(_) => UpdateAnswer { generation: Generation(7) }.encode(body).into(),
        Request::Release => ReleaseAnswer { generation: Generation(8) }.encode(body).into(),
        Request::Restore => RestoreAnswer {
            mode: TableMode::Trapped,
            reasons: Reasons::HOST_REVOKED,
            generation: Generation(9),
        }
        .encode(body)
        .into(),
        _ => Reply::Error(CallError::NotSupported),
    })
}
