//! How many files a function keeps open. Alone in its process, whose files it counts.

#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation)]

mod fixture;

use fixture::*;
use pvmsi_protocol::{CallError, Sequence};

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn an_unfinished_configure_keeps_no_events_that_it_will_not_use() {
    let guest = Guest::new(Options { vectors: 100, vectors_per_call: 99, ..Options::default() });
    guest.control(ENABLE);
    let busy = guest.configure_with(100, Sequence::START, &[]);
    let Err(CallError::Busy(busy)) = busy else { panic!("{busy:?}") };
    guest.program(0, message(0));
    guest.mask(0);
    let before = open_files();
    let answer = guest.configure_with(100, busy.sequence, &[]).unwrap();
    assert_eq!(answer.granted, 100);
    assert_eq!(open_files(), before, "those of the emulated table are enough");
}
