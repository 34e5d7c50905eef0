//! One method per call of the protocol.

use core::fmt;

use pvmsi_protocol::{
    Busy, CallError, CallId, ConfigureAnswer, ConfigureRequest, DecodeError, Encode, EncodeError,
    Features, FunctionId, Generation, Header, Kind, Limits, MAGIC, NegotiateAnswer,
    NegotiateRequest, Parameter, QueryFunctionAnswer, QueryVectorsAnswer, QueryVectorsRequest,
    Reasons, ReleaseAnswer, RestoreAnswer, Sequence, Status, TableMode, UpdateAnswer,
    UpdateRequest, VECTORS_MAX, VectorAnswer, VectorIndex, VectorSetup, VectorState, VectorUpdate,
    Version,
};

use crate::{CallBuffer, Doorbell};

/// Repetitions of a busy `configure` beyond one for each vector. A host that finishes at least
/// one vector a call needs no more.
const BUSY_REPEATS_MARGIN: u16 = 64;

/// The longest single wait in microseconds, whatever the host's hint says.
const BUSY_WAIT_MAX_US: u32 = 100_000;

/// The most that one `configure` waits in total, in microseconds.
const BUSY_TOTAL_MAX_US: u32 = 5_000_000;

/// What `negotiate` declares as its buffer length, before the host has said how long a buffer may be.
const BUFFER_BEFORE_NEGOTIATE: usize = 4096;

/// What a successful `configure` says about the function as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Vectors 0 to `granted` - 1 are assigned, the rest are not; at least 1.
    pub granted: u16,
    /// Who answers the table from now on.
    pub mode: TableMode,
    /// Why the table is not direct; empty exactly when it is.
    pub reasons: Reasons,
    /// The number of the state after the call.
    pub generation: Generation,
}

/// How a kernel waits. Any `FnMut(u32)` is one.
pub trait Delay {
    /// Waits for about so many microseconds. It may spin, and must where interrupts are off.
    fn delay_us(&mut self, microseconds: u32);
}

impl<F: FnMut(u32)> Delay for F {
    fn delay_us(&mut self, microseconds: u32) {
        self(microseconds);
    }
}

/// Makes calls, one after the other, through one buffer.
///
/// Every call is one ring of the doorbell (`configure` and `query_vectors` may need more) and
/// returns when the host has answered. Nobody answers: [`CallError::NotSupported`]. An answer
/// that is none: [`CallError::Hardware`]. No call panics, whatever the host writes.
///
/// A client may be used with interrupts off and from any processor, by one caller at a time.
pub struct Client<'b, D, W = fn(u32)> {
    buffer: CallBuffer<'b>,
    doorbell: D,
    delay: W,
    /// What the host takes; the standard's maxima until `negotiate`.
    buffer_limit: usize,
    /// The most vectors of one function, likewise.
    vectors_limit: u16,
}

impl<'b, D: Doorbell> Client<'b, D> {
    /// A client that has not called yet; [`negotiate`](Self::negotiate) comes first.
    ///
    /// `delay_us` waits for about so many microseconds. Only [`configure`](Self::configure) uses
    /// it, when the host is busy; it may spin, and must where interrupts are off.
    pub const fn new(buffer: CallBuffer<'b>, doorbell: D, delay_us: fn(u32)) -> Self {
        Self::with_delay(buffer, doorbell, delay_us)
    }
}

impl<'b, D, W> Client<'b, D, W> {
    /// As [`new`](Client::new), for a wait that is more than a function.
    pub const fn with_delay(buffer: CallBuffer<'b>, doorbell: D, delay: W) -> Self {
        let buffer_limit = buffer.length();
        Self { buffer, doorbell, delay, buffer_limit, vectors_limit: VECTORS_MAX }
    }
}

impl<D: Doorbell, W: Delay> Client<'_, D, W> {
    /// Agrees on version, features and limits. Do this once, before any other call.
    ///
    /// # Errors
    /// [`CallError::NotSupported`]: the host has no service, or one of another major version.
    pub fn negotiate(&mut self) -> Result<NegotiateAnswer, CallError> {
        let request = NegotiateRequest { version: Version::CURRENT, features: Features::all() };
        let buffer_length = BUFFER_BEFORE_NEGOTIATE.min(self.buffer.length());
        let length = request.encode(self.room(buffer_length));
        let body = self.call_within(buffer_length, CallId::Negotiate, FunctionId::NONE, length)?;
        let answer = NegotiateAnswer::decode(body).map_err(bad_answer)?;
        if Version::CURRENT.common(answer.version) != Some(answer.version) {
            return Err(CallError::NotSupported);
        }
        let Limits { buffer_bytes, vectors } = answer.limits;
        let limit = usize::try_from(buffer_bytes).unwrap_or(usize::MAX);
        if limit < BUFFER_BEFORE_NEGOTIATE || vectors == 0 {
            return Err(CallError::Hardware);
        }
        self.buffer_limit = limit.min(self.buffer.length());
        self.vectors_limit = vectors;
        Ok(answer)
    }

    /// What the service can do for a function, and how it stands.
    ///
    /// # Errors
    /// What the host answers.
    pub fn query_function(
        &mut self,
        function: FunctionId,
    ) -> Result<QueryFunctionAnswer, CallError> {
        let body = self.call(CallId::QueryFunction, function, Ok(0))?;
        QueryFunctionAnswer::decode(body).map_err(bad_answer)
    }

    /// Looks at `count` vectors from `first` on and calls `on_vector` with each, in order.
    ///
    /// Asks as often as the buffer makes necessary, at most once for each vector. When the host
    /// changes the state between two of these calls, the vectors come from different states; the
    /// generation returned is the last one. On an error some vectors may have been reported.
    ///
    /// # Errors
    /// What the host answers; a parameter error when the range is empty or not inside the table.
    pub fn query_vectors(
        &mut self,
        function: FunctionId,
        first: VectorIndex,
        count: u16,
        mut on_vector: impl FnMut(VectorIndex, VectorState),
    ) -> Result<Generation, CallError> {
        if count == 0 {
            return Err(CallError::parameter(Parameter::Count));
        }
        let (mut first, mut left) = (first.0, count);
        loop {
            let request = QueryVectorsRequest { first, count: left };
            let length = request.encode(self.room(self.buffer_limit));
            let body = self.call(CallId::QueryVectors, function, length)?;
            let answer = QueryVectorsAnswer::decode(body).map_err(bad_answer)?;
            let answered = answer.vectors.len();
            if answered == 0 || answered > left {
                return Err(CallError::Hardware);
            }
            let report = |place, state| on_vector(VectorIndex(first.saturating_add(place)), state);
            answer.vectors.for_each(report).map_err(bad_answer)?;
            left = left.saturating_sub(answered);
            first = first.saturating_add(answered);
            if left == 0 {
                return Ok(answer.generation);
            }
        }
    }

    /// Sets the interrupts of a function up and asks for its table.
    ///
    /// `vectors` describes the first vectors, at most `requested`; the rest start masked and
    /// without a message. More vectors than the host's limit are not asked for: a short grant.
    /// `on_vector` is called with the answer for each granted vector, in order; when an error is
    /// returned, forget what it was told.
    ///
    /// While the host is busy, this waits and repeats: at most `requested` + 64 times, at most
    /// 5 s. When it gives up, it releases the function.
    ///
    /// # Errors
    /// [`CallError::Busy`]: gave up; nothing is assigned. A parameter error with
    /// [`Parameter::BufferLength`]: the call buffer is too short for so many vectors, see
    /// [`CallBuffer::bytes_for`]; nobody was called. [`CallError::Hardware`]: the host
    /// failed, or its answer is none; the function was released. Else what the host answers; nothing has changed then.
    pub fn configure(
        &mut self,
        function: FunctionId,
        kind: Kind,
        requested: u16,
        vectors: impl ExactSizeIterator<Item = VectorSetup> + Clone,
        mut on_vector: impl FnMut(VectorIndex, VectorAnswer),
    ) -> Result<Grant, CallError> {
        let vectors = vectors.take(self.vectors_limit.into());
        let requested = requested.min(self.vectors_limit);
        if CallBuffer::bytes_for(requested) > self.buffer_limit {
            return Err(CallError::parameter(Parameter::BufferLength));
        }
        let mut repetition = Repetition::first(requested);
        loop {
            let sequence = repetition.sequence;
            let room = self.room(self.buffer_limit);
            let length = ConfigureRequest::encode(kind, requested, sequence, vectors.clone(), room);
            let answer = self.call(CallId::Configure, function, length);
            match answer.and_then(|body| read_configure(body, requested, &mut on_vector)) {
                Ok(grant) => return Ok(grant),
                Err(error) => self.repeat(function, error, &mut repetition)?,
            }
        }
    }

    /// Waits until a busy `configure` may be repeated.
    ///
    /// # Errors
    /// The error that ends it instead.
    fn repeat(
        &mut self,
        function: FunctionId,
        error: CallError,
        repetition: &mut Repetition,
    ) -> Result<(), CallError> {
        let CallError::Busy(busy) = error else {
            if error == CallError::Hardware {
                // The host may believe that vectors are assigned. That must not last: the
                // caller will use the standard table, or start again.
                let _ = self.release(function);
            }
            return Err(error);
        };
        let wait_us = busy.delay_us.min(BUSY_WAIT_MAX_US);
        repetition.waited_us = repetition.waited_us.saturating_add(wait_us);
        if repetition.left == 0 || repetition.waited_us > BUSY_TOTAL_MAX_US {
            self.release(function)?;
            return Err(CallError::Busy(Busy { sequence: Sequence::START, ..busy }));
        }
        repetition.left = repetition.left.saturating_sub(1);
        repetition.sequence = busy.sequence;
        self.delay.delay_us(wait_us);
        Ok(())
    }

    /// Gives assigned vectors new guest messages, in one go. Never busy, at most one routing update.
    ///
    /// # Errors
    /// A parameter error with [`Parameter::BufferLength`] when the list does not fit the call
    /// buffer (nobody was called), else what the host answers. Nothing has changed then.
    pub fn update(
        &mut self,
        function: FunctionId,
        vectors: impl ExactSizeIterator<Item = VectorUpdate>,
    ) -> Result<UpdateAnswer, CallError> {
        let length = UpdateRequest::encode(vectors, self.room(self.buffer_limit));
        let body = self.call(CallId::Update, function, length)?;
        UpdateAnswer::decode(body).map_err(bad_answer)
    }

    /// Puts the function back to its default: no vectors assigned, table trapped. Never busy.
    ///
    /// # Errors
    /// What the host answers; for a function of this machine it succeeds.
    pub fn release(&mut self, function: FunctionId) -> Result<ReleaseAnswer, CallError> {
        let body = self.call(CallId::Release, function, Ok(0))?;
        ReleaseAnswer::decode(body).map_err(bad_answer)
    }

    /// Puts the table messages of all assigned vectors back, after a reset that the host could not see. Mask bits stay as the function has them.
    ///
    /// # Errors
    /// What the host answers.
    pub fn restore(&mut self, function: FunctionId) -> Result<RestoreAnswer, CallError> {
        let body = self.call(CallId::Restore, function, Ok(0))?;
        RestoreAnswer::decode(body).map_err(bad_answer)
    }

    /// Where the body of a request goes that has a buffer of `buffer_length` bytes.
    fn room(&mut self, buffer_length: usize) -> &mut [u8] {
        self.buffer.bytes_mut().get_mut(Header::SIZE..buffer_length).unwrap_or_default()
    }

    /// Makes a call whose body is in the buffer and returns the body of a successful answer.
    fn call(
        &mut self,
        call: CallId,
        function: FunctionId,
        body_length: Result<usize, EncodeError>,
    ) -> Result<&[u8], CallError> {
        self.call_within(self.buffer_limit, call, function, body_length)
    }

    /// As [`call`](Self::call), in the first `buffer_length` bytes.
    fn call_within(
        &mut self,
        buffer_length: usize,
        call: CallId,
        function: FunctionId,
        body_length: Result<usize, EncodeError>,
    ) -> Result<&[u8], CallError> {
        const NO_ROOM: CallError = CallError::parameter(Parameter::BufferLength);

        let body_length = body_length.map_err(|error| match error {
            EncodeError::BufferFull => NO_ROOM,
            EncodeError::ListLength => CallError::parameter(Parameter::Count),
        })?;
        // The status is the sentinel now: it stays there when nobody answers.
        let request = Header::request(call, function, buffer_length, body_length);
        let request = request.ok_or(NO_ROOM)?;
        *self.buffer.bytes_mut().first_chunk_mut().ok_or(NO_ROOM)? = request.to_bytes();

        self.buffer.ring(&self.doorbell);

        let buffer = self.buffer.bytes().get(..buffer_length).ok_or(NO_ROOM)?;
        let (header, body) = buffer.split_first_chunk().ok_or(NO_ROOM)?;
        let answer = Header::from_bytes(header);
        if answer.status == Status::SENTINEL {
            return Err(CallError::NotSupported);
        }
        if answer.magic != MAGIC || answer.call != request.call {
            return Err(CallError::Hardware);
        }
        let length = usize::try_from(answer.body_length).map_err(|_| CallError::Hardware)?;
        let body = body.get(..length).ok_or(CallError::Hardware)?;
        CallError::decode(answer.status, body).map_or(Ok(body), Err)
    }
}

/// How far the repetitions of a busy `configure` have come.
struct Repetition {
    sequence: Sequence,
    /// How many more there may be.
    left: u16,
    waited_us: u32,
}

impl Repetition {
    const fn first(requested: u16) -> Self {
        let left = requested.saturating_add(BUSY_REPEATS_MARGIN);
        Self { sequence: Sequence::START, left, waited_us: 0 }
    }
}

impl<D: fmt::Debug, W> fmt::Debug for Client<'_, D, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("buffer", &self.buffer)
            .field("doorbell", &self.doorbell)
            .finish_non_exhaustive()
    }
}

/// Reads an answer of `configure`; one that cannot be is the host's failure.
fn read_configure(
    body: &[u8],
    requested: u16,
    on_vector: &mut impl FnMut(VectorIndex, VectorAnswer),
) -> Result<Grant, CallError> {
    let answer = ConfigureAnswer::decode(body).map_err(bad_answer)?;
    if answer.granted > requested {
        return Err(CallError::Hardware);
    }
    let report = |vector, answer| on_vector(VectorIndex(vector), answer);
    answer.vectors.for_each(report).map_err(bad_answer)?;
    let ConfigureAnswer { granted, mode, reasons, generation, .. } = answer;
    Ok(Grant { granted, mode, reasons, generation })
}

/// An answer that cannot be decoded is the host's failure, not the caller's parameter.
fn bad_answer(_: DecodeError) -> CallError {
    CallError::Hardware
}
