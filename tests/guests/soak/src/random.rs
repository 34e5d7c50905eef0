//! Random numbers that a seed decides: a stream for each vCPU.

use core::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;
use pvmsi_guest_runtime::vcpu;

use crate::VCPUS_MAX;

static STREAMS: [AtomicU64; VCPUS_MAX] = [const { AtomicU64::new(0) }; VCPUS_MAX];

/// Starts all streams.
pub(crate) fn seed(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    for stream in &STREAMS {
        stream.store(rng.u64(..), Ordering::Relaxed);
    }
}

/// Goes on with the stream of this vCPU for as long as `act` takes.
pub(crate) fn with<T>(act: impl FnOnce(&mut Rng) -> T) -> T {
    let stream = STREAMS.get(vcpu::index());
    let mut rng = Rng::with_seed(stream.map_or(0, |stream| stream.load(Ordering::Relaxed)));
    let result = act(&mut rng);
    if let Some(stream) = stream {
        stream.store(rng.get_seed(), Ordering::Relaxed);
    }
    result
}
