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
//!
//! Without the feature `std` only the tests of a host half are left: the same code
//! runs as a guest of the host that it tests (`tests/guests/conformance`).
#![cfg_attr(not(feature = "std"), no_std)]
#![allow(
    clippy::arithmetic_side_effects,
    reason = "a test that overflows fails, and the runner says so"
)]

#[macro_use]
extern crate alloc;

#[cfg(feature = "std")]
mod clause;
#[cfg(feature = "std")]
mod excuse;
#[cfg(feature = "std")]
mod expected;
#[cfg(feature = "std")]
pub mod format;
#[cfg(feature = "std")]
pub mod guest;
pub mod host;
#[cfg(feature = "std")]
mod matrix;
#[cfg(feature = "std")]
pub mod mutants;
#[cfg(feature = "std")]
mod run;
mod suite;

#[cfg(feature = "std")]
pub use clause::{Clause, Side, clauses};
#[cfg(feature = "std")]
pub use excuse::{Excuse, excuses};
#[cfg(feature = "std")]
pub use expected::{ExpectedFailures, ParseExpectedFailuresError};
#[cfg(feature = "std")]
pub use matrix::matrix;
#[cfg(feature = "std")]
pub use run::{Outcome, Report, Selection, TestResult, UnknownSelection, run};
pub use suite::{Body, Stop, Target, Test, Verdict, tests};
