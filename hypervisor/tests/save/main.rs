//! A guest that is stopped, saved and continued by another service: what it finds, and what is refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

mod failing;
#[path = "../fixture/mod.rs"]
mod fixture;
mod format;
mod refused;
mod survives;
mod walk;

use fixture::*;
use pvmsi_hypervisor::ServiceState;
use pvmsi_software::SoftwareDeviceState;
use serde::Serialize;
use serde_json::Value;

/// What a VMM carries from one host to the other, encoded.
struct Saved {
    service: Vec<u8>,
    device: Vec<u8>,
    config: Vec<u8>,
}

fn stop(source: &Guest) -> Saved {
    let service = source.service.save().unwrap();
    carried(source, &service)
}

/// The service's state, and what goes with it.
fn carried(source: &Guest, service: &ServiceState) -> Saved {
    let device = source.device.save();
    let mut config = vec![0; 256];
    assert!(source.router.config_read(FUNCTION, 0, &mut config));
    Saved { service: bytes(service), device: bytes(&device), config }
}

impl Saved {
    fn service(&self) -> ServiceState {
        postcard::from_bytes(&self.service).unwrap()
    }

    fn device(&self) -> SoftwareDeviceState {
        postcard::from_bytes(&self.device).unwrap()
    }

    /// A second host, whose guest does not run yet.
    fn start(&self, options: Options) -> Guest {
        let target = Guest::new(options);
        for (offset, word) in (0..).step_by(4).zip(self.config.chunks(4)) {
            target.config_write(offset, word);
        }
        target.device.restore(&self.device()).unwrap();
        target.service.restore(&self.service()).unwrap();
        target
    }
}

/// Moves a guest to a second host with other options, and lets it go on. Checks on the way that a state that was restored saves as itself.
fn moved_to(source: &Guest, options: Options) -> Guest {
    assert_eq!(source.interrupts(), NONE, "the test has taken what came before");
    let saved = stop(source);
    assert_eq!(source.interrupts(), NONE, "saving delivers nothing");
    let target = saved.start(options);
    let again = target.service.save().unwrap();
    assert_eq!(without_generation(&again), without_generation(&saved.service()));
    assert_eq!(target.device.save(), saved.device());
    assert_eq!(target.interrupts(), NONE, "nothing is delivered before the guest goes on");
    target.service.resume().unwrap();
    target
}

fn moved(source: &Guest, vectors: u16) -> Guest {
    moved_to(source, Options { vectors, ..Options::default() })
}

/// The encoding without names: what is not read in order is not read at all.
fn bytes(state: &impl Serialize) -> Vec<u8> {
    postcard::to_slice(state, &mut vec![0; 0x1_0000]).unwrap().to_vec()
}

fn json(state: &ServiceState) -> Value {
    serde_json::to_value(state).unwrap()
}

/// All that must be the same after restoring; the generation must be another one.
fn without_generation(state: &ServiceState) -> Value {
    let mut value = json(state);
    for function in value[1].as_array_mut().unwrap() {
        function.as_object_mut().unwrap().remove("generation").unwrap();
    }
    value
}
