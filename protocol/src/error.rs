//! Errors: few, enumerated, each with one meaning and what the guest should do.

use core::fmt;

use crate::codec::{self, enumeration, structure};
use crate::{DecodeError, Encode, EncodeError, Encoder, Sequence};

/// The `status` field of the header. Values that are not listed are read as [`Status::HARDWARE_ERROR`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Status(pub u32);

impl Status {
    /// The call did what was asked.
    pub const SUCCESS: Self = Self(0);
    /// See [`CallError::NotSupported`].
    pub const NOT_SUPPORTED: Self = Self(0x10);
    /// See [`CallError::NoSuchFunction`].
    pub const NO_SUCH_FUNCTION: Self = Self(0x20);
    /// See [`CallError::Parameter`].
    pub const PARAMETER: Self = Self(0x30);
    /// See [`CallError::Busy`].
    pub const BUSY: Self = Self(0x40);
    /// See [`CallError::NoResources`].
    pub const NO_RESOURCES: Self = Self(0x50);
    /// See [`CallError::Denied`].
    pub const DENIED: Self = Self(0x60);
    /// See [`CallError::Hardware`].
    pub const HARDWARE_ERROR: Self = Self(0x70);
    /// What the guest presets. Still there after the doorbell: nobody answered, which means *not supported*.
    pub const SENTINEL: Self = Self(u32::MAX);
}

/// Which part of a call was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Parameter {
    /// The header's magic number, or a reserved field that is not 0.
    Header,
    /// The header's version: another major, or a minor above the host's.
    Version,
    /// The buffer length: too short, too long, or not all of it in the guest's RAM.
    BufferLength,
    /// The body length, against the buffer length.
    BodyLength,
    /// The body is no encoding of this call's request.
    Body,
    /// The buffer has no room for the answer; nothing was done.
    AnswerRoom,
    /// The kind of interrupt is one that the function does not have.
    Kind,
    /// The requested count: 0, or fewer than the vectors listed.
    Count,
    /// A vector index outside the table, or not assigned.
    Vector,
    /// A vector that stands twice in one call.
    DuplicateVector,
    /// A guest message that the platform cannot deliver.
    Message,
    /// The sequence number continues nothing, or something else.
    Sequence,
    /// A guest message that another vector of the function has as well, where the platform allows that to none.
    SharedMessage,
}

/// Details of [`CallError::Parameter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ParameterError {
    /// What was wrong.
    pub parameter: Parameter,
    /// The vector index that it concerns, where it concerns one.
    pub vector: Option<u16>,
}

/// Details of [`CallError::Busy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Busy {
    /// Repeat the call with this number.
    pub sequence: Sequence,
    /// Not before so many microseconds have passed; a hint.
    pub delay_us: u32,
}

/// Why a call failed. A call that fails changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallError {
    /// The host does not know the call, the version, or the whole service. Use the standard table; do not ask again.
    NotSupported,
    /// No function of this machine has that address. Check the address; rescan the bus.
    NoSuchFunction,
    /// The request itself is wrong. Mend the caller; repeating is useless.
    Parameter(ParameterError),
    /// The host works on it. Repeat identically with the sequence number after the delay, or release.
    Busy(Busy),
    /// The host has not one vector left. Ask later, or use the standard table.
    NoResources,
    /// The operator does not allow it for this function. Use the standard table.
    Denied,
    /// The host or the function failed. Reset the function, or use the standard table.
    Hardware,
}

impl CallError {
    /// Shorthand for a parameter error that concerns no vector.
    pub const fn parameter(parameter: Parameter) -> Self {
        Self::Parameter(ParameterError { parameter, vector: None })
    }

    /// Shorthand for a parameter error of one vector.
    pub const fn vector(parameter: Parameter, vector: u16) -> Self {
        Self::Parameter(ParameterError { parameter, vector: Some(vector) })
    }

    /// The header's status for this error.
    pub const fn status(&self) -> Status {
        match self {
            Self::NotSupported => Status::NOT_SUPPORTED,
            Self::NoSuchFunction => Status::NO_SUCH_FUNCTION,
            Self::Parameter(_) => Status::PARAMETER,
            Self::Busy(_) => Status::BUSY,
            Self::NoResources => Status::NO_RESOURCES,
            Self::Denied => Status::DENIED,
            Self::Hardware => Status::HARDWARE_ERROR,
        }
    }

    /// The error of an answer, `None` when it succeeded. An undecodable body or an unknown status is read as [`CallError::Hardware`]; the untouched sentinel as [`CallError::NotSupported`], whatever follows it.
    pub fn decode(status: Status, body: &[u8]) -> Option<Self> {
        Some(match status {
            Status::SUCCESS => return None,
            Status::SENTINEL => Self::NotSupported,
            Status::PARAMETER => codec::decode_whole(body).map_or(Self::Hardware, Self::Parameter),
            Status::BUSY => codec::decode_whole(body).map_or(Self::Hardware, Self::Busy),
            // The others have no details.
            _ if !body.is_empty() => Self::Hardware,
            Status::NOT_SUPPORTED => Self::NotSupported,
            Status::NO_SUCH_FUNCTION => Self::NoSuchFunction,
            Status::NO_RESOURCES => Self::NoResources,
            Status::DENIED => Self::Denied,
            _ => Self::Hardware,
        })
    }

    /// What the guest should do, in one sentence for a log.
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::NotSupported => "use the standard vector table; do not ask again",
            Self::NoSuchFunction => "check the function's address; rescan the bus",
            Self::Parameter(_) => "mend the caller; repeating the call is useless",
            Self::Busy(_) => {
                "repeat identically with the sequence number after the delay, or release"
            }
            Self::NoResources => {
                "ask for fewer vectors, ask later, or use the standard vector table"
            }
            Self::Denied => "use the standard vector table; the operator decides",
            Self::Hardware => "reset the function, or use the standard vector table",
        }
    }
}

impl Encode for CallError {
    fn encode(&self, buffer: &mut [u8]) -> Result<usize, EncodeError> {
        let mut encoder = Encoder::new(buffer);
        match self {
            Self::Parameter(detail) => encoder.put(detail),
            Self::Busy(detail) => encoder.put(detail),
            _ => {}
        }
        encoder.finish()
    }
}

impl From<DecodeError> for CallError {
    fn from(_: DecodeError) -> Self {
        Self::parameter(Parameter::Body)
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSupported => f.write_str("not supported")?,
            Self::NoSuchFunction => f.write_str("no such function")?,
            Self::Parameter(ParameterError { parameter, vector: None }) => {
                write!(f, "parameter error: {parameter:?}")?;
            }
            Self::Parameter(ParameterError { parameter, vector: Some(vector) }) => {
                write!(f, "parameter error: {parameter:?} of vector {vector}")?;
            }
            Self::Busy(busy) => write!(f, "busy for {} us", busy.delay_us)?,
            Self::NoResources => f.write_str("no resources")?,
            Self::Denied => f.write_str("denied by policy")?,
            Self::Hardware => f.write_str("hardware error")?,
        }
        write!(f, "; {}", self.remedy())
    }
}

impl core::error::Error for CallError {}

enumeration! {
    Parameter {
        Header, Version, BufferLength, BodyLength, Body, AnswerRoom, Kind, Count, Vector,
        DuplicateVector, Message, Sequence, SharedMessage
    }
}

structure! {
    ParameterError { parameter, vector }
    Busy { sequence, delay_us }
}
