//! Conformance suite of PV-MSI.
//!
//! Tests of a host half and of a guest half, written from the numbered clauses
//! of the specification. Implement [`host::HostUnderTest`] or
//! [`guest::GuestUnderTest`] for your own half, hand its factory to [`run`],
//! and read the [`Report`].
//!
//! ```
//! use pvmsi_conformance::{Selection, guest::ours::OurGuest, host::ours::OurHost, run};
//!
//! let selection = Selection::parse(&["H-440".to_owned()], None)?;
//! let report = run(&OurHost, &OurGuest, &selection);
//! assert!(report.results.iter().all(|result| result.outcome.is_passed()));
//! # Ok::<(), pvmsi_conformance::UnknownSelection>(())
//! ```
//!
//! That the tests themselves would notice something is proved by [`mutants`]:
//! halves that are wrong in one thing each, every one of which must be caught.
#![allow(
    clippy::arithmetic_side_effects,
    reason = "a test that overflows fails, and the runner says so"
)]

mod clause;
mod excuse;
mod expected;
pub mod format;
pub mod guest;
pub mod host;
mod matrix;
pub mod mutants;
mod run;
mod suite;

pub use clause::{Clause, Side, clauses};
pub use excuse::{Excuse, excuses};
pub use expected::{ExpectedFailures, ParseExpectedFailuresError};
pub use matrix::matrix;
pub use run::{Outcome, Report, Selection, TestResult, UnknownSelection, run};
pub use suite::{Body, Stop, Target, Test, Verdict, tests};
