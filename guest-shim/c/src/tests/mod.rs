//! The functions as C calls them, against a host that answers in the doorbell.
#![allow(clippy::arithmetic_side_effects, reason = "an overflow in a test fails the test")]
#![allow(clippy::multiple_unsafe_ops_per_block, reason = "a test is a piece of C")]

mod host;
mod kernel;

mod client;
mod misuse;
mod msix;
mod numbers;
