//! The wire layer in C, made safe, in terms of the protocol crate.

use std::ffi::{CStr, c_char, c_uint, c_void};
use std::marker::PhantomData;
use std::mem::offset_of;
use std::ptr::{self, NonNull};

use pvmsi_protocol::{
    Busy, CallError, Delivery, Features, FunctionId, Generation, GuestMessage, Kind, Leaf, Limits,
    NegotiateAnswer, Parameter, ParameterError, QueryFunctionAnswer, Reasons, RestoreAnswer,
    Sequence, Status, TableMessage, TableMode, VectorAnswer, VectorSetup, VectorState,
    VectorUpdate, Version,
};

use super::raw;

/// Whether the structures have the same layout in C and in Rust. Nothing else of this module may be used before it has said so.
///
/// # Errors
/// Sizes and offsets on both sides.
pub fn check_layout() -> Result<(), String> {
    let ours = [
        size_of::<raw::Service>(),
        size_of::<raw::Terms>(),
        size_of::<raw::Client>(),
        size_of::<raw::Message>(),
        size_of::<raw::List>(),
        size_of::<raw::State>(),
        size_of::<raw::Vector>(),
        size_of::<raw::Setup>(),
        size_of::<raw::Configure>(),
        size_of::<raw::Answer>(),
        size_of::<raw::Update>(),
        offset_of!(raw::Client, vector),
        offset_of!(raw::Configure, answers),
    ];
    // SAFETY: a constant of the C side.
    let theirs = unsafe { raw::pvmsi_layout };
    if ours == theirs {
        Ok(())
    } else {
        Err(format!("pvmsi_wire.h has structures of {theirs:?} bytes, the suite of {ours:?}"))
    }
}

/// What discovery has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// Version of the host.
    pub version: Version,
    /// What the host offers.
    pub features: Features,
    /// Largest buffer in bytes, most vectors: as the host says, not checked.
    pub limits: (u32, u32),
    /// I/O port of the doorbell.
    pub port: Option<u16>,
    /// Guest physical address of the doorbell register.
    pub address: Option<u64>,
    /// The doorbell is an SMCCC call.
    pub smccc: bool,
}

impl Service {
    /// Looks for the service with a function that executes CPUID.
    pub fn find_by_cpuid(mut cpuid: impl FnMut(u32) -> Leaf) -> Option<Self> {
        unsafe extern "C" fn ask<F: FnMut(u32) -> Leaf>(
            context: *mut c_void,
            leaf: u32,
            words: *mut u32,
        ) {
            // SAFETY: the context is the function below, which nobody else uses during the call.
            let cpuid = unsafe { &mut *context.cast::<F>() };
            let Leaf { eax, ebx, ecx, edx } = cpuid(leaf);
            // SAFETY: the C side passes room for four words.
            unsafe { words.cast::<[u32; 4]>().write_unaligned([eax, ebx, ecx, edx]) };
        }
        fn callback<F: FnMut(u32) -> Leaf>(
            _: &F,
        ) -> unsafe extern "C" fn(*mut c_void, u32, *mut u32) {
            ask::<F>
        }
        let mut service = raw::Service::default();
        let ask = callback(&cpuid);
        let context = (&raw mut cpuid).cast();
        // SAFETY: the service can be written, and the callback takes this context.
        let found = unsafe { raw::pvmsi_find_cpuid(&raw mut service, ask, context) };
        found.then(|| Self::of(&service))
    }

    /// Looks for the service with a function that makes the SMCCC call *discover*: X0 to X2 of its answer.
    pub fn find_by_smccc(mut discover: impl FnMut(u32) -> [u64; 3]) -> Option<Self> {
        unsafe extern "C" fn ask<F: FnMut(u32) -> [u64; 3]>(
            context: *mut c_void,
            leaf: u32,
            registers: *mut u64,
        ) {
            // SAFETY: the context is the function below, which nobody else uses during the call.
            let discover = unsafe { &mut *context.cast::<F>() };
            // SAFETY: the C side passes room for three registers.
            unsafe { registers.cast::<[u64; 3]>().write_unaligned(discover(leaf)) };
        }
        fn callback<F: FnMut(u32) -> [u64; 3]>(
            _: &F,
        ) -> unsafe extern "C" fn(*mut c_void, u32, *mut u64) {
            ask::<F>
        }
        let mut service = raw::Service::default();
        let ask = callback(&discover);
        let context = (&raw mut discover).cast();
        // SAFETY: the service can be written, and the callback takes this context.
        let found = unsafe { raw::pvmsi_find_smccc(&raw mut service, ask, context) };
        found.then(|| Self::of(&service))
    }

    fn of(service: &raw::Service) -> Self {
        Self {
            version: Version { major: service.major, minor: service.minor },
            features: Features::from_bits_retain(service.features),
            limits: (service.largest_buffer, service.vectors),
            port: Some(service.port).filter(|port| *port != 0),
            address: Some(service.address).filter(|address| *address != 0),
            smccc: service.smccc,
        }
    }
}

/// A `struct pvmsi_client` and its doorbell.
pub struct Client<R> {
    raw: raw::Client,
    ring: R,
}

/// The answer of a `configure`, but for its vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Configured {
    /// How many vectors are assigned.
    pub granted: u16,
    /// Who answers the table.
    pub mode: TableMode,
    /// Why it is not direct.
    pub reasons: Reasons,
    /// Of the state after the call.
    pub generation: Generation,
}

/// A `struct pvmsi_configure`: what is asked, kept from one attempt to the next.
pub struct Configure {
    raw: raw::Configure,
    setups: Vec<raw::Setup>,
}

impl Configure {
    /// For so many vectors, of which the first start like this; `None` where the list is too long for its number.
    pub fn new(
        kind: Kind,
        requested: u16,
        sequence: Sequence,
        vectors: impl IntoIterator<Item = VectorSetup>,
    ) -> Option<Self> {
        let setup = |VectorSetup { message, masked }| {
            let GuestMessage { address, data } = message.unwrap_or_default();
            let has_message = message.is_some();
            raw::Setup { message: raw::Message { address, data }, has_message, masked }
        };
        let setups: Vec<_> = vectors.into_iter().map(setup).collect();
        let listed = u16::try_from(setups.len()).ok()?;
        let kind = match kind {
            Kind::Msi => 0,
            Kind::MsiX => 1,
        };
        let answers = raw::List { at: ptr::null(), end: ptr::null(), left: 0 };
        let raw = raw::Configure {
            kind,
            requested,
            listed,
            setups: ptr::null(),
            sequence: sequence.0,
            delay: 0,
            granted: 0,
            mode: 0,
            reasons: 0,
            generation: 0,
            answers,
        };
        Some(Self { raw, setups })
    }
}

impl<R: Fn(u32)> Client<R> {
    /// A client with a buffer of so many bytes at a guest physical address, whose doorbell takes a page number.
    ///
    /// # Safety
    /// The buffer can be read and written as long as the client exists, and is used by nobody but the client and, in `ring`, the host.
    pub unsafe fn new(buffer: NonNull<u8>, length: u32, address: u64, ring: R) -> Self {
        let raw = raw::Client {
            buffer: buffer.as_ptr(),
            address,
            length,
            ring: Some(Self::rung),
            context: ptr::null_mut(),
            terms: raw::Terms::default(),
            parameter: 0,
            vector: -1,
        };
        Self { raw, ring }
    }

    unsafe extern "C" fn rung(client: *mut raw::Client, page: u32) {
        // SAFETY: the C side passes the client that `call` has given it.
        let context = unsafe { (*client).context };
        // SAFETY: `call` has put the doorbell there.
        let ring = unsafe { &*context.cast_const().cast::<R>() };
        ring(page);
    }

    /// Makes a call with the client. In `call` the pointer can be given to the C side: its buffer is what [`new`](Self::new) demands, and its doorbell is in place.
    fn call(&mut self, call: impl FnOnce(*mut raw::Client) -> c_uint) -> Result<(), CallError> {
        self.raw.context = (&raw mut self.ring).cast();
        let status = call(&raw mut self.raw);
        match Status(status) {
            Status::SUCCESS => Ok(()),
            Status::NOT_SUPPORTED => Err(CallError::NotSupported),
            Status::NO_SUCH_FUNCTION => Err(CallError::NoSuchFunction),
            Status::PARAMETER => Err(self.parameter()),
            // `configure` puts what it knows in place of this.
            Status::BUSY => Err(CallError::Busy(Busy { sequence: Sequence::START, delay_us: 0 })),
            Status::NO_RESOURCES => Err(CallError::NoResources),
            Status::DENIED => Err(CallError::Denied),
            _ => Err(CallError::Hardware),
        }
    }

    fn parameter(&self) -> CallError {
        const ALL: [Parameter; 13] = [
            Parameter::Header,
            Parameter::Version,
            Parameter::BufferLength,
            Parameter::BodyLength,
            Parameter::Body,
            Parameter::AnswerRoom,
            Parameter::Kind,
            Parameter::Count,
            Parameter::Vector,
            Parameter::DuplicateVector,
            Parameter::Message,
            Parameter::Sequence,
            Parameter::SharedMessage,
        ];
        let number = usize::try_from(self.raw.parameter).unwrap_or(usize::MAX);
        match ALL.get(number) {
            Some(&parameter) => {
                let vector = u16::try_from(self.raw.vector).ok();
                CallError::Parameter(ParameterError { parameter, vector })
            }
            None => CallError::Hardware,
        }
    }

    /// The most vectors that a `configure` may ask for; 0 before `negotiate`.
    pub fn most_vectors(&self) -> u16 {
        self.raw.terms.vectors
    }

    /// Takes what `negotiate` has agreed on for another client.
    pub fn agree(&mut self, agreed: &NegotiateAnswer) {
        self.raw.terms = raw::Terms {
            minor: agreed.version.minor,
            features: agreed.features.bits(),
            largest_buffer: agreed.limits.buffer_bytes,
            vectors: agreed.limits.vectors,
        };
    }

    /// See `pvmsi_negotiate`.
    ///
    /// # Errors
    /// What the C side answers.
    pub fn negotiate(&mut self, features: Features) -> Result<NegotiateAnswer, CallError> {
        // SAFETY: see `call`.
        self.call(|client| unsafe { raw::pvmsi_negotiate(client, features.bits()) })?;
        let raw::Terms { minor, features, largest_buffer, vectors } = self.raw.terms;
        Ok(NegotiateAnswer {
            version: Version { minor, ..Version::V1_0 },
            features: Features::from_bits_retain(features),
            limits: Limits { buffer_bytes: largest_buffer, vectors },
        })
    }

    /// See `pvmsi_query_function`.
    ///
    /// # Errors
    /// What the C side answers.
    pub fn query_function(
        &mut self,
        FunctionId(function): FunctionId,
    ) -> Result<QueryFunctionAnswer, CallError> {
        let mut state = raw::State::default();
        let to = &raw mut state;
        // SAFETY: see `call`; the state can be written.
        self.call(|client| unsafe { raw::pvmsi_query_function(client, function, to) })?;
        Ok(QueryFunctionAnswer {
            msi_vectors: state.msi_vectors,
            msix_vectors: state.msix_vectors,
            assigned: state.assigned,
            mode: mode(state.mode),
            reasons: Reasons::from_bits_retain(state.reasons),
            generation: Generation(state.generation),
            delivery: match state.delivery {
                0 => Delivery::Unknown,
                1 => Delivery::Host,
                _ => Delivery::Bypass,
            },
        })
    }

    /// See `pvmsi_query_vectors`.
    ///
    /// # Errors
    /// What the C side answers.
    pub fn query_vectors(
        &mut self,
        FunctionId(function): FunctionId,
        first: u16,
        count: u16,
    ) -> Result<(Generation, States<'_>), CallError> {
        let mut generation = 0;
        let mut list = raw::List { at: ptr::null(), end: ptr::null(), left: 0 };
        let (number, vectors) = (&raw mut generation, &raw mut list);
        // SAFETY: see `call`; generation and list can be written.
        self.call(|client| unsafe {
            raw::pvmsi_query_vectors(client, function, first, count, number, vectors)
        })?;
        Ok((Generation(generation), States { list, buffer: PhantomData }))
    }

    /// See `pvmsi_configure`.
    ///
    /// # Errors
    /// What the C side answers.
    pub fn configure(
        &mut self,
        FunctionId(function): FunctionId,
        configure: &mut Configure,
    ) -> Result<(Configured, Answers<'_>), CallError> {
        configure.raw.setups = configure.setups.as_ptr();
        let to = &raw mut configure.raw;
        // SAFETY: see `call`; the structure can be written, and its list is as long as it says.
        let called = self.call(|client| unsafe { raw::pvmsi_configure(client, function, to) });
        let raw::Configure { sequence, delay, granted, reasons, generation, answers, .. } =
            configure.raw;
        called.map_err(|error| match error {
            CallError::Busy(_) => {
                CallError::Busy(Busy { sequence: Sequence(sequence), delay_us: delay })
            }
            error => error,
        })?;
        let configured = Configured {
            granted,
            mode: mode(configure.raw.mode),
            reasons: Reasons::from_bits_retain(reasons),
            generation: Generation(generation),
        };
        Ok((configured, Answers { list: answers, buffer: PhantomData }))
    }

    /// See `pvmsi_update`; at most 65,535 vectors.
    ///
    /// # Errors
    /// What the C side answers.
    pub fn update(
        &mut self,
        FunctionId(function): FunctionId,
        vectors: impl IntoIterator<Item = VectorUpdate>,
    ) -> Result<Generation, CallError> {
        let update = |VectorUpdate { vector, message: GuestMessage { address, data } }| {
            raw::Update { vector: vector.0, message: raw::Message { address, data } }
        };
        let updates: Vec<_> = vectors.into_iter().take(u16::MAX.into()).map(update).collect();
        let count = u16::try_from(updates.len()).unwrap_or(u16::MAX);
        let mut generation = 0;
        let (from, number) = (updates.as_ptr(), &raw mut generation);
        // SAFETY: see `call`; there are so many updates, and the generation can be written.
        self.call(|client| unsafe { raw::pvmsi_update(client, function, from, count, number) })?;
        Ok(Generation(generation))
    }

    /// See `pvmsi_release`.
    ///
    /// # Errors
    /// What the C side answers.
    pub fn release(&mut self, FunctionId(function): FunctionId) -> Result<Generation, CallError> {
        let mut generation = 0;
        let number = &raw mut generation;
        // SAFETY: see `call`; the generation can be written.
        self.call(|client| unsafe { raw::pvmsi_release(client, function, number) })?;
        Ok(Generation(generation))
    }

    /// See `pvmsi_restore`.
    ///
    /// # Errors
    /// What the C side answers.
    pub fn restore(
        &mut self,
        FunctionId(function): FunctionId,
    ) -> Result<RestoreAnswer, CallError> {
        let mut state = raw::State::default();
        let to = &raw mut state;
        // SAFETY: see `call`; the state can be written.
        self.call(|client| unsafe { raw::pvmsi_restore(client, function, to) })?;
        Ok(RestoreAnswer {
            mode: mode(state.mode),
            reasons: Reasons::from_bits_retain(state.reasons),
            generation: Generation(state.generation),
        })
    }
}

fn mode(number: c_uint) -> TableMode {
    if number == 0 { TableMode::Trapped } else { TableMode::Direct }
}

/// The vectors of a `configure`, read from the buffer one by one.
#[derive(Debug)]
pub struct Answers<'c> {
    list: raw::List,
    buffer: PhantomData<&'c mut [u8]>,
}

impl Iterator for Answers<'_> {
    type Item = VectorAnswer;

    fn next(&mut self) -> Option<VectorAnswer> {
        let mut answer = raw::Answer::default();
        // SAFETY: the list is the C side's, and no other call has used the buffer since; the item
        // can be written.
        let there = unsafe { raw::pvmsi_next_answer(&raw mut self.list, &raw mut answer) };
        let raw::Answer { has_message, pending, message: raw::Message { address, data } } = answer;
        let table_message = has_message.then_some(TableMessage { address, data });
        there.then_some(VectorAnswer { table_message, pending })
    }
}

/// The vectors of a `query-vectors`, read from the buffer one by one.
#[derive(Debug)]
pub struct States<'c> {
    list: raw::List,
    buffer: PhantomData<&'c mut [u8]>,
}

impl Iterator for States<'_> {
    type Item = VectorState;

    fn next(&mut self) -> Option<VectorState> {
        let mut vector = raw::Vector::default();
        // SAFETY: as in `Answers`.
        let there = unsafe { raw::pvmsi_next_vector(&raw mut self.list, &raw mut vector) };
        let raw::Vector { assigned, has_guest, has_table, masked, pending, guest, table } = vector;
        let guest = GuestMessage { address: guest.address, data: guest.data };
        let table = TableMessage { address: table.address, data: table.data };
        there.then_some(VectorState {
            assigned,
            guest_message: has_guest.then_some(guest),
            table_message: has_table.then_some(table),
            masked,
            pending,
        })
    }
}

/// See `pvmsi_function`.
pub fn function(segment: u16, bus: u8, devfn: u8) -> FunctionId {
    FunctionId(raw::pvmsi_test_function(segment, bus, devfn))
}

/// See `pvmsi_configure_length`: bytes.
pub fn configure_length(vectors: u16) -> u32 {
    raw::pvmsi_test_configure_length(vectors)
}

/// See `pvmsi_configure_vectors`: how many fit into a buffer of so many bytes.
pub fn configure_vectors(length: u32) -> u16 {
    raw::pvmsi_test_configure_vectors(length)
}

/// Lists of words of the C side.
#[derive(Clone, Copy, Debug)]
pub enum Words {
    /// Names of statuses.
    Status,
    /// What to do about statuses.
    Remedy,
    /// Names of parameters.
    Parameter,
    /// Names of modes.
    Mode,
    /// Names of deliveries.
    Delivery,
    /// Names of reasons, by their bits.
    Reason,
    /// What reasons mean, by their bits.
    ReasonWords,
}

impl Words {
    /// The words for a number.
    pub fn of(self, number: u32) -> &'static str {
        let text: *const c_char = match self {
            Self::Status => raw::pvmsi_status_name(number),
            Self::Remedy => raw::pvmsi_status_remedy(number),
            Self::Parameter => raw::pvmsi_parameter_name(number),
            Self::Mode => raw::pvmsi_mode_name(number),
            Self::Delivery => raw::pvmsi_delivery_name(number),
            Self::Reason => raw::pvmsi_reason_name(number),
            Self::ReasonWords => raw::pvmsi_reason_words(number),
        };
        // SAFETY: all of them are constant strings of the C side.
        unsafe { CStr::from_ptr(text) }.to_str().unwrap_or_default()
    }
}
