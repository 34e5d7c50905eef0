//! Wire types of PV-MSI 1.0, shared by the guest half and the host half.
//!
//! A guest fills a *call buffer* in its own memory and rings a *doorbell* with
//! the buffer's page number. The buffer starts with a fixed little-endian
//! [`Header`]; what follows is a body in the encoding of
//! [postcard](https://postcard.jamesmunro.net/). The answer overwrites the
//! buffer. This crate holds the types on both sides of that exchange and
//! nothing else: no memory is touched, nothing is allocated, no `unsafe`.
//!
//! ```text
//!  guest                                host
//!  Header::request + request.encode ──▶ Header::parse, Request::parse
//!  doorbell                             … acts …
//!  Header::parse, Answer::decode    ◀── answer.encode + Header::answered
//! ```
//!
//! Lists (2048 vectors in one [`ConfigureRequest`]) are decoded while they are
//! iterated, see [`List`], so neither side needs room for them.
//!
//! # Example
//!
//! ```
//! use pvmsi_protocol::{CallId, Encode, Header, NegotiateRequest, Request, Features, Version, FunctionId};
//!
//! let mut buffer = [0u8; 4096];
//! let request = NegotiateRequest { version: Version::CURRENT, features: Features::all() };
//! let body = request.encode(&mut buffer[Header::SIZE..]).unwrap();
//! let header = Header::request(CallId::Negotiate, FunctionId::NONE, 4096, body).unwrap();
//! buffer[..Header::SIZE].copy_from_slice(&header.to_bytes());
//!
//! // The other side.
//! let header = Header::from_bytes(buffer.first_chunk().unwrap());
//! let body = &buffer[Header::SIZE..][..header.body_length as usize];
//! assert!(matches!(Request::parse(header.call, body), Ok(Request::Negotiate(r)) if r == request));
//! ```
#![no_std]
#![forbid(unsafe_code)]

mod call;
mod codec;
mod configure;
mod cpuid;
mod error;
mod function;
mod header;
mod message;
mod negotiate;
mod offer;
mod query;
mod request;
mod restore;
mod smccc;
mod update;

pub use call::{CallId, Kind, TableMode};
pub use codec::{DecodeError, Decoder, Encode, EncodeError, Encoder, List, ListIter, Value};
pub use configure::{ConfigureAnswer, ConfigureRequest, Sequence, VectorAnswer, VectorSetup};
pub use cpuid::CPUID_SCAN;
pub use error::{Busy, CallError, Parameter, ParameterError, Status};
pub use function::{FunctionId, Generation, ParseFunctionIdError, Reasons, VectorIndex};
pub use header::{BUFFER_ALIGNMENT, BUFFER_MAX, BufferPage, Header, MAGIC};
pub use message::{GuestMessage, TableMessage};
pub use negotiate::{Features, Limits, NegotiateAnswer, NegotiateRequest, Version};
pub use offer::{Leaf, SIGNATURE, ServiceBlock};
pub use query::{
    Delivery, QueryFunctionAnswer, QueryVectorsAnswer, QueryVectorsRequest, VectorState,
};
pub use request::Request;
pub use restore::{ReleaseAnswer, RestoreAnswer};
pub use smccc::{SMCCC_CALL, SMCCC_DISCOVER, SmcccStatus};
pub use update::{UpdateAnswer, UpdateRequest, VectorUpdate};

/// The most vectors that one function can have (PCI Express Base Specification, MSI-X Message Control: Table Size is 11 bits, N-1 encoded).
pub const VECTORS_MAX: u16 = 2048;
