//! The suite's teeth: halves that are wrong in one thing each, every one of which a test must catch.
//!
//! A mutant is one of our halves behind a wrapper that makes one mistake, of
//! those that implementers make. There are wrappers for the two traits, and
//! nothing else: what a mutant does wrong can be seen from outside.

mod exchange;
mod guest;
mod guest_bug;
mod host;
mod host_bug;
mod host_calls;

use clap::ValueEnum;

use crate::guest::ours::OurGuest;
use crate::host::ours::OurHost;
use crate::run::{Outcome, run_test};
use crate::suite::{Target, Test, tests};

use guest::MutantGuestFactory;
use guest_bug::GuestBug;
use host::MutantHostFactory;
use host_bug::HostBug;

/// A mutant, and the test that has caught it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hunted {
    /// Which half it is.
    pub target: Target,
    /// The bug.
    pub name: String,
    /// The first test that failed, and what it said; `None`: the mutant survives.
    pub caught: Option<(&'static str, String)>,
}

/// Runs the suite on each mutant until a test fails, one mutant for each step of the iterator.
pub fn hunt() -> impl Iterator<Item = Hunted> {
    let hosts = HostBug::value_variants().iter().map(|&bug| {
        let factory = MutantHostFactory(bug);
        let caught =
            first_failure(Target::Host, |test| run_test(test, &factory, &OurGuest).outcome);
        Hunted { target: Target::Host, name: name(&bug), caught }
    });
    let guests = GuestBug::value_variants().iter().map(|&bug| {
        let factory = MutantGuestFactory(bug);
        let caught =
            first_failure(Target::Guest, |test| run_test(test, &OurHost, &factory).outcome);
        Hunted { target: Target::Guest, name: name(&bug), caught }
    });
    hosts.chain(guests)
}

fn first_failure(target: Target, run: impl Fn(&Test) -> Outcome) -> Option<(&'static str, String)> {
    tests().iter().filter(|test| test.target() == target).find_map(|test| match run(test) {
        Outcome::Failed(why) => Some((test.name, why)),
        Outcome::Passed | Outcome::Skipped(_) => None,
    })
}

fn name(bug: &impl ValueEnum) -> String {
    bug.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}
