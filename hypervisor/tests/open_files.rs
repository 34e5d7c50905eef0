//! How many files a function keeps open. Alone in its process, whose files it counts.

#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation)]

mod fixture;

use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use fixture::*;
use pvmsi_protocol::{CallError, FunctionId, Sequence};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// One test at a time.
static FILES: Mutex<()> = Mutex::new(());

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Acts with no more than `free` files beside those that are open.
fn with_files(free: usize, act: impl FnOnce()) {
    let before = getrlimit(Resource::Nofile);
    let current = Some((open_files() + free) as u64);
    setrlimit(Resource::Nofile, Rlimit { current, ..before }).unwrap();
    act();
    setrlimit(Resource::Nofile, before).unwrap();
}

/// The fixture has a copy of each event that is set up twice, and one of each that is attached.
#[test]
fn an_emulated_table_starts_with_the_events_of_an_unfinished_configure() {
    let _alone = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let guest = Guest::new(Options { vectors: 8, vectors_per_call: 4, ..Options::default() });
    guest.control(ENABLE);
    let busy = guest.configure_with(8, Sequence::START, &[]);
    assert!(matches!(busy, Err(CallError::Busy(_))));
    with_files(4 + 16 + 8, || (0..8).for_each(|vector| guest.program(vector, message(vector))));
    (0..8).for_each(|vector| guest.raise(vector));
    assert_eq!(guest.interrupts(), [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn an_unfinished_configure_keeps_no_events_that_it_will_not_use() {
    let _alone = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let guest = Guest::new(Options { vectors: 100, vectors_per_call: 99, ..Options::default() });
    guest.control(ENABLE);
    let busy = guest.configure_with(100, Sequence::START, &[]);
    let Err(CallError::Busy(busy)) = busy else { panic!("{busy:?}") };
    guest.program(99, message(99));
    guest.mask(99);
    let before = open_files();
    let answer = guest.configure_with(100, busy.sequence, &[]).unwrap();
    assert_eq!(answer.granted, 100);
    assert_eq!(open_files(), before, "those of the emulated table are enough");
}

/// A function whose set-up cannot grow later asks for all its vectors, but needs those that were granted.
#[test]
fn a_function_is_restored_with_files_for_what_it_needs() {
    let _alone = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let guest = || Guest::new(Options { vectors: 64, grows: false, ..Options::default() });
    let (source, target) = (guest(), guest());
    source.control(ENABLE);
    source.configure(4);
    let state = source.service.save().unwrap();
    drop(source);
    with_files(30, || target.service.restore(&state).unwrap());
    target.service.resume().unwrap();
    (0..4).for_each(|vector| target.raise(vector));
    assert_eq!(target.interrupts(), [0, 1, 2, 3]);
}

/// The first function of a VM must not take the files for later that the second needs now.
#[test]
fn two_functions_are_restored_with_files_for_what_they_need() {
    let _alone = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let first = FunctionId(4);
    let host = || {
        let guest = Guest::new(Options { vectors: 8, routes: 12, ..Options::default() });
        assert!(guest.add_function(first).is_some());
        guest
    };
    let (source, target) = (host(), host());
    source.control(ENABLE);
    source.configure(8);
    // Four are left for the function that comes first in the state.
    source.use_in_the_standard_way(first);
    let state = source.service.save().unwrap();
    drop(source);
    // Twelve events, each of which the fixture has copies of.
    target.routes.left.store(100, Ordering::SeqCst);
    with_files(12 * 3 + 8, || target.service.restore(&state).unwrap());
    target.service.resume().unwrap();
    (0..8).for_each(|vector| target.raise(vector));
    assert_eq!(target.interrupts(), [0, 1, 2, 3, 4, 5, 6, 7]);
}
