//! Bodies: what this crate decodes, in the words of the specification, and what it encodes again.

use pvmsi_protocol::{Value as Decodable, *};
use serde_json::{Value, json};

use super::words;

/// What some bytes mean, and the bytes of that meaning.
pub(crate) type Decoded = Result<(Value, Vec<u8>), DecodeError>;

/// The request of a call.
pub(crate) fn request(call: CallId, body: &[u8]) -> Decoded {
    Ok(match call {
        CallId::Negotiate => {
            let request = NegotiateRequest::decode(body)?;
            let NegotiateRequest { version, features } = request;
            let value = json!({
                "version": words::version(version), "features": words::features(features),
            });
            (value, encoded(&request))
        }
        CallId::QueryVectors => {
            let request = QueryVectorsRequest::decode(body)?;
            let QueryVectorsRequest { first, count } = request;
            (json!({"first": first, "count": count}), encoded(&request))
        }
        CallId::Configure => configure_request(ConfigureRequest::decode(body)?)?,
        CallId::Update => {
            let updates = items(UpdateRequest::decode(body)?.vectors)?;
            let values = updates.iter().map(|VectorUpdate { vector, message }| {
                json!({"vector": vector.0, "message": words::guest_message(*message)})
            });
            let value = json!({"vectors": values.collect::<Value>()});
            (value, filled(|buffer| UpdateRequest::encode(updates.iter().copied(), buffer)))
        }
        // These have no type of their own, and no more than one thing can be wrong with them.
        CallId::QueryFunction | CallId::Release | CallId::Restore => {
            Request::parse(call.number(), body).map_err(|_| DecodeError::TrailingBytes)?;
            (json!({}), Vec::new())
        }
    })
}

fn configure_request(request: ConfigureRequest<'_>) -> Decoded {
    let ConfigureRequest { kind, requested, sequence, vectors } = request;
    let setups = items(vectors)?;
    let values = setups.iter().map(|VectorSetup { message, masked }| {
        json!({"message": message.map(words::guest_message), "masked": masked})
    });
    let value = json!({
        "kind": words::kind(kind), "requested": requested, "sequence": sequence.0,
        "vectors": values.collect::<Value>(),
    });
    let encode = |buffer: &mut [u8]| {
        ConfigureRequest::encode(kind, requested, sequence, setups.iter().copied(), buffer)
    };
    Ok((value, filled(encode)))
}

/// The answer of a call that succeeded.
pub(crate) fn answer(call: CallId, body: &[u8]) -> Decoded {
    Ok(match call {
        CallId::Negotiate => {
            let answer = NegotiateAnswer::decode(body)?;
            let NegotiateAnswer { version, features, limits } = answer;
            let value = json!({
                "version": words::version(version), "features": words::features(features),
                "limits": {"largest buffer": limits.buffer_bytes, "vectors": limits.vectors},
            });
            (value, encoded(&answer))
        }
        CallId::QueryFunction => {
            let answer = QueryFunctionAnswer::decode(body)?;
            let value = json!({
                "MSI vectors": answer.msi_vectors, "MSI-X vectors": answer.msix_vectors,
                "assigned": answer.assigned, "mode": words::lower(answer.mode),
                "reasons": words::reasons(answer.reasons), "generation": answer.generation.0,
                "delivery": words::lower(answer.delivery),
            });
            (value, encoded(&answer))
        }
        CallId::QueryVectors => query_vectors_answer(QueryVectorsAnswer::decode(body)?)?,
        CallId::Configure => configure_answer(ConfigureAnswer::decode(body)?)?,
        CallId::Update => {
            let answer = UpdateAnswer::decode(body)?;
            (json!({"generation": answer.generation.0}), encoded(&answer))
        }
        CallId::Release => {
            let answer = ReleaseAnswer::decode(body)?;
            (json!({"generation": answer.generation.0}), encoded(&answer))
        }
        CallId::Restore => {
            let answer = RestoreAnswer::decode(body)?;
            let value = json!({
                "mode": words::lower(answer.mode), "reasons": words::reasons(answer.reasons),
                "generation": answer.generation.0,
            });
            (value, encoded(&answer))
        }
    })
}

fn query_vectors_answer(answer: QueryVectorsAnswer<'_>) -> Decoded {
    let states = items(answer.vectors)?;
    let values = states.iter().map(|state| {
        json!({
            "assigned": state.assigned, "guest message": state.guest_message.map(words::guest_message),
            "table message": state.table_message.map(words::table_message),
            "masked": state.masked, "pending": state.pending,
        })
    });
    let value = json!({"generation": answer.generation.0, "vectors": values.collect::<Value>()});
    let encode = |buffer: &mut [u8]| {
        QueryVectorsAnswer::encode(answer.generation, states.iter().copied(), buffer)
    };
    Ok((value, filled(encode)))
}

fn configure_answer(answer: ConfigureAnswer<'_>) -> Decoded {
    let ConfigureAnswer { granted, mode, reasons, generation, vectors } = answer;
    let vectors = items(vectors)?;
    let values = vectors.iter().map(|VectorAnswer { table_message, pending }| {
        json!({"table message": table_message.map(words::table_message), "pending": pending})
    });
    let value = json!({
        "granted": granted, "mode": words::lower(mode), "reasons": words::reasons(reasons),
        "generation": generation.0, "vectors": values.collect::<Value>(),
    });
    let encode = |buffer: &mut [u8]| {
        ConfigureAnswer::encode(mode, reasons, generation, vectors.iter().copied(), buffer)
    };
    Ok((value, filled(encode)))
}

/// The body of an error, as far as the guest is told: one that cannot be decoded is a hardware error.
pub(crate) fn error(error: CallError) -> (Value, Vec<u8>) {
    let value = match error {
        CallError::Parameter(ParameterError { parameter, vector }) => {
            json!({"parameter": words::parameter(parameter), "vector": vector})
        }
        CallError::Busy(Busy { sequence, delay_us }) => {
            json!({"sequence": sequence.0, "delay": delay_us})
        }
        _ => json!({}),
    };
    (value, encoded(&error))
}

fn items<T: Decodable>(list: List<'_, T>) -> Result<Vec<T>, DecodeError> {
    list.iter().collect()
}

fn encoded(body: &impl Encode) -> Vec<u8> {
    filled(|buffer| body.encode(buffer))
}

fn filled(encode: impl FnOnce(&mut [u8]) -> Result<usize, EncodeError>) -> Vec<u8> {
    let mut buffer = vec![0; BUFFER_MAX - Header::SIZE];
    let length = encode(&mut buffer).unwrap();
    buffer.truncate(length);
    buffer
}
