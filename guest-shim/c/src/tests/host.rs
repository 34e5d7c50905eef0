//! A host that grants what is asked for, in memory.

use core::ffi::c_void;
use std::cell::{Cell, RefCell};

use pvmsi_protocol::{
    BUFFER_MAX, BufferPage, CallError, CallId, ConfigureAnswer, Delivery, Encode, Features,
    Generation, Header, Limits, NegotiateAnswer, QueryFunctionAnswer, QueryVectorsAnswer, Reasons,
    ReleaseAnswer, Request, RestoreAnswer, Status, TableMessage, TableMode, UpdateAnswer,
    VectorAnswer, VectorSetup, VectorState, VectorUpdate, Version,
};

use crate::{
    PVMSI_DOORBELL_CALLBACK, pvmsi_call_buffer, pvmsi_client, pvmsi_client_init, pvmsi_delay,
    pvmsi_doorbell, pvmsi_status,
};

const PAGE: u32 = 0x77;

#[repr(C, align(4096))]
struct Memory([u8; BUFFER_MAX]);

/// The host, and the client's surroundings.
pub(super) struct Host {
    memory: Box<Memory>,
    /// Answers the next call with this error instead.
    pub(super) failure: Cell<Option<CallError>>,
    pub(super) calls: RefCell<Vec<CallId>>,
    pub(super) updates: RefCell<Vec<VectorUpdate>>,
    /// What the last `configure` asked for, and how many vectors it shall get at most.
    pub(super) setups: RefCell<(u16, Vec<VectorSetup>)>,
    pub(super) left: Cell<u16>,
    /// Microseconds that the client has waited.
    pub(super) waited: Cell<u64>,
    /// A vector with an event from before the switch.
    pub(super) pending: Cell<Option<u16>>,
    /// Another use of the client that is tried while a call runs.
    pub(super) intrusion: Cell<*mut pvmsi_client>,
    pub(super) intruded: Cell<Option<pvmsi_status>>,
}

impl Host {
    pub(super) fn new() -> Box<Self> {
        Box::new(Self {
            memory: Box::new(Memory([0; BUFFER_MAX])),
            failure: Cell::new(None),
            calls: RefCell::default(),
            updates: RefCell::default(),
            setups: RefCell::default(),
            left: Cell::new(u16::MAX),
            waited: Cell::new(0),
            pending: Cell::new(None),
            intrusion: Cell::new(core::ptr::null_mut()),
            intruded: Cell::new(None),
        })
    }

    pub(super) fn doorbell(&self) -> pvmsi_doorbell {
        pvmsi_doorbell {
            kind: PVMSI_DOORBELL_CALLBACK,
            number: 0,
            pointer: core::ptr::from_ref(self).cast_mut().cast(),
            ring: Some(ring),
        }
    }

    pub(super) fn buffer(&self, length: u32) -> pvmsi_call_buffer {
        pvmsi_call_buffer {
            start: core::ptr::from_ref(&*self.memory).cast_mut().cast(),
            physical: BufferPage(PAGE).address(),
            length,
        }
    }

    pub(super) fn delay(&self) -> pvmsi_delay {
        let context = core::ptr::from_ref(self).cast_mut().cast();
        pvmsi_delay { wait_us: Some(wait), context }
    }

    pub(super) fn client(&self) -> pvmsi_client {
        let mut client = blank();
        // SAFETY: the host outlives the client in every test, and nobody else uses its memory.
        let status = unsafe {
            pvmsi_client_init(&mut client, &self.doorbell(), &self.buffer(65536), &self.delay())
        };
        assert_eq!(status, pvmsi_status::Success);
        client
    }

    fn answer(&self, request: &Request<'_>, body: &mut [u8]) -> Result<usize, CallError> {
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        let generation = Generation(5);
        let length = match request {
            Request::Negotiate(request) => NegotiateAnswer {
                version: Version::CURRENT,
                features: request.features & Features::DIRECT,
                limits: Limits { buffer_bytes: 65536, vectors: 2048 },
            }
            .encode(body),
            Request::QueryFunction => QueryFunctionAnswer {
                msi_vectors: 0,
                msix_vectors: 64,
                assigned: 3,
                mode: TableMode::Trapped,
                reasons: Reasons::HOST_REVOKED,
                generation,
                delivery: Delivery::Host,
            }
            .encode(body),
            Request::QueryVectors(request) => {
                let states = (0..request.count).map(|index| VectorState {
                    assigned: true,
                    guest_message: None,
                    table_message: None,
                    masked: (request.first + index) % 2 == 1,
                    pending: false,
                });
                QueryVectorsAnswer::encode(generation, states, body)
            }
            Request::Configure(request) => {
                let setups = request.vectors.iter().map(Result::unwrap).collect();
                *self.setups.borrow_mut() = (request.requested, setups);
                let granted = request.requested.min(self.left.get());
                let vectors = (0..granted).map(|vector| VectorAnswer {
                    // As of a host that cannot read the table's first entry.
                    table_message: vector
                        .checked_sub(1)
                        .map(|_| TableMessage { address: 0x1_fee0_0000, data: vector.into() }),
                    pending: self.pending.get() == Some(vector),
                });
                let mode = TableMode::Direct;
                ConfigureAnswer::encode(mode, Reasons::empty(), generation, vectors, body)
            }
            Request::Update(request) => {
                let updates = request.vectors.into_iter().map(Result::unwrap);
                self.updates.borrow_mut().extend(updates);
                UpdateAnswer { generation }.encode(body)
            }
            Request::Release => ReleaseAnswer { generation }.encode(body),
            Request::Restore => RestoreAnswer {
                mode: TableMode::Trapped,
                reasons: Reasons::HOST_REVOKED,
                generation,
            }
            .encode(body),
        };
        Ok(length.unwrap())
    }
}

/// Storage as a kernel has it: anything.
pub(super) fn blank<T>() -> T {
    // SAFETY: used for C structures of numbers and pointers, for which 0 is a value.
    unsafe { core::mem::zeroed() }
}

unsafe extern "C" fn ring(host: *mut c_void, page: u32) {
    assert_eq!(page, PAGE);
    // SAFETY: `Host::doorbell` gives this pointer.
    let host = unsafe { &*host.cast::<Host>() };
    if let Some(client) = core::ptr::NonNull::new(host.intrusion.take()) {
        // SAFETY: the test's client, which is in use now.
        let status = unsafe { crate::pvmsi_negotiate(client.as_ptr(), core::ptr::null_mut()) };
        host.intruded.set(Some(status));
    }
    let start = host.buffer(0).start.cast::<u8>();
    // SAFETY: the client has handed its memory over.
    let memory = unsafe { core::slice::from_raw_parts_mut(start, BUFFER_MAX) };
    let header = Header::from_bytes(memory.first_chunk().unwrap());
    assert_eq!(header.check_request(), Ok(()));
    let (head, body) =
        memory[..usize::try_from(header.buffer_length).unwrap()].split_at_mut(Header::SIZE);
    let request = body[..usize::try_from(header.body_length).unwrap()].to_vec();
    let request = Request::parse(header.call, &request).unwrap();
    host.calls.borrow_mut().push(request.call());
    let (status, length) = match host.answer(&request, body) {
        Ok(length) => (Status::SUCCESS, length),
        Err(error) => (error.status(), error.encode(body).unwrap()),
    };
    head.copy_from_slice(&header.answered(status, u32::try_from(length).unwrap()).to_bytes());
}

unsafe extern "C" fn wait(host: *mut c_void, microseconds: u32) {
    // SAFETY: `Host::delay` gives this pointer.
    let host = unsafe { &*host.cast::<Host>() };
    host.waited.set(host.waited.get() + u64::from(microseconds));
}
