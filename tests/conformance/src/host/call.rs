//! Calls, as a guest makes them, and what every answer must be like whatever the call.

use alloc::borrow::ToOwned;
use alloc::vec::Vec;

use pvmsi_protocol::{
    CallError, CallId, ConfigureAnswer, ConfigureRequest, Encode, FunctionId, Generation,
    GuestMessage, Header, Kind, MAGIC, QueryFunctionAnswer, QueryVectorsAnswer,
    QueryVectorsRequest, Reasons, ReleaseAnswer, RestoreAnswer, Sequence, Status, TableMode,
    UpdateAnswer, UpdateRequest, VectorAnswer, VectorIndex, VectorSetup, VectorState, VectorUpdate,
    Version,
};

use super::machine::Machine;
use crate::suite::{Stop, Verdict, equal, holds};

/// The buffer of most calls: 64 KiB from here on.
pub(crate) const PAGE: u32 = 0x10;
/// Its length.
pub(crate) const BUFFER: u32 = 0x1_0000;
const HEADER: u32 = 32;
/// Bytes that most bodies fit into.
const SHORT: usize = 512;

/// What a `configure` has answered.
#[derive(Clone, Debug)]
pub(crate) struct Configured {
    pub(crate) granted: u16,
    pub(crate) mode: TableMode,
    pub(crate) reasons: Reasons,
    pub(crate) generation: Generation,
    pub(crate) vectors: Vec<VectorAnswer>,
}

impl Configured {
    /// The vectors that were reported as pending.
    pub(crate) fn pending(&self) -> Vec<u16> {
        (0..).zip(&self.vectors).filter(|(_, vector)| vector.pending).map(|(at, _)| at).collect()
    }
}

/// The header of a request.
pub(crate) fn request(call: CallId, function: FunctionId, body: usize) -> Header {
    Header {
        magic: MAGIC,
        version: Version::V1_0,
        call: call.number(),
        function,
        buffer_length: BUFFER,
        body_length: u32::try_from(body).unwrap_or(u32::MAX),
        status: Status::SENTINEL,
        reserved: 0,
    }
}

/// Writes a body into bytes of its own.
pub(crate) fn encoded(body: &impl Encode) -> Vec<u8> {
    bytes(|buffer| body.encode(buffer))
}

/// Writes a body with a function into bytes of its own.
pub(crate) fn bytes<E>(write: impl Fn(&mut [u8]) -> Result<usize, E>) -> Vec<u8> {
    let mut buffer = vec![0; SHORT];
    // Most bodies are short, and zeros are not for nothing where a processor is slow.
    let used = write(&mut buffer).or_else(|_| {
        buffer = vec![0; 0x1_0000];
        write(&mut buffer)
    });
    buffer.truncate(used.unwrap_or(0));
    buffer
}

/// The body of `configure`.
pub(crate) fn configure_body(
    kind: Kind,
    requested: u16,
    sequence: Sequence,
    setups: &[VectorSetup],
) -> Vec<u8> {
    let setups = setups.iter().copied();
    bytes(|buffer| ConfigureRequest::encode(kind, requested, sequence, setups.clone(), buffer))
}

/// The body of `update`.
pub(crate) fn update_body(updates: &[(u16, GuestMessage)]) -> Vec<u8> {
    let updates = updates
        .iter()
        .map(|&(vector, message)| VectorUpdate { vector: VectorIndex(vector), message });
    bytes(|buffer| UpdateRequest::encode(updates.clone(), buffer))
}

impl Machine {
    /// Puts a request into the buffer at `page`.
    pub(crate) fn put(&self, page: u32, header: &Header, body: &[u8]) {
        let address = u64::from(page) << 12;
        self.host.ram().write(address, &header.to_bytes());
        self.host.ram().write(address + u64::from(HEADER), body);
    }

    /// Header and body of the answer at `page`; the body is as long as the header says, but no longer than a buffer can be.
    pub(crate) fn answer(&self, page: u32) -> (Header, Vec<u8>) {
        let address = u64::from(page) << 12;
        let mut bytes = [0; Header::SIZE];
        self.host.ram().read(address, &mut bytes);
        let header = Header::from_bytes(&bytes);
        let mut body = vec![0; usize::try_from(header.body_length.min(BUFFER)).unwrap_or(0)];
        self.host.ram().read(address + u64::from(HEADER), &mut body);
        (header, body)
    }

    /// Fills the buffer at `page` and rings; header and body of the answer, checked for what all answers must keep (W-202, W-203).
    pub(crate) fn ring(
        &self,
        page: u32,
        header: Header,
        body: &[u8],
    ) -> Verdict<(Header, Vec<u8>)> {
        self.put(page, &header, body);
        self.host.ring(page);
        self.checked_answer(page, &header)
    }

    /// The answer at `page` to a request.
    pub(crate) fn checked_answer(&self, page: u32, request: &Header) -> Verdict<(Header, Vec<u8>)> {
        let (answer, body) = self.answer(page);
        check_answer(request, &answer)?;
        Ok((answer, body))
    }

    /// A call with a header of the test's own.
    pub(crate) fn raw(
        &self,
        page: u32,
        header: Header,
        body: &[u8],
    ) -> Verdict<Result<Vec<u8>, CallError>> {
        let (answer, body) = self.ring(page, header, body)?;
        Ok(error_of(&answer, &body)?.map_or(Ok(body), Err))
    }

    pub(crate) fn call(&self, call: CallId, body: &[u8]) -> Verdict<Result<Vec<u8>, CallError>> {
        self.raw(PAGE, request(call, self.function, body.len()), body)
    }

    /// `configure`, whatever it answers.
    pub(crate) fn try_configure(
        &self,
        requested: u16,
        sequence: Sequence,
        setups: &[VectorSetup],
    ) -> Verdict<Result<Configured, CallError>> {
        let body = configure_body(Kind::MsiX, requested, sequence, setups);
        match self.call(CallId::Configure, &body)? {
            Ok(answer) => configured(&answer, requested).map(Ok),
            Err(error) => Ok(Err(error)),
        }
    }

    /// `configure`, which must succeed.
    pub(crate) fn configure_with(
        &self,
        requested: u16,
        setups: &[VectorSetup],
    ) -> Verdict<Configured> {
        success("configure", self.try_configure(requested, Sequence::START, setups)?)
    }

    /// `configure` of all, unmasked, each vector with the message of its number.
    pub(crate) fn configure(&self, requested: u16) -> Verdict<Configured> {
        self.configure_with(requested, &self.setups(requested, false))
    }

    /// `configure` of all vectors, which must give a direct table.
    pub(crate) fn configure_direct(&self) -> Verdict<Configured> {
        let answer = self.configure(self.vectors)?;
        equal("granted", answer.granted, self.vectors)?;
        equal("mode", answer.mode, TableMode::Direct)?;
        self.mapped("the table's pages are mapped when configure says direct", true)?;
        Ok(answer)
    }

    /// So many vectors, each with the message of its number.
    pub(crate) fn setups(&self, count: u16, masked: bool) -> Vec<VectorSetup> {
        (0..count).map(|at| VectorSetup { message: Some(self.message(at)), masked }).collect()
    }

    pub(crate) fn try_update(
        &self,
        updates: &[(u16, GuestMessage)],
    ) -> Verdict<Result<Generation, CallError>> {
        match self.call(CallId::Update, &update_body(updates))? {
            Ok(answer) => {
                let read = decoded("update", UpdateAnswer::decode(&answer))?;
                minimal(&answer, &encoded(&read))?;
                Ok(Ok(read.generation))
            }
            Err(error) => Ok(Err(error)),
        }
    }

    /// `update`, which must succeed; each vector gets the message of a number.
    pub(crate) fn update(&self, updates: &[(u16, u16)]) -> Verdict<Generation> {
        let updates: Vec<_> =
            updates.iter().map(|&(vector, number)| (vector, self.message(number))).collect();
        success("update", self.try_update(&updates)?)
    }

    pub(crate) fn query(&self) -> Verdict<QueryFunctionAnswer> {
        let answer = success("query-function", self.call(CallId::QueryFunction, &[])?)?;
        let read = decoded("query-function", QueryFunctionAnswer::decode(&answer))?;
        minimal(&answer, &encoded(&read))?;
        check_mode(read.mode, read.reasons)?;
        Ok(read)
    }

    pub(crate) fn try_query_vectors(
        &self,
        first: u16,
        count: u16,
    ) -> Verdict<Result<(Generation, Vec<VectorState>), CallError>> {
        let body = encoded(&QueryVectorsRequest { first, count });
        match self.call(CallId::QueryVectors, &body)? {
            Ok(answer) => vector_states(&answer).map(Ok),
            Err(error) => Ok(Err(error)),
        }
    }

    /// `query-vectors` of the whole table, in as many calls as it takes.
    pub(crate) fn states(&self) -> Verdict<Vec<VectorState>> {
        let mut states = Vec::new();
        let mut first = 0;
        while first < self.vectors {
            let answer = self.try_query_vectors(first, self.vectors - first)?;
            let (_, some) = success("query-vectors", answer)?;
            holds("query-vectors answers at least one vector", !some.is_empty())?;
            states.extend(some);
            first = u16::try_from(states.len()).unwrap_or(u16::MAX);
        }
        equal("vectors that query-vectors has answered", first, self.vectors)?;
        Ok(states)
    }

    pub(crate) fn release(&self) -> Verdict<Generation> {
        let answer = success("release", self.call(CallId::Release, &[])?)?;
        let read = decoded("release", ReleaseAnswer::decode(&answer))?;
        minimal(&answer, &encoded(&read))?;
        Ok(read.generation)
    }

    pub(crate) fn restore(&self) -> Verdict<RestoreAnswer> {
        let answer = success("restore", self.call(CallId::Restore, &[])?)?;
        let read = decoded("restore", RestoreAnswer::decode(&answer))?;
        minimal(&answer, &encoded(&read))?;
        check_mode(read.mode, read.reasons)?;
        Ok(read)
    }

    /// Everything that a failed call must not change.
    pub(crate) fn snapshot(&self) -> Verdict<Snapshot> {
        let (state, mut entries) = (self.query()?, self.entries());
        if state.mode == TableMode::Direct {
            // Of a vector that is nobody's, the function's own table shows whatever it holds.
            for [message @ .., _] in entries.iter_mut().skip(state.assigned.into()) {
                *message = [0; 3];
            }
        }
        let (routes, direct) = (self.routes(), self.is_direct());
        Ok(Snapshot { state, states: self.states()?, entries, routes, direct })
    }
}

/// What can be seen of a function from outside.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Snapshot {
    state: QueryFunctionAnswer,
    states: Vec<VectorState>,
    entries: Vec<[u32; 4]>,
    routes: Option<u64>,
    direct: Option<bool>,
}

/// The value of a call that must succeed.
pub(crate) fn success<T>(call: &str, answer: Result<T, CallError>) -> Verdict<T> {
    answer.map_err(|error| Stop::Failed(format!("{call}: expected success, seen {error:?}")))
}

/// Reads and checks an answer of `query-vectors`.
pub(crate) fn vector_states(answer: &[u8]) -> Verdict<(Generation, Vec<VectorState>)> {
    let read = decoded("query-vectors", QueryVectorsAnswer::decode(answer))?;
    let states = decoded("query-vectors", read.vectors.iter().collect::<Result<Vec<_>, _>>())?;
    let again = states.iter().copied();
    minimal(
        answer,
        &bytes(|buffer| QueryVectorsAnswer::encode(read.generation, again.clone(), buffer)),
    )?;
    Ok((read.generation, states))
}

fn configured(answer: &[u8], requested: u16) -> Verdict<Configured> {
    let read = decoded("configure", ConfigureAnswer::decode(answer))?;
    let vectors = decoded("configure", read.vectors.iter().collect::<Result<Vec<_>, _>>())?;
    let (granted, mode, reasons) = (read.granted, read.mode, read.reasons);
    let again = vectors.iter().copied();
    let body = bytes(|b| ConfigureAnswer::encode(mode, reasons, read.generation, again.clone(), b));
    minimal(answer, &body)?;
    let bounds = format!("1 ≤ granted ({granted}) ≤ requested ({requested})");
    holds(&bounds, (1..=requested).contains(&granted))?;
    check_mode(mode, reasons)?;
    Ok(Configured { granted, mode, reasons, generation: read.generation, vectors })
}

/// Reasons are empty exactly when the table is direct (H-420, H-502), and none but the defined.
fn check_mode(mode: TableMode, reasons: Reasons) -> Verdict {
    equal("reasons are empty exactly when direct", reasons.is_empty(), mode == TableMode::Direct)?;
    holds("no reasons but the defined ones", Reasons::all().contains(reasons))
}

/// The error that an answer holds, strictly read.
pub(crate) fn error_of(answer: &Header, body: &[u8]) -> Verdict<Option<CallError>> {
    if answer.status == Status::SENTINEL {
        return Err(Stop::Failed("expected an answer, the sentinel is still there".to_owned()));
    }
    let error = CallError::decode(answer.status, body);
    if let Some(error) = error {
        equal("a status of the table", answer.status, error.status())?;
        minimal(body, &encoded(&error))?;
    }
    Ok(error)
}

/// What header fields must be in every answer.
fn check_answer(request: &Header, answer: &Header) -> Verdict {
    if answer.status == Status::SENTINEL {
        return equal("a buffer that nobody has answered", *answer, *request);
    }
    let Header { status, body_length, .. } = *answer;
    equal("the answer's header", *answer, Header { status, body_length, ..*request })?;
    let room = request.buffer_length.saturating_sub(HEADER).min(BUFFER - HEADER);
    holds(&format!("a body ({body_length} bytes) that fits the buffer"), body_length <= room)
}

fn decoded<T, E: core::fmt::Debug>(call: &str, read: Result<T, E>) -> Verdict<T> {
    read.map_err(|error| Stop::Failed(format!("the answer of {call} cannot be decoded: {error:?}")))
}

/// Numbers take as few bytes as they need (W-301).
fn minimal(sent: &[u8], encoded: &[u8]) -> Verdict {
    equal("the body, which must be encoded as short as can be", sent, encoded)
}
