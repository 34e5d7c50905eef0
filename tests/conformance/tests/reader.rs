//! The suite on the guest half in C that was written from the specification alone.

use pvmsi_conformance::guest::reader::ReadersGuest;
use pvmsi_conformance::host::ours::OurHost;
use pvmsi_conformance::{Outcome, Selection, Target, run};

#[test]
fn the_readers_guest_half_conforms() {
    let guests = Selection::parse(&[], Some(Target::Guest)).unwrap();
    let report = run(&OurHost, &ReadersGuest, &guests);
    assert!(report.results.len() >= 25);
    // Also those of what it need not do: there is no expected failure and no skip.
    for result in &report.results {
        assert_eq!(result.outcome, Outcome::Passed, "{}", result.test.name);
    }
}
