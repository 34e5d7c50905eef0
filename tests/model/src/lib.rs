//! Model checker of the host service: nothing lost, nothing doubled, nothing let in.
//!
//! The state machine that runs in production, not a copy of it, is put into each
//! state that a guest with two processors, a device and a host can bring it to,
//! and made to take each step from there. [`stateright`] keeps account of the
//! states; a state is the service's own ([`pvmsi_hypervisor::model`]), what lies
//! behind its seams, and what the specification says of it.
//!
//! ```text
//!   operation ──▶ Service (production) ──▶ seams ──▶ World: function, KVM, memory map
//!       │                                    ▲
//!       │                                    └── meanwhile: the device raises an event, a message
//!       ▼                                        arrives, the other processor writes a mask bit
//!   Rules: what the specification says ──▶ compared after each step
//! ```
//!
//! # What is explored
//!
//! | who | does |
//! |---|---|
//! | guest | mask and unmask (by its mapping, by an exit, by an exit that came before the mapping), write messages, `configure`, `update`, `release`, `restore`, MSI-X Enable, Function Mask, memory decoding, power state, BAR, function level reset, a reset by a register |
//! | device | raise an event whose message arrives at once, or later |
//! | host | revoke, allow, reset the function, repair it, reset the machine, remove the function |
//!
//! Operations on one function are behind one lock. What can act in the middle of
//! one is what needs no lock: the device, messages under way, and the other
//! processor with its mapping. Each call of a seam and each look at an event is a
//! place where one of them may act ([`world::Access`]); places that cannot make a
//! difference are left out. One such act for each operation: more in one
//! operation are not explored.
//!
//! The locks themselves are not in the model: `tests/concurrency.rs` runs service
//! and software function under `shuttle`, which tries the orders in which threads
//! can take them.
//!
//! # What is checked
//!
//! The properties are in [`violation::PROPERTIES`], each with the clauses that it
//! checks; `tests/seeded_bugs.rs` shows of each that it can fail. How events are
//! counted is in [`rules`].
//!
//! # Commands
//!
//! | command | does |
//! |---|---|
//! | `cargo xtask model` | [all bounds](bounds::Bounds::FULL), and the locks |
//! | `cargo xtask model --quick` | [small bounds](bounds::Bounds::QUICK), and the locks; a step of `cargo xtask test` |
//! | `cargo test -p pvmsi-model` | the seeded bugs |
//!
//! All bounds together are some 2.7 million distinct states, most of them (almost two
//! million) in the first: two vectors with two messages each, two places for
//! the BAR, messages under way. That takes 15 to 20 minutes of processor time, the
//! small bounds half a minute. Fewer than a million states are a failure.
//!
//! Each exploration prints its bounds, the number of distinct states and the
//! depth, or the shortest way to what is broken.

// A broken model shall stop: indices are vectors and GSIs of fixed arrays, and sums are small.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

pub mod action;
pub mod bounds;
pub mod bugs;
pub mod explore;
pub mod hardware;
pub mod kernel;
pub mod rig;
pub mod rules;
pub mod state;
pub mod violation;
pub mod world;

/// Vectors of the function.
pub const VECTORS: usize = 2;
