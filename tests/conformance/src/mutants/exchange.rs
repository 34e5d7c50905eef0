//! A request or an answer in a call buffer, as a mutant finds it and leaves it.

use pvmsi_protocol::{
    ConfigureAnswer, ConfigureRequest, Encode, EncodeError, Header, Status, UpdateRequest,
    VectorAnswer, VectorSetup, VectorUpdate,
};

use crate::host::Ram;

/// Header and body.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Exchange {
    pub(super) header: Header,
    pub(super) body: Vec<u8>,
}

impl Exchange {
    pub(super) fn read(ram: &dyn Ram, page: u32) -> Self {
        let address = u64::from(page) << 12;
        let mut bytes = [0; Header::SIZE];
        ram.read(address, &mut bytes);
        let header = Header::from_bytes(&bytes);
        let length = usize::try_from(header.body_length.min(0x1_0000)).unwrap_or(0);
        let mut body = vec![0; length];
        ram.read(address + 32, &mut body);
        Self { header, body }
    }

    pub(super) fn write(&self, ram: &dyn Ram, page: u32) {
        let address = u64::from(page) << 12;
        ram.write(address + 32, &self.body);
        ram.write(address, &self.header.to_bytes());
    }

    pub(super) fn succeeded(&self) -> bool {
        self.header.status == Status::SUCCESS
    }

    /// The same header, with another status and body.
    pub(super) fn answered(&self, status: Status, body: Vec<u8>) -> Self {
        let length = u32::try_from(body.len()).unwrap_or(0);
        Self { header: self.header.answered(status, length), body }
    }

    pub(super) fn with_body(&self, body: Vec<u8>) -> Self {
        let body_length = u32::try_from(body.len()).unwrap_or(0);
        Self { header: Header { body_length, ..self.header }, body }
    }

    /// A request of `configure` with other vectors.
    pub(super) fn configure_with(
        &self,
        change: impl FnOnce(&mut ConfigureHead, &mut Vec<VectorSetup>),
    ) -> Option<Self> {
        let request = ConfigureRequest::decode(&self.body).ok()?;
        let mut setups = request.vectors.iter().collect::<Result<Vec<_>, _>>().ok()?;
        let mut head = ConfigureHead {
            kind: request.kind,
            sequence: request.sequence,
            requested: request.requested,
        };
        change(&mut head, &mut setups);
        let ConfigureHead { kind, sequence, requested } = head;
        let setups = setups.into_iter();
        let encode = |b: &mut [u8]| ConfigureRequest::encode(kind, requested, sequence, setups, b);
        Some(self.with_body(encoded(encode)))
    }

    /// A request of `update` with other vectors.
    pub(super) fn update_with(&self, change: impl FnOnce(&mut Vec<VectorUpdate>)) -> Option<Self> {
        let request = UpdateRequest::decode(&self.body).ok()?;
        let mut updates = request.vectors.iter().collect::<Result<Vec<_>, _>>().ok()?;
        change(&mut updates);
        let encode = |buffer: &mut [u8]| UpdateRequest::encode(updates.into_iter(), buffer);
        Some(self.with_body(encoded(encode)))
    }

    /// An answer of `configure` with other vectors.
    pub(super) fn configured_with(
        &self,
        change: impl FnOnce(&mut Vec<VectorAnswer>),
    ) -> Option<Self> {
        let answer = ConfigureAnswer::decode(&self.body).ok()?;
        let mut vectors = answer.vectors.iter().collect::<Result<Vec<_>, _>>().ok()?;
        change(&mut vectors);
        let (mode, reasons, generation) = (answer.mode, answer.reasons, answer.generation);
        let vectors = vectors.into_iter();
        let encode = |b: &mut [u8]| ConfigureAnswer::encode(mode, reasons, generation, vectors, b);
        Some(self.with_body(encoded(encode)))
    }
}

/// The part of a `configure` before its list.
pub(super) struct ConfigureHead {
    pub(super) kind: pvmsi_protocol::Kind,
    pub(super) sequence: pvmsi_protocol::Sequence,
    pub(super) requested: u16,
}

/// A body in bytes of its own.
pub(super) fn encoded(write: impl FnOnce(&mut [u8]) -> Result<usize, EncodeError>) -> Vec<u8> {
    let mut bytes = vec![0; 0x1_0000];
    let used = write(&mut bytes).unwrap_or(0);
    bytes.truncate(used);
    bytes
}

/// A body in bytes of its own.
pub(super) fn body(value: &impl Encode) -> Vec<u8> {
    encoded(|buffer| value.encode(buffer))
}
