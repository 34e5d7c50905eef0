//! Tests of a host half, a file for each subject.
#![allow(
    clippy::indexing_slicing,
    reason = "an index outside ends the test, and the runner calls that a failure"
)]

mod buffer;
mod configure;
mod discovery;
mod doorbell;
mod encoding;
mod events;
mod messages;
mod migration;
mod modes;
mod negotiate;
mod ownership;
mod query;
mod resets;
mod security;
mod update;

use alloc::vec::Vec;

use crate::suite::Test;

/// All of them, in the order of the specification.
pub(crate) fn tests() -> Vec<Test> {
    [
        discovery::TESTS,
        buffer::TESTS,
        doorbell::TESTS,
        encoding::TESTS,
        negotiate::TESTS,
        query::TESTS,
        configure::TESTS,
        update::TESTS,
        modes::TESTS,
        events::TESTS,
        ownership::TESTS,
        messages::TESTS,
        resets::TESTS,
        migration::TESTS,
        security::TESTS,
    ]
    .concat()
}
