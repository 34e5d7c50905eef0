//! A call as the host finds it in the guest's buffer, and what every request must be like.

use pvmsi_protocol::{
    CallId, ConfigureRequest, Encode, FunctionId, GuestMessage, Header, Kind, MAGIC,
    NegotiateRequest, QueryVectorsRequest, Request, Sequence, Status, UpdateRequest, VectorSetup,
    VectorUpdate, Version,
};

/// A call, taken apart.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    pub(crate) header: Header,
    pub(crate) id: CallId,
    pub(crate) body: Body,
}

/// A request's body, in a form that outlives the buffer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Body {
    Empty,
    Negotiate(NegotiateRequest),
    QueryVectors(QueryVectorsRequest),
    Configure { kind: Kind, requested: u16, sequence: Sequence, vectors: Vec<VectorSetup> },
    Update(Vec<VectorUpdate>),
}

/// What the host holds a request against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// What `negotiate` has answered: version, largest buffer in bytes, most vectors.
    pub(crate) agreed: Option<(Version, u32, u16)>,
    pub(crate) function: FunctionId,
}

/// A clause that a request does not keep, and how.
pub(crate) type Fault = (&'static str, String);

impl Call {
    /// Takes a request apart.
    pub(crate) fn parse(header: Header, body: &[u8]) -> Result<Self, Fault> {
        let request = Request::parse(header.call, body)
            .map_err(|error| ("W-203", format!("a body that is no request: {error:?}")))?;
        let id = request.call();
        let body = Body::of(&request)
            .map_err(|error| ("W-203", format!("a list that cannot be decoded: {error:?}")))?;
        Ok(Self { header, id, body })
    }

    /// What is wrong with the request, clause by clause.
    pub(crate) fn faults(&self, body: &[u8], terms: &Terms) -> Vec<Fault> {
        let negotiate = self.id == CallId::Negotiate;
        let version = terms.agreed.map_or(Version::V1_0, |(version, ..)| version);
        let largest = terms.agreed.map_or(4096, |(_, largest, _)| largest);
        let function = if negotiate { FunctionId::NONE } else { terms.function };
        let header = &self.header;
        let room = header.buffer_length.saturating_sub(32);
        let vectors = match (&self.body, terms.agreed) {
            (Body::Configure { requested, .. }, Some((.., most))) => *requested <= most,
            _ => true,
        };
        let checks = [
            ("W-202", "the magic", header.magic == MAGIC),
            ("W-202", "0 in the reserved field", header.reserved == 0),
            ("W-202", "the function's address", header.function == function),
            ("G-132", "the version in use", negotiate || header.version == version),
            ("G-132", "negotiate first", negotiate || terms.agreed.is_some()),
            ("G-132", "no more vectors than the limit", vectors),
            ("G-201", "a buffer within the limit", (32..=largest).contains(&header.buffer_length)),
            ("W-203", "a body inside the buffer", header.body_length <= room),
            ("G-204", "the sentinel", header.status == Status::SENTINEL),
            ("W-301", "numbers as short as can be", self.body.encoded() == body),
        ];
        checks
            .into_iter()
            .filter(|(.., kept)| !kept)
            .map(|(clause, what, _)| (clause, format!("expected {what} in {header:?}")))
            .collect()
    }

    /// The messages that the call gives to vectors.
    pub(crate) fn messages(&self) -> Vec<(u16, GuestMessage)> {
        match &self.body {
            Body::Configure { vectors, .. } => (0..)
                .zip(vectors)
                .filter_map(|(vector, setup)| Some((vector, setup.message?)))
                .collect(),
            Body::Update(vectors) => {
                vectors.iter().map(|update| (update.vector.0, update.message)).collect()
            }
            _ => Vec::new(),
        }
    }
}

impl Body {
    fn of(request: &Request<'_>) -> Result<Self, pvmsi_protocol::DecodeError> {
        Ok(match request {
            Request::Negotiate(request) => Self::Negotiate(*request),
            Request::QueryVectors(request) => Self::QueryVectors(*request),
            Request::Configure(request) => Self::Configure {
                kind: request.kind,
                requested: request.requested,
                sequence: request.sequence,
                vectors: request.vectors.iter().collect::<Result<_, _>>()?,
            },
            Request::Update(request) => {
                Self::Update(request.vectors.iter().collect::<Result<_, _>>()?)
            }
            Request::QueryFunction | Request::Release | Request::Restore => Self::Empty,
        })
    }

    /// As short as can be.
    fn encoded(&self) -> Vec<u8> {
        let mut bytes = vec![0; 0x1_0000];
        let used = match self {
            Self::Empty => Ok(0),
            Self::Negotiate(request) => request.encode(&mut bytes),
            Self::QueryVectors(request) => request.encode(&mut bytes),
            Self::Configure { kind, requested, sequence, vectors } => {
                let vectors = vectors.iter().copied();
                ConfigureRequest::encode(*kind, *requested, *sequence, vectors, &mut bytes)
            }
            Self::Update(vectors) => UpdateRequest::encode(vectors.iter().copied(), &mut bytes),
        };
        bytes.truncate(used.unwrap_or(0));
        bytes
    }
}
