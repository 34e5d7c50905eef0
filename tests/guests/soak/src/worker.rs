//! vCPUs that do something until the round ends.

use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicUsize, Ordering};

use pvmsi_guest_client::ServiceClient;
use pvmsi_guest_runtime::{interrupts, memory, report, timer, vcpu};

use crate::VCPUS_MAX;
use crate::conductor::Round;
use crate::{masker, operator};

/// The vCPU that masks; all others but vCPU 0 operate.
pub(crate) const MASKER: usize = 1;

static CLIENTS: [AtomicPtr<ServiceClient>; VCPUS_MAX] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; VCPUS_MAX];
static STOP: AtomicBool = AtomicBool::new(false);
static VCPUS: AtomicUsize = AtomicUsize::new(0);
static ROUND: AtomicU8 = AtomicU8::new(0);

/// Says how many vCPUs take part.
pub(crate) fn set_vcpus(vcpus: usize) {
    VCPUS.store(vcpus, Ordering::Release);
}

/// vCPUs that take part.
pub(crate) fn vcpus() -> usize {
    VCPUS.load(Ordering::Acquire)
}

/// Gives a vCPU a client of its own.
pub(crate) fn give(vcpu: usize, client: ServiceClient) {
    let placed = memory::place_mut(client);
    if let (Some(place), Some(client)) = (CLIENTS.get(vcpu), placed) {
        place.store(core::ptr::from_mut(client), Ordering::Release);
    }
}

/// Lets a vCPU use its client.
pub(crate) fn with_client<T>(act: impl FnOnce(&mut ServiceClient) -> T) -> Option<T> {
    let place = CLIENTS.get(vcpu::index())?;
    let pointer = place.swap(core::ptr::null_mut(), Ordering::AcqRel);
    // SAFETY: from the only reference to a value that stays for ever; nobody else finds the
    // pointer until it is put back.
    let client = unsafe { pointer.as_mut() }?;
    let result = act(client);
    place.store(pointer, Ordering::Release);
    Some(result)
}

/// Starts all workers on a round.
pub(crate) fn start(vcpus: usize, round: Round) {
    STOP.store(false, Ordering::Release);
    ROUND.store(round as u8, Ordering::Release);
    for index in 1..vcpus {
        if !vcpu::start(index, work) {
            report::failure(format_args!("vCPU {index} is still busy"));
        }
    }
}

/// Tells them to come to an end.
pub(crate) fn stop() {
    STOP.store(true, Ordering::Release);
}

/// Whether the round goes on.
pub(crate) fn go_on() -> bool {
    !STOP.load(Ordering::Acquire)
}

/// Whether all have come to their end.
pub(crate) fn are_idle(vcpus: usize) -> bool {
    (1..vcpus).all(vcpu::is_idle)
}

fn work(index: usize) {
    interrupts::enable();
    let round = Round::from_number(ROUND.load(Ordering::Acquire));
    let done = if index == MASKER {
        masker::work()
    } else {
        with_client(|client| operator::work(client, index, round)).unwrap_or(Err("no client"))
    };
    if let Err(error) = done {
        report::failure(format_args!("vCPU {index}, {round:?} round: {error}"));
    }
    timer::stop_tick();
    interrupts::disable();
}
