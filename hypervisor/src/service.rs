//! The service: all functions of one VM, and the five places from which a VMM calls.
//!
//! Doorbell, trapped access, configuration space write, function reset, machine
//! reset. Calls for different functions run at the same time, calls for one are
//! serialised by its lock. There are no threads here and no global state.

mod save;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use pvmsi_protocol::{
    BUFFER_ALIGNMENT, BUFFER_MAX, BufferPage, CallError, ConfigureAnswer, Encode, Features,
    FunctionId, Generation, Header, Limits, MAGIC, NegotiateAnswer, Parameter, QueryVectorsAnswer,
    Reasons, ReleaseAnswer, Request, RestoreAnswer, SMCCC_CALL, SMCCC_DISCOVER, ServiceBlock,
    SmcccStatus, Status, TableMode, UpdateAnswer, VECTORS_MAX, VectorState, Version,
};
use smallvec::SmallVec;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::capability::NoMsix;
use crate::counters::Counters;
use crate::function::{Isolation, PciFunction};
use crate::layout::BarIndex;
use crate::platform::Platform;
use crate::policy::{FunctionPolicy, Policy};
use crate::routes::Routes;
use crate::switch::{Decoded, Operation, Switch};
use crate::sync::{Mutex, RwLock};
use crate::window::Window;

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

/// A function could not be added.
#[derive(Debug, Error)]
pub enum AddFunctionError {
    /// The address is taken.
    #[error("there is already a function at {0}")]
    Exists(FunctionId),
    /// The function has no MSI-X.
    #[error(transparent)]
    NoMsix(#[from] NoMsix),
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

/// How a function stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionStatus {
    /// Vectors that are assigned.
    pub assigned: u16,
    /// Vectors of the table.
    pub vectors: u16,
    /// Who answers the table.
    pub mode: TableMode,
    /// Why the table is not direct.
    pub reasons: Reasons,
    /// Whether the host confines the function.
    pub isolation: Isolation,
    /// What happened so far.
    pub counters: Counters,
    /// The most vectors that one `configure` call has set up.
    pub largest_call: u16,
    /// The number of the state.
    pub generation: Generation,
}

/// The PV-MSI service of one VM. Share it in an [`Arc`] between vCPU threads.
pub struct Service {
    config: ServiceConfig,
    routes: Arc<dyn Routes>,
    functions: RwLock<BTreeMap<FunctionId, Arc<Entry>>>,
}

/// A function: where it is decoded, to be looked up on each exit, and its switch.
pub(crate) struct Entry {
    pub(crate) decoded: Decoded,
    /// None when it has been taken out of the service, and a vCPU has found it before.
    switch: Mutex<Option<Switch>>,
}

impl Service {
    /// A service without functions.
    pub fn new(config: ServiceConfig, routes: Arc<dyn Routes>) -> Self {
        Self { config, routes, functions: RwLock::new(BTreeMap::new()) }
    }

    /// The VM's policy.
    pub fn policy(&self) -> Policy {
        self.config.policy
    }

    /// Adds a function under the address that the guest sees.
    ///
    /// # Errors
    /// See [`AddFunctionError`].
    pub fn add_function(
        &self,
        id: FunctionId,
        function: Box<dyn PciFunction>,
        window: Box<dyn Window>,
        policy: FunctionPolicy,
    ) -> Result<(), AddFunctionError> {
        let policy = FunctionPolicy { policy: policy.policy.min(self.config.policy), ..policy };
        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        if functions.contains_key(&id) {
            return Err(AddFunctionError::Exists(id));
        }
        let routes = Arc::clone(&self.routes);
        let switch = Switch::new(id, self.config.platform, policy, function, window, routes)?;
        let decoded = Decoded::default();
        decoded.publish(&switch);
        let entry = Entry { decoded, switch: Mutex::new(Some(switch)) };
        functions.insert(id, Arc::new(entry));
        Ok(())
    }

    /// Takes a function out: its pages, its routes, its interrupts, its open files. Whatever a vCPU still wants of it is of no effect. `false` when there is none.
    pub fn remove_function(&self, id: FunctionId) -> bool {
        let Some(entry) = self.entry(id) else { return false };
        let mut slot = entry.switch.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(switch) = slot.take() else { return false };
        // Last: no call says that the function is gone while its pages are mapped.
        let _listed = Listed { service: self, id };
        drop(switch);
        entry.decoded.withdraw();
        true
    }

    /// The addresses of all functions, in order.
    pub fn functions(&self) -> Vec<FunctionId> {
        self.functions.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
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
        let result = header.check_request().and_then(|()| {
            if inside {
                self.call(memory, address, &header, room)
            } else {
                Err(CallError::parameter(Parameter::BufferLength))
            }
        });
        let (status, body) = match result {
            Ok(body) => (Status::SUCCESS, body),
            Err(error) => {
                self.count_failure(header.function);
                let mut body = Body::from_elem(0, room.min(64));
                let used = error.encode(&mut body).unwrap_or(0);
                body.truncate(used);
                (error.status(), body)
            }
        };
        let used = u32::try_from(body.len()).unwrap_or(0);
        let written = address
            .0
            .checked_add(Header::SIZE as u64)
            .is_some_and(|start| memory.write_slice(&body, GuestAddress(start)).is_ok());
        let answer = header.answered(status, if written { used } else { 0 }).to_bytes();
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

    /// A read that exited. `true` when it is a function's, and `data` is filled.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) -> bool {
        let Some((entry, bar, offset)) = self.find(address) else { return false };
        entry.with(|switch| switch.reader().bar_read(bar, offset, data)).is_some()
    }

    /// A write that exited. `true` when it is a function's.
    pub fn mmio_write(&self, address: u64, data: &[u8]) -> bool {
        let Some((entry, bar, offset)) = self.find(address) else { return false };
        entry.with(|switch| switch.bar_write(&entry.decoded, bar, offset, data)).is_some()
    }

    /// A read of configuration space. `false` when there is no such function.
    pub fn config_read(&self, id: FunctionId, offset: u64, data: &mut [u8]) -> bool {
        self.with(id, |switch| switch.reader().config_read(offset, data)).is_some()
    }

    /// A write of configuration space: MSI-X control, decoding, BARs, power state and resets take effect before it returns. `false` when there is no such function.
    pub fn config_write(&self, id: FunctionId, offset: u64, data: &[u8]) -> bool {
        self.operate(id, |operation| operation.config_write(offset, data)).is_some()
    }

    /// Resets one function, as a function level reset does: what is assigned survives. `false` when there is no such function.
    pub fn reset_function(&self, id: FunctionId) -> bool {
        self.operate(id, |operation| operation.reset_function()).is_some()
    }

    /// Machine reset: all functions as at power-on.
    pub fn reset(&self) {
        for id in self.functions() {
            self.operate(id, |operation| operation.reset_machine());
        }
    }

    /// Takes a function's table back, until [`allow`](Self::allow). `false` when there is no such function.
    pub fn revoke(&self, id: FunctionId) -> bool {
        self.operate(id, |operation| operation.revoke()).is_some()
    }

    /// Gives a table back that was revoked, if all else allows it. `false` when there is no such function.
    pub fn allow(&self, id: FunctionId) -> bool {
        self.operate(id, |operation| operation.allow()).is_some()
    }

    /// How a function stands; `None` when there is no such function.
    pub fn status(&self, id: FunctionId) -> Option<FunctionStatus> {
        self.with(id, |switch| FunctionStatus {
            assigned: switch.assigned(),
            vectors: switch.layout().vectors(),
            mode: switch.mode(),
            reasons: switch.reasons(),
            isolation: switch.isolation().clone(),
            counters: switch.counters(),
            largest_call: switch.largest_call(),
            generation: switch.generation(),
        })
    }

    fn features(&self) -> Features {
        let mut features = Features::empty();
        features.set(Features::DIRECT, self.config.policy == Policy::Direct);
        features.set(Features::EXTENDED_DESTINATION_ID, self.config.platform == Platform::X86_64);
        features
    }

    /// Looks at a function, under its lock.
    pub(crate) fn with<T>(&self, id: FunctionId, look: impl FnOnce(&mut Switch) -> T) -> Option<T> {
        self.entry(id)?.with(look)
    }

    /// Changes a function, under its lock.
    pub(crate) fn operate<T>(
        &self,
        id: FunctionId,
        act: impl FnOnce(Operation<'_>) -> T,
    ) -> Option<T> {
        let entry = self.entry(id)?;
        entry.with(|switch| act(Operation::begin(switch, &entry.decoded)))
    }

    pub(crate) fn entry(&self, id: FunctionId) -> Option<Arc<Entry>> {
        self.functions.read().unwrap_or_else(PoisonError::into_inner).get(&id).map(Arc::clone)
    }

    fn find(&self, address: u64) -> Option<(Arc<Entry>, BarIndex, u64)> {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        functions.values().find_map(|entry| {
            let (bar, offset) = entry.decoded.find(address)?;
            Some((Arc::clone(entry), bar, offset))
        })
    }

    fn count_failure(&self, id: FunctionId) {
        self.with(id, Switch::count_failure);
    }

    /// Reads the body, acts, and returns the answer's body, at most `room` bytes.
    fn call<M: GuestMemoryBackend>(
        &self,
        memory: &M,
        address: GuestAddress,
        header: &Header,
        room: usize,
    ) -> Result<Body, CallError> {
        let mut body = Body::from_elem(0, usize::try_from(header.body_length).unwrap_or(0));
        let start = address.0.checked_add(Header::SIZE as u64).map(GuestAddress);
        let read = start.is_some_and(|start| memory.read_slice(&mut body, start).is_ok());
        if !read {
            return Err(CallError::parameter(Parameter::BufferLength));
        }
        let request = Request::parse(header.call, &body)?;
        let span =
            tracing::debug_span!("call", name = request.call().name(), function = %header.function);
        let _entered = span.enter();
        if let Request::Negotiate(request) = request {
            let version =
                request.version.common(Version::CURRENT).ok_or(CallError::NotSupported)?;
            let features = self.features().intersection(request.features);
            let answer = NegotiateAnswer { version, features, limits: LIMITS };
            return encode(room, ANSWER_HEAD_MAX, |buffer| answer.encode(buffer));
        }
        let entry = self.entry(header.function).ok_or(CallError::NoSuchFunction)?;
        entry
            .with(|switch| {
                switch.count_call();
                let bound = self.config.vectors_per_call;
                dispatch(switch, &entry.decoded, request, room, bound)
            })
            .unwrap_or(Err(CallError::NoSuchFunction))
    }
}

/// A request or an answer; short ones need no memory of their own.
type Body = SmallVec<[u8; 64]>;

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
    room: usize,
    bound: u16,
) -> Result<Body, CallError> {
    let list_room = room.saturating_sub(ANSWER_HEAD_MAX);
    match request {
        Request::Configure(request) => {
            let needed = usize::from(request.requested).saturating_mul(VECTOR_ANSWER_MAX);
            if needed > list_room {
                return Err(CallError::parameter(Parameter::AnswerRoom));
            }
            let pending = Operation::begin(switch, decoded).configure(&request, bound)?;
            let (mode, reasons) = (switch.mode(), switch.reasons());
            let (generation, vectors) = (switch.generation(), switch.granted(pending));
            let most = ANSWER_HEAD_MAX.saturating_add(needed);
            encode(room, most, |buffer| {
                ConfigureAnswer::encode(mode, reasons, generation, vectors, buffer)
            })
        }
        Request::QueryVectors(request) => {
            let fit = list_room.checked_div(VectorState::ENCODED_MAX).unwrap_or(0);
            let vectors = switch.reader().query_vectors(request, fit)?;
            let generation = switch.generation();
            let needed = vectors.len().saturating_mul(VectorState::ENCODED_MAX);
            encode(room, ANSWER_HEAD_MAX.saturating_add(needed), |buffer| {
                QueryVectorsAnswer::encode(generation, vectors.into_iter(), buffer)
            })
        }
        // The rest have short answers.
        _ if room < ANSWER_HEAD_MAX => Err(CallError::parameter(Parameter::AnswerRoom)),
        Request::QueryFunction => {
            let answer = switch.query_function();
            encode(room, ANSWER_HEAD_MAX, |buffer| answer.encode(buffer))
        }
        Request::Update(request) => {
            Operation::begin(switch, decoded).update(&request)?;
            let answer = UpdateAnswer { generation: switch.generation() };
            encode(room, ANSWER_HEAD_MAX, |buffer| answer.encode(buffer))
        }
        Request::Release => {
            Operation::begin(switch, decoded).release();
            let answer = ReleaseAnswer { generation: switch.generation() };
            encode(room, ANSWER_HEAD_MAX, |buffer| answer.encode(buffer))
        }
        Request::Restore => {
            Operation::begin(switch, decoded).restore()?;
            let answer = RestoreAnswer {
                mode: switch.mode(),
                reasons: switch.reasons(),
                generation: switch.generation(),
            };
            encode(room, ANSWER_HEAD_MAX, |buffer| answer.encode(buffer))
        }
        // Answered before a function is looked up.
        Request::Negotiate(_) => Err(CallError::NotSupported),
    }
}

/// Encodes an answer of at most `most` bytes, and no more than there is room for: a buffer may be 64 KiB, and most answers are a few bytes.
fn encode(
    room: usize,
    most: usize,
    write: impl FnOnce(&mut [u8]) -> Result<usize, pvmsi_protocol::EncodeError>,
) -> Result<Body, CallError> {
    let mut body = Body::from_elem(0, room.min(most));
    let used = write(&mut body).map_err(|_| CallError::parameter(Parameter::AnswerRoom))?;
    body.truncate(used);
    Ok(body)
}

/// A function that is being removed: the list has it until this goes, also in a panic.
struct Listed<'a> {
    service: &'a Service,
    id: FunctionId,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        let mut functions = self.service.functions.write().unwrap_or_else(PoisonError::into_inner);
        functions.remove(&self.id);
    }
}

impl Entry {
    /// Gives the function's switch to one caller at a time. `None` when it has been taken out.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Switch) -> T) -> Option<T> {
        // A panic in another call cannot be undone, but the state is still the best there is.
        self.switch.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(act)
    }
}
