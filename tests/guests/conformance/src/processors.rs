//! Several things at once, on a vCPU each.

use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicPtr, Ordering};

use pvmsi_conformance::host::Work;
use pvmsi_conformance::{Stop, Verdict};
use pvmsi_guest_runtime::{VCPUS_MAX, interrupts, vcpu};

/// Milliseconds that the others may take longer than the first.
const PATIENCE: u32 = 120_000;

static JOBS: [AtomicPtr<Job<'static>>; VCPUS_MAX] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; VCPUS_MAX];

/// What a vCPU does, and what came of it.
struct Job<'w> {
    work: Work<'w>,
    verdict: UnsafeCell<Verdict>,
}

/// Does the first on this vCPU, the others on the next ones, until all are done.
pub(crate) fn at_once(work: &[Work<'_>]) -> Verdict {
    if work.len() > vcpu::count() {
        return Err(Stop::Skipped("too few vCPUs".into()));
    }
    let unfinished = || Err(Stop::Failed("expected: a processor that comes to an end".into()));
    let jobs: Vec<_> =
        work.iter().map(|&work| Job { work, verdict: UnsafeCell::new(unfinished()) }).collect();
    for (index, (job, place)) in jobs.iter().zip(&JOBS).enumerate().skip(1) {
        place.store(core::ptr::from_ref(job).cast_mut().cast(), Ordering::Release);
        if !vcpu::start(index, perform) {
            return Err(Stop::Failed("expected: an idle processor".into()));
        }
    }
    let mut verdict = work.first().map_or(Ok(()), |work| work());
    let idle = || (1..jobs.len()).all(vcpu::is_idle);
    let done = vcpu::wait_until(PATIENCE, idle);
    interrupts::enable();
    if !done {
        // They may still use what is on this stack.
        pvmsi_guest_runtime::println!("Bail out! a vCPU does not come to an end");
        pvmsi_guest_runtime::exit(1);
    }
    for job in jobs.into_iter().skip(1) {
        verdict = verdict.and(job.verdict.into_inner());
    }
    verdict
}

fn perform(index: usize) {
    let Some(job) = JOBS.get(index) else { return };
    // SAFETY: `at_once` has stored it, and waits for this vCPU before the job ends.
    let Some(job) = (unsafe { job.load(Ordering::Acquire).as_ref() }) else { return };
    let verdict = (job.work)();
    // SAFETY: nobody else looks at it before this vCPU is idle.
    unsafe { *job.verdict.get() = verdict };
}
