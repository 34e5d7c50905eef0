//! The format: the same bytes for the same state, any encoding, and versions that are judged first.

use super::*;
use pvmsi_protocol::{Sequence, VectorSetup};
use serde::de::DeserializeOwned;

fn state() -> ServiceState {
    let guest = Guest::with_vectors(2);
    guest.control(ENABLE);
    let setups = [
        VectorSetup { message: Some(message(1)), masked: true },
        VectorSetup { message: None, masked: false },
    ];
    guest.configure_with(2, Sequence::START, &setups).unwrap();
    guest.raise(1);
    guest.service.save().unwrap()
}

/// The state as it would be decoded, with another version in front.
fn with_version<T: Serialize + DeserializeOwned>(state: &T, version: [u16; 2]) -> Vec<String> {
    let mut value = serde_json::to_value(state).unwrap();
    value[0] = serde_json::json!({ "major": version[0], "minor": version[1] });
    let mut bytes = bytes(state);
    bytes[0] = version[0] as u8;
    bytes[1] = version[1] as u8;
    let from_json = serde_json::from_value::<T>(value).map(drop).map_err(|e| e.to_string());
    let from_postcard = postcard::from_bytes::<T>(&bytes).map(drop).map_err(|e| e.to_string());
    [from_json, from_postcard].into_iter().filter_map(Result::err).collect()
}

#[test]
fn any_encoding_brings_it_back() {
    let state = state();
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<ServiceState>(&text).unwrap(), state);
    let bytes = bytes(&state);
    assert_eq!(postcard::from_bytes::<ServiceState>(&bytes).unwrap(), state);
    let device = Guest::with_vectors(40).device.save();
    let text = serde_json::to_string(&device).unwrap();
    assert_eq!(serde_json::from_str::<SoftwareDeviceState>(&text).unwrap(), device);
}

/// A change of these bytes is a change of the format: it needs another version.
#[test]
fn version_1_0_looks_like_this() {
    #[rustfmt::skip]
    let expected = [
        1, 0, // version
        1, // functions
        8, // function id
        2, // vectors of its table
        1, 0, // MSI-X Enable, Function Mask
        1, 2, // assigned, vectors
        1, 0x80, 0x80, 0x80, 0xf7, 0x0f, 33, 1, // message 0xfee00000/33, masked
        0, 0, // no message, not masked
        1, 1, // events wait for one vector: 1
        0, // no unfinished configure
        3, // generation: configured, direct, and trapped again
    ];
    assert_eq!(bytes(&state()), expected);
    let device = Guest::with_vectors(2).device.save();
    #[rustfmt::skip]
    let expected = [
        1, 0, // version
        0x81, 0x80, 0xc0, 0xb2, 0x05, 2, 0, 0, 0, 0, 0, 0, // registers
        0, // events that DOORBELL has asked for and that were raised
        1, 0, // pending bits
        2, 0, 0, // EVENTS
        2, 0, 0, // SENT
        0, 0, // raised, blocked
    ];
    assert_eq!(bytes(&device), expected);
}

#[test]
fn other_versions_are_refused_before_anything_else_is_read() {
    let (service, device) = (state(), Guest::with_vectors(2).device.save());
    assert_eq!(with_version(&service, [1, 0]), [""; 0], "this one is read");
    for version in [[1, 1], [0, 0], [2, 0], [0, 9]] {
        for messages in [with_version(&service, version), with_version(&device, version)] {
            assert_eq!(messages.len(), 2, "refused in both encodings");
            let text = format!("version {}.{}; 1.0 and older minors", version[0], version[1]);
            assert!(messages[0].contains(&text), "{messages:?}");
        }
    }
    // Whatever follows: it may be laid out in a way that nobody here knows.
    let newer = serde_json::json!([{ "major": 1, "minor": 3, "patch": 2 }, "else"]);
    let error = serde_json::from_value::<ServiceState>(newer).unwrap_err().to_string();
    assert!(error.contains("version 1.3"), "{error}");
}
