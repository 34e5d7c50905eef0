//! Headers, and buffers of header and body, as a host and a guest look at them.

use pvmsi_protocol::*;
use serde_json::{Value, json};

use super::{Outcome, body, words};

const STATUSES: [(Status, &str); 9] = [
    (Status::SUCCESS, "success"),
    (Status::NOT_SUPPORTED, "not supported"),
    (Status::NO_SUCH_FUNCTION, "no such function"),
    (Status::PARAMETER, "parameter"),
    (Status::BUSY, "busy"),
    (Status::NO_RESOURCES, "no resources"),
    (Status::DENIED, "denied"),
    (Status::HARDWARE_ERROR, "hardware error"),
    (Status::SENTINEL, "sentinel"),
];

/// The call of a name.
pub(crate) fn call(name: &str) -> CallId {
    CallId::ALL.into_iter().find(|call| call.name() == name).unwrap()
}

/// The status of a name.
pub(crate) fn status(name: &str) -> Status {
    STATUSES.into_iter().find(|(_, known)| *known == name).unwrap().0
}

/// The header of a request that a host goes on with.
pub(crate) fn request_header(bytes: &[u8]) -> Result<Header, Outcome> {
    let header = Header::from_bytes(bytes.first_chunk().unwrap());
    let refusal = header.check_request().err();
    if header.magic != MAGIC || (header.buffer_length as usize) < Header::SIZE {
        assert!(refusal.is_some());
        return Err(Outcome::Unanswered);
    }
    match refusal {
        None => Ok(header),
        Some(CallError::Parameter(error)) => Err(Outcome::Refused(error.parameter)),
        Some(error) => panic!("no parameter error: {error}"),
    }
}

/// The header of an answer whose body a guest can look at.
pub(crate) fn answer_header(bytes: &[u8]) -> Result<Header, Outcome> {
    let header = Header::from_bytes(bytes.first_chunk().unwrap());
    let room = (header.buffer_length as usize).checked_sub(Header::SIZE);
    let fits = room.is_some_and(|room| header.body_length as usize <= room);
    if header.magic == MAGIC && fits { Ok(header) } else { Err(Outcome::HardwareError) }
}

/// The fields of a header.
pub(crate) fn means(header: &Header) -> Outcome {
    let encoded = header.to_bytes().to_vec();
    Outcome::Means { value: value(header), encoded, taken_as: None }
}

/// The fields of an answer's header, and what a guest makes of a status that is none of a host's.
pub(crate) fn answer_means(header: &Header) -> Outcome {
    let encoded = header.to_bytes().to_vec();
    Outcome::Means { value: value(header), encoded, taken_as: taken_as(header.status) }
}

/// A whole request.
pub(crate) fn request(bytes: &[u8]) -> Result<Outcome, Outcome> {
    let header = request_header(bytes)?;
    let body = body_of(bytes, &header);
    let Some(call) = CallId::from_number(header.call) else {
        assert!(matches!(Request::parse(header.call, body), Err(CallError::NotSupported)));
        return Err(Outcome::NotSupported);
    };
    Ok(with_header(&header, request_body(call, body)))
}

/// A whole answer.
pub(crate) fn answer(bytes: &[u8]) -> Result<Outcome, Outcome> {
    let header = answer_header(bytes)?;
    if taken_as(header.status).is_some() {
        let Outcome::Means { value, encoded, taken_as } = answer_means(&header) else {
            unreachable!("a header always means something")
        };
        return Ok(Outcome::Means { value: json!({"header": value}), encoded, taken_as });
    }
    let call = CallId::from_number(header.call);
    Ok(with_header(&header, answer_body(header.status, call, body_of(bytes, &header))))
}

/// The body of a request. The host answers *body* to one that is none.
pub(crate) fn request_body(call: CallId, bytes: &[u8]) -> Outcome {
    let decoded = body::request(call, bytes);
    match (&decoded, Request::parse(call.number(), bytes)) {
        (Ok(_), Ok(request)) => assert_eq!(request.call(), call),
        (Err(_), Err(error)) => assert_eq!(error, CallError::parameter(Parameter::Body)),
        (decoded, parsed) => panic!("{decoded:?}, but parsed as {parsed:?}"),
    }
    decoded.into()
}

/// The body of an answer. Only errors do without the call that they answer.
pub(crate) fn answer_body(status: Status, call: Option<CallId>, bytes: &[u8]) -> Outcome {
    let Some(error) = CallError::decode(status, bytes) else {
        return body::answer(call.unwrap(), bytes).into();
    };
    let (value, encoded) = body::error(error);
    // Where the error is a hardware error in itself, a body that is none makes no difference.
    if error.status() != status || error == CallError::Hardware && !bytes.is_empty() {
        return Outcome::HardwareError;
    }
    Outcome::Means { value, encoded, taken_as: None }
}

fn body_of<'a>(bytes: &'a [u8], header: &Header) -> &'a [u8] {
    let body = &bytes[Header::SIZE..];
    &body[..body.len().min(header.body_length as usize)]
}

fn with_header(header: &Header, body: Outcome) -> Outcome {
    match body {
        Outcome::Means { value: body, encoded, taken_as } => Outcome::Means {
            value: json!({"header": value(header), "body": body}),
            encoded: [&header.to_bytes()[..], &encoded].concat(),
            taken_as,
        },
        other => other,
    }
}

fn taken_as(status: Status) -> Option<&'static str> {
    let error = CallError::decode(status, &[])?;
    match word(status) {
        None => assert_eq!(error, CallError::Hardware),
        Some("sentinel") => assert_eq!(error, CallError::NotSupported),
        Some(_) => return None,
    }
    STATUSES.into_iter().find(|(known, _)| *known == error.status()).map(|(_, name)| name)
}

fn word(status: Status) -> Option<&'static str> {
    STATUSES.into_iter().find(|(known, _)| *known == status).map(|(_, name)| name)
}

fn value(header: &Header) -> Value {
    let Header { version, call, function, buffer_length, body_length, status, .. } = *header;
    let call = CallId::from_number(call).map_or(json!(call), |call| json!(call.name()));
    let status =
        word(status).map_or_else(|| words::hexadecimal(u64::from(status.0)), str::to_owned);
    json!({
        "version": words::version(version), "call": call,
        "function": {
            "segment": function.segment(), "bus": function.bus(),
            "device": function.device(), "function": function.function(),
        },
        "buffer length": buffer_length, "body length": body_length, "status": status,
        "reserved": header.reserved,
    })
}
