//! One typed request for whatever a guest has sent: the host parses first and dispatches after.

use crate::query::Empty;
use crate::{
    CallError, CallId, ConfigureRequest, NegotiateRequest, QueryVectorsRequest, UpdateRequest,
};

/// A request whose fixed part is decoded. Lists are decoded while they are iterated.
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    /// See [`NegotiateRequest`].
    Negotiate(NegotiateRequest),
    /// Has no body.
    QueryFunction,
    /// See [`QueryVectorsRequest`].
    QueryVectors(QueryVectorsRequest),
    /// See [`ConfigureRequest`].
    Configure(ConfigureRequest<'a>),
    /// See [`UpdateRequest`].
    Update(UpdateRequest<'a>),
    /// Has no body.
    Release,
    /// Has no body.
    Restore,
}

impl<'a> Request<'a> {
    /// The request with the number `call` and this body.
    ///
    /// # Errors
    /// [`CallError::NotSupported`] for an unknown number, a parameter error for a body that is not one. Lists are walked once, so that a bad item is found before anything is done.
    pub fn parse(call: u32, body: &'a [u8]) -> Result<Self, CallError> {
        let request = Self::parse_head(call, body)?;
        match &request {
            Self::Configure(request) => request.vectors.check()?,
            Self::Update(request) => request.vectors.check()?,
            _ => {}
        }
        Ok(request)
    }

    /// The same for a receiver that decodes all items of a list by itself before it acts: the list is not walked here.
    ///
    /// # Errors
    /// As those of [`parse`](Self::parse), but for what is wrong with a list's items, or follows them.
    pub fn parse_head(call: u32, body: &'a [u8]) -> Result<Self, CallError> {
        let Some(call) = CallId::from_number(call) else {
            return Err(CallError::NotSupported);
        };
        Ok(match call {
            CallId::Negotiate => Self::Negotiate(NegotiateRequest::decode(body)?),
            CallId::QueryFunction => {
                Empty::decode(body)?;
                Self::QueryFunction
            }
            CallId::QueryVectors => Self::QueryVectors(QueryVectorsRequest::decode(body)?),
            CallId::Configure => Self::Configure(ConfigureRequest::decode(body)?),
            CallId::Update => Self::Update(UpdateRequest::decode(body)?),
            CallId::Release => {
                Empty::decode(body)?;
                Self::Release
            }
            CallId::Restore => {
                Empty::decode(body)?;
                Self::Restore
            }
        })
    }

    /// Which call it is.
    pub fn call(&self) -> CallId {
        match self {
            Self::Negotiate(_) => CallId::Negotiate,
            Self::QueryFunction => CallId::QueryFunction,
            Self::QueryVectors(_) => CallId::QueryVectors,
            Self::Configure(_) => CallId::Configure,
            Self::Update(_) => CallId::Update,
            Self::Release => CallId::Release,
            Self::Restore => CallId::Restore,
        }
    }
}
