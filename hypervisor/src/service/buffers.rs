//! Memory for the requests and answers of calls.
//!
//! A call buffer can be 64 KiB, and most calls are a few bytes. Memory that is made and zeroed
//! for each call would cost more than the call. What an earlier call has left in it reaches no guest:
//! an answer is as long as what was written of it.

use std::sync::PoisonError;

use pvmsi_protocol::{BUFFER_MAX, Header};

use crate::sync::Mutex;

/// The most bytes after a header.
const BODY_MAX: usize = BUFFER_MAX.saturating_sub(Header::SIZE);

/// The bodies of one call.
pub(super) struct Bodies {
    pub(super) request: Vec<u8>,
    pub(super) answer: Vec<u8>,
}

impl Bodies {
    fn new() -> Self {
        Self { request: vec![0; BODY_MAX], answer: vec![0; BODY_MAX] }
    }
}

/// Bodies that no call uses at the moment: as many as there were calls at one time.
pub(super) struct Buffers(Mutex<Vec<Bodies>>);

impl Buffers {
    /// For one call at a time; more come when they are needed.
    pub(super) fn new() -> Self {
        Self(Mutex::new(vec![Bodies::new()]))
    }

    /// Bodies for one call, whatever stands in them.
    pub(super) fn lend<T>(&self, act: impl FnOnce(&mut Bodies) -> T) -> T {
        let idle = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // By itself: the lock is free while they are made.
        let lent = idle().pop();
        let mut bodies = lent.unwrap_or_else(Bodies::new);
        let result = act(&mut bodies);
        idle().push(bodies);
        result
    }
}
