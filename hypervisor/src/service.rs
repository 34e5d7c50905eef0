//! The service: all functions of one VM, and the five places from which a VMM calls.
//!
//! Doorbell, trapped access, configuration space write, function reset, machine
//! reset. Calls for different functions run at the same time, calls for one are
//! serialised by its lock. There are no threads here and no global state.
//! Accesses and what concerns one function come by its [`FunctionHandle`].

mod buffers;
mod save;

use std::fmt;
use std::sync::Arc;

use pvmsi_protocol::{
    BUFFER_ALIGNMENT, BUFFER_MAX, BufferPage, CallError, ConfigureAnswer, Encode, EncodeError,
    Features, FunctionId, Header, Limits, MAGIC, NegotiateAnswer, Parameter, QueryVectorsAnswer,
    ReleaseAnswer, Request, RestoreAnswer, SMCCC_CALL, SMCCC_DISCOVER, ServiceBlock, SmcccStatus,
    Status, UpdateAnswer, VECTORS_MAX, VectorState, Version,
};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::capability::{NoMsix, Registers};
use crate::entry::{FunctionError, Functions, ModeChange, Observer};
use crate::function::PciFunction;
use crate::handle::FunctionHandle;
use crate::platform::Platform;
use crate::policy::{FunctionPolicy, Policy};
use crate::router::Router;
use crate::routes::Routes;
use crate::switch::{Decoded, Operation, Switch};
use crate::window::Window;
use buffers::{Bodies, Buffers};

/// What a service is created with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceConfig {
    /// The VM's policy; a function can have a lower one.
    pub policy: Policy,
    /// Which guest messages are valid.
    pub platform: Platform,
    /// The most vectors for which one `configure` makes events, sets interrupts up and attaches events before it answers *busy*: bounds how long a call holds a vCPU. A whole `configure` of `n` new vectors is `n` divided by this, rounded up, and two calls more: one that routes all of them, since KVM replaces its routing table as a whole, and one that commits. Each of them is at most one `VFIO_DEVICE_SET_IRQS` of so many vectors. `DESIGN.md` says what is not bounded: vectors that were there before, and functions whose set-up cannot grow.
    pub vectors_per_call: u16,
}

impl ServiceConfig {
    /// Policy direct, and no `configure` is ever busy.
    pub const fn new(platform: Platform) -> Self {
        Self { policy: Policy::Direct, platform, vectors_per_call: VECTORS_MAX }
    }
}

/// Why a function was not added.
#[derive(Debug, Error)]
pub enum AddFunctionError {
    /// The address is taken.
    #[error("there is already a function at {0}")]
    Exists(FunctionId),
    /// The function has no MSI-X.
    #[error(transparent)]
    NoMsix(#[from] NoMsix),
}

/// A function was not added, and comes back with its window.
#[derive(Error)]
#[error("{error}")]
pub struct NotAdded {
    /// Why.
    pub error: AddFunctionError,
    /// The function that was given. Nothing of it has been changed.
    pub function: Box<dyn PciFunction>,
    /// The window that was given. Nothing has been shown.
    pub window: Box<dyn Window>,
}

impl fmt::Debug for NotAdded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NotAdded").field("error", &self.error).finish_non_exhaustive()
    }
}

/// A doorbell that could not be answered: the guest finds its sentinel, which means *not supported*.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DoorbellError {
    /// Policy off.
    #[error("PV-MSI is switched off for this VM")]
    Off,
    /// Not even the header lies in the guest's RAM.
    #[error("the call buffer at {0:#x} is not in the guest's RAM")]
    BufferOutsideMemory(u64),
    /// There is no call buffer at that address.
    #[error("the page at {0:#x} does not start as a call buffer does")]
    NotACallBuffer(u64),
    /// The declared buffer is shorter than a header, so nothing may be written to it.
    #[error("the call buffer declares {0} bytes; a header alone takes 32")]
    BufferTooShort(u32),
}

/// The PV-MSI service of one VM. Share it in an [`Arc`] between vCPU threads. Dropping it removes all functions (not inside a seam: that one's function stays until its last handle and router go).
pub struct Service {
    config: ServiceConfig,
    routes: Arc<dyn Routes>,
    functions: Arc<Functions>,
    observer: Option<Observer>,
    buffers: Buffers,
}

impl Service {
    /// A service without functions.
    pub fn new(config: ServiceConfig, routes: Arc<dyn Routes>) -> Self {
        let (functions, buffers) = (Arc::default(), Buffers::new());
        Self { config, routes, functions, observer: None, buffers }
    }

    /// Has `observer` told of each change of a function's table mode and of the reasons for it, for functions that are added from now on.
    ///
    /// It is called on the thread whose call or access has made the change, a vCPU's most often, after the
    /// function's lock is free and before that call returns: it may ask for any function, and should be
    /// short. Changes that two threads make may come in either order ([`ModeChange::number`] tells), and
    /// what an access changes and changes back is not told; nor are the state in which a function is
    /// added, and its removal. A change that the observer makes itself calls it again.
    /// One that holds the service keeps it for ever: give it a [`Weak`](std::sync::Weak).
    pub fn on_change(mut self, observer: impl Fn(ModeChange) + Send + Sync + 'static) -> Self {
        self.observer = Some(Arc::new(observer));
        self
    }

    /// The VM's policy.
    pub fn policy(&self) -> Policy {
        self.config.policy
    }

    /// Adds a function under the address that the guest sees. Its handle is for the VMM's buses; the service keeps the function until it is [removed](FunctionHandle::remove). Waits for memory slots and the function, and for no other function.
    ///
    /// # Errors
    /// See [`AddFunctionError`]; function and window come back with it.
    pub fn add_function(
        &self,
        id: FunctionId,
        function: Box<dyn PciFunction>,
        window: Box<dyn Window>,
        policy: FunctionPolicy,
    ) -> Result<FunctionHandle, NotAdded> {
        let policy = FunctionPolicy { policy: policy.policy.min(self.config.policy), ..policy };
        let mut function = function;
        let registers = match Registers::find(function.as_mut()) {
            Ok(registers) => registers,
            Err(error) => return Err(NotAdded { error: error.into(), function, window }),
        };
        let (platform, routes) = (self.config.platform, Arc::clone(&self.routes));
        self.functions
            .add(id, self.observer.clone(), (function, window), |(function, window)| {
                Switch::new(id, platform, policy, registers, function, window, routes)
            })
            .map(|entry| FunctionHandle::new(entry, &self.functions))
            .map_err(|(function, window)| NotAdded {
                error: AddFunctionError::Exists(id),
                function,
                window,
            })
    }

    /// The functions, in the order of their addresses.
    pub fn functions(&self) -> Vec<FunctionHandle> {
        let functions = self.functions.all().into_iter();
        functions.map(|entry| FunctionHandle::new(entry, &self.functions)).collect()
    }

    /// The function at an address of the PCI bus; `None` when there is none.
    pub fn function(&self, id: FunctionId) -> Option<FunctionHandle> {
        let entry = self.functions.get(id).ok()?;
        Some(FunctionHandle::new(entry, &self.functions))
    }

    /// What finds functions by address, for a VMM without buses that do.
    pub fn router(&self) -> Router {
        Router::new(&self.functions)
    }

    /// What the guest shall find, by CPUID or by [`smccc`](Self::smccc); `None` when the policy is off. `port` and `mmio` are the doorbells that the VMM has.
    pub fn offer(&self, port: Option<u16>, mmio: Option<u64>) -> Option<ServiceBlock> {
        (self.config.policy != Policy::Off).then(|| ServiceBlock {
            version: Version::CURRENT,
            features: self.features(),
            doorbell_port: port,
            doorbell_address: mmio,
            limits: LIMITS,
        })
    }

    /// A guest has rung: reads the call buffer at this page, once, acts, and overwrites it with the answer.
    ///
    /// # Errors
    /// Only where the buffer itself cannot take an answer. Nothing has changed then; a VMM ignores it, or logs it at a bounded rate.
    pub fn doorbell<M: GuestMemoryBackend>(
        &self,
        memory: &M,
        page: u32,
    ) -> Result<(), DoorbellError> {
        if self.config.policy == Policy::Off {
            return Err(DoorbellError::Off);
        }
        let address = GuestAddress(BufferPage(page).address());
        let mut bytes = [0; Header::SIZE];
        memory
            .read_slice(&mut bytes, address)
            .map_err(|_| DoorbellError::BufferOutsideMemory(address.0))?;
        let header = Header::from_bytes(&bytes);
        if header.magic != MAGIC {
            return Err(DoorbellError::NotACallBuffer(address.0));
        }
        let length = usize::try_from(header.buffer_length).unwrap_or(usize::MAX);
        let Some(room) = length.checked_sub(Header::SIZE) else {
            return Err(DoorbellError::BufferTooShort(header.buffer_length));
        };
        // A buffer that is not all in RAM still gets its error, in its first page.
        let inside = length <= BUFFER_MAX && memory.check_range(address, length);
        let room = if inside { room } else { room.min(FIRST_PAGE_ROOM) };
        let body = address.0.checked_add(Header::SIZE as u64).map(GuestAddress);
        let (status, used) = self.buffers.lend(|Bodies { request, answer }| {
            let answer = answer.get_mut(..room).unwrap_or_default();
            let result = header.check_request().and_then(|()| {
                let length = usize::try_from(header.body_length).unwrap_or(usize::MAX);
                let request = request.get_mut(..length).filter(|_| inside);
                let read = request.zip(body).and_then(|(request, body)| {
                    memory.read_slice(request, body).is_ok().then_some(request)
                });
                let request = read.ok_or(CallError::parameter(Parameter::BufferLength))?;
                self.call(&header, request, answer)
            });
            let (status, used) = match result {
                Ok(used) => (Status::SUCCESS, used),
                Err(error) => {
                    self.count_failure(header.function);
                    (error.status(), error.encode(answer).unwrap_or(0))
                }
            };
            let bytes = answer.get(..used).unwrap_or_default();
            let written = body.is_some_and(|body| memory.write_slice(bytes, body).is_ok());
            (status, if written { u32::try_from(used).unwrap_or(0) } else { 0 })
        });
        let answer = header.answered(status, used).to_bytes();
        memory
            .write_slice(&answer, address)
            .map_err(|_| DoorbellError::BufferOutsideMemory(address.0))
    }

    /// A guest has made an SMCCC call (arm64, HVC or SMC) that KVM forwards: X0 to X3 of the answer. `None` when the call is not PV-MSI's, or the policy is off: the VMM answers [`SmcccStatus::NOT_SUPPORTED`]. `arguments` are X1 to X3, `offer` is what [`offer`](Self::offer) said.
    pub fn smccc<M: GuestMemoryBackend>(
        &self,
        memory: &M,
        offer: &ServiceBlock,
        function: u32,
        [argument, ..]: [u64; 3],
    ) -> Option<[u64; 4]> {
        if self.config.policy == Policy::Off {
            return None;
        }
        match function {
            SMCCC_DISCOVER => Some(offer.smccc_answer(argument)),
            SMCCC_CALL => {
                let page = u32::try_from(argument).ok();
                let answered = page.is_some_and(|page| self.doorbell(memory, page).is_ok());
                let status =
                    if answered { SmcccStatus::SUCCESS } else { SmcccStatus::INVALID_PARAMETER };
                Some([status.0, 0, 0, 0])
            }
            _ => None,
        }
    }

    /// Machine reset: all functions as at power-on. Waits as [`FunctionHandle::reset`] does, for each.
    ///
    /// # Errors
    /// [`FunctionError::Reentered`]; the other functions have been reset.
    pub fn reset(&self) -> Result<(), FunctionError> {
        self.operate_all(|operation| operation.reset_machine()).map(drop)
    }

    fn features(&self) -> Features {
        let mut features = self.config.platform.features();
        features.set(Features::DIRECT, self.config.policy == Policy::Direct);
        features
    }

    /// Changes all functions, one after the other. The first that cannot be changed is named when all others have been.
    fn operate_all<T>(
        &self,
        mut act: impl FnMut(Operation<'_>) -> T,
    ) -> Result<Vec<T>, FunctionError> {
        let mut failed = None;
        let mut done = Vec::new();
        for entry in self.functions.all() {
            match entry.operate(&mut act) {
                Ok(result) => done.push(result),
                // It goes at this moment, and has nothing to be changed.
                Err(FunctionError::Removed(_)) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(done), Err)
    }

    #[cfg(feature = "model")]
    pub(crate) fn entry(&self, id: FunctionId) -> Result<Arc<crate::entry::Entry>, FunctionError> {
        self.functions.get(id)
    }

    /// Looks at a function, under its lock.
    pub(crate) fn with<T>(
        &self,
        id: FunctionId,
        look: impl FnOnce(&mut Switch) -> T,
    ) -> Result<T, FunctionError> {
        self.functions.get(id)?.with(look)
    }

    /// Changes a function, under its lock.
    pub(crate) fn operate<T>(
        &self,
        id: FunctionId,
        act: impl FnOnce(Operation<'_>) -> T,
    ) -> Result<T, FunctionError> {
        self.functions.get(id)?.operate(act)
    }

    fn count_failure(&self, id: FunctionId) {
        // Nobody's failure where there is no such function.
        let _ = self.with(id, Switch::count_failure);
    }

    /// Acts, and writes the answer's body; how long it is.
    fn call(&self, header: &Header, request: &[u8], answer: &mut [u8]) -> Result<usize, CallError> {
        let request = Request::parse_head(header.call, request)?;
        let span =
            tracing::debug_span!("call", name = request.call().name(), function = %header.function);
        let _entered = span.enter();
        if let Request::Negotiate(request) = request {
            let version =
                request.version.common(Version::CURRENT).ok_or(CallError::NotSupported)?;
            let features = self.features().intersection(request.features);
            return fits(NegotiateAnswer { version, features, limits: LIMITS }.encode(answer));
        }
        let entry = self.functions.get(header.function).map_err(unanswered)?;
        entry
            .with(|switch| {
                switch.count_call();
                let bound = self.config.vectors_per_call;
                dispatch(switch, &entry.decoded, request, answer, bound)
            })
            .unwrap_or_else(|error| Err(unanswered(error)))
    }
}

/// What a call says of a function that does not answer.
fn unanswered(error: FunctionError) -> CallError {
    match error {
        FunctionError::Removed(_) => CallError::NoSuchFunction,
        // No guest can cause that.
        FunctionError::Reentered(_) => CallError::Hardware,
    }
}

/// Bytes after the header in the first page of a buffer.
const FIRST_PAGE_ROOM: usize = BUFFER_ALIGNMENT.saturating_sub(Header::SIZE);

const LIMITS: Limits = Limits { buffer_bytes: 65536, vectors: VECTORS_MAX };

/// Bytes of an answer beside its list, at most.
const ANSWER_HEAD_MAX: usize = 32;
/// Bytes of one vector in the answer of `configure`, at most: two flags, a 64-bit and a 32-bit varint.
const VECTOR_ANSWER_MAX: usize = 17;

/// A call on a function whose lock is held. What is answered is read when the operation is over.
fn dispatch(
    switch: &mut Switch,
    decoded: &Decoded,
    request: Request<'_>,
    buffer: &mut [u8],
    bound: u16,
) -> Result<usize, CallError> {
    let list_room = buffer.len().saturating_sub(ANSWER_HEAD_MAX);
    match request {
        Request::Configure(request) => {
            let needed = usize::from(request.requested).saturating_mul(VECTOR_ANSWER_MAX);
            if needed > list_room {
                return Err(CallError::parameter(Parameter::AnswerRoom));
            }
            let pending = Operation::begin(switch, decoded).configure(&request, bound)?;
            let (mode, reasons) = (switch.mode(), switch.reasons());
            let (generation, vectors) = (switch.generation(), switch.granted(pending));
            fits(ConfigureAnswer::encode(mode, reasons, generation, vectors, buffer))
        }
        Request::QueryVectors(request) => {
            let fit = list_room.checked_div(VectorState::ENCODED_MAX).unwrap_or(0);
            let vectors = switch.reader().query_vectors(request, fit)?;
            let generation = switch.generation();
            fits(QueryVectorsAnswer::encode(generation, vectors.into_iter(), buffer))
        }
        // The rest have short answers.
        _ if buffer.len() < ANSWER_HEAD_MAX => Err(CallError::parameter(Parameter::AnswerRoom)),
        Request::QueryFunction => fits(switch.query_function().encode(buffer)),
        Request::Update(request) => {
            Operation::begin(switch, decoded).update(&request)?;
            fits(UpdateAnswer { generation: switch.generation() }.encode(buffer))
        }
        Request::Release => {
            Operation::begin(switch, decoded).release();
            fits(ReleaseAnswer { generation: switch.generation() }.encode(buffer))
        }
        Request::Restore => {
            Operation::begin(switch, decoded).restore()?;
            let answer = RestoreAnswer {
                mode: switch.mode(),
                reasons: switch.reasons(),
                generation: switch.generation(),
            };
            fits(answer.encode(buffer))
        }
        // Answered before a function is looked up.
        Request::Negotiate(_) => Err(CallError::NotSupported),
    }
}

/// The length of an answer that there is room for.
fn fits(encoded: Result<usize, EncodeError>) -> Result<usize, CallError> {
    encoded.map_err(|_| CallError::parameter(Parameter::AnswerRoom))
}

impl Drop for Service {
    fn drop(&mut self) {
        for entry in self.functions.all() {
            // Another thread may do so at this moment.
            let _ = self.functions.remove(&entry);
        }
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let functions: Vec<_> = self.functions.all().iter().map(|entry| entry.id).collect();
        f.debug_struct("Service")
            .field("config", &self.config)
            .field("functions", &functions)
            .finish_non_exhaustive()
    }
}
