//! A host that does everything right, for the calls that a test has no plan for.

use pvmsi_protocol::{
    CallError, ConfigureAnswer, Delivery, Encode, EncodeError, Features, Generation, Limits,
    NegotiateAnswer, QueryFunctionAnswer, QueryVectorsAnswer, Reasons, ReleaseAnswer,
    RestoreAnswer, TableMessage, TableMode, UpdateAnswer, VectorAnswer, VectorState, Version,
};

use super::call::{Body, Call};

/// What a host answers.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// Nobody is there.
    Silent,
    /// An error.
    Error(CallError),
    /// Success, with this body.
    Success(Vec<u8>),
    /// Any status, with any body.
    Raw(u32, Vec<u8>),
}

/// Address of the table messages of this host: no guest would choose it.
const TABLE_ADDRESS: u64 = 0x5650_0000_0000;

/// A host and what it knows of its one function.
#[derive(Clone, Debug)]
pub(crate) struct GoodHost {
    pub(crate) version: Version,
    pub(crate) limits: Limits,
    /// The most vectors that it grants.
    pub(crate) grant: u16,
    /// Vectors that the next `configure` reports as pending.
    pub(crate) pending: Vec<u16>,
    pub(crate) assigned: u16,
    pub(crate) generation: u32,
    /// Stands in table messages: another number makes other messages.
    pub(crate) series: u32,
}

impl GoodHost {
    pub(crate) const fn new() -> Self {
        Self {
            version: Version::V1_0,
            limits: Limits { buffer_bytes: 65536, vectors: 2048 },
            grant: 2048,
            pending: Vec::new(),
            assigned: 0,
            generation: 1,
            series: 0,
        }
    }

    /// What belongs in the table for a vector.
    pub(crate) fn table_message(&self, vector: u16) -> TableMessage {
        TableMessage { address: TABLE_ADDRESS, data: self.series << 16 | u32::from(vector) }
    }

    pub(crate) fn answer(&mut self, call: &Call) -> Reply {
        match &call.body {
            Body::Negotiate(request) => match request.version.common(self.version) {
                None => Reply::Error(CallError::NotSupported),
                Some(version) => {
                    let features = request.features.intersection(Features::DIRECT);
                    success(&NegotiateAnswer { version, features, limits: self.limits })
                }
            },
            Body::Configure { requested, .. } => {
                self.assigned = (*requested).min(self.grant);
                self.generation += 1;
                self.configured(self.assigned)
            }
            Body::Update(_) => success(&UpdateAnswer { generation: self.generation() }),
            Body::QueryVectors(request) => self.query_vectors(request.count),
            Body::Empty => self.answer_to_empty(call),
        }
    }

    /// The answer of a `configure` that grants so many.
    pub(crate) fn configured(&mut self, granted: u16) -> Reply {
        let pending = std::mem::take(&mut self.pending);
        let vectors: Vec<_> = (0..granted)
            .map(|vector| VectorAnswer {
                table_message: Some(self.table_message(vector)),
                pending: pending.contains(&vector),
            })
            .collect();
        body(|buffer| {
            let (mode, reasons) = (TableMode::Direct, Reasons::empty());
            ConfigureAnswer::encode(mode, reasons, self.generation(), vectors.into_iter(), buffer)
        })
    }

    pub(crate) fn generation(&self) -> Generation {
        Generation(self.generation)
    }

    fn answer_to_empty(&mut self, call: &Call) -> Reply {
        let generation = self.generation();
        let (mode, reasons) = match self.assigned {
            0 => (TableMode::Trapped, Reasons::NOT_ASSIGNED),
            _ => (TableMode::Direct, Reasons::empty()),
        };
        match call.id {
            pvmsi_protocol::CallId::Release => {
                self.assigned = 0;
                self.generation += 1;
                success(&ReleaseAnswer { generation: self.generation() })
            }
            pvmsi_protocol::CallId::Restore => {
                success(&RestoreAnswer { mode, reasons, generation })
            }
            _ => success(&QueryFunctionAnswer {
                msi_vectors: 0,
                msix_vectors: self.grant,
                assigned: self.assigned,
                mode,
                reasons,
                generation,
                delivery: Delivery::Unknown,
            }),
        }
    }

    fn query_vectors(&self, count: u16) -> Reply {
        let state = VectorState {
            assigned: true,
            guest_message: None,
            table_message: None,
            masked: true,
            pending: false,
        };
        let states = (0..count.min(100)).map(|_| state);
        body(|buffer| QueryVectorsAnswer::encode(self.generation(), states, buffer))
    }
}

/// Success with a body.
pub(crate) fn success(answer: &impl Encode) -> Reply {
    body(|buffer| answer.encode(buffer))
}

fn body(write: impl FnOnce(&mut [u8]) -> Result<usize, EncodeError>) -> Reply {
    let mut bytes = vec![0; 0x1_0000];
    let used = write(&mut bytes).unwrap_or(0);
    bytes.truncate(used);
    Reply::Success(bytes)
}
