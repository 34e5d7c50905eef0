//! The wire layer of the Linux module: the suite, the test vectors of the specification, and hosts that write anything.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod answers;
// What the protocol crate makes of the vectors is proven by its own tests; here it is what the C
// code is compared with.
#[path = "../../../../protocol/tests/vectors/body.rs"]
mod body;
#[path = "../../../../protocol/tests/vectors/file.rs"]
mod file;
mod hostile;
mod requests;
mod room;
mod session;
#[path = "../../../../protocol/tests/vectors/words.rs"]
mod words;
mod words_in_c;

use pvmsi_conformance::guest::linux::{LinuxGuest, wire};
use pvmsi_conformance::host::ours::OurHost;
use pvmsi_conformance::{Outcome, Selection, Target, run};

#[test]
fn the_linux_guest_half_conforms() {
    let guests = Selection::parse(&[], Some(Target::Guest)).unwrap();
    let report = run(&OurHost, &LinuxGuest, &guests);
    assert!(report.results.len() >= 25);
    // Also those of what it need not do: there is no expected failure and no skip.
    for result in &report.results {
        assert_eq!(result.outcome, Outcome::Passed, "{}", result.test.name);
    }
}

#[test]
fn structures_are_the_same_on_both_sides() {
    wire::check_layout().unwrap();
}
