//! The client against a scripted host, and [`MsiX`](crate::MsiX) over a function in memory.
#![allow(clippy::arithmetic_side_effects, reason = "an overflow in a test fails the test")]

mod capability;
mod client;
mod discovery;
mod function;
mod host;
mod msix;
