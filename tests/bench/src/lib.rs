//! The operations that `cargo xtask bench` counts.
//!
//! A kind of count is a subcommand of `pvmsi-bench`, which prints a [`Line`] of JSON for each:
//!
//! | subcommand | counts | by |
//! |---|---|---|
//! | `instructions` | instructions of host half and guest half | valgrind's callgrind, from outside |
//! | `accesses` | loads and stores of the vector table | valgrind's lackey, from outside |
//! | `counts` | exits, requests to the kernel, bytes of calls | itself |
//! | `holds` | how long each doorbell exit of one `configure` holds a processor | itself, on /dev/kvm |
//!
//! All that touches the host half is in [`host`], all that touches the guest half in [`guest`].

pub mod accesses;
pub mod counts;
pub mod guest;
pub mod holds;
pub mod host;
pub mod instructions;
mod line;
mod meter;
mod standard;

pub use line::{Line, Side, Unit};
pub use meter::Meter;

/// Numbers of vectors that the plot is made from: powers of 2 up to [`VECTORS`].
pub(crate) const POWERS: [u16; 12] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, VECTORS];

/// The most vectors that a function can have, and that the figures are about.
pub const VECTORS: u16 = 2048;
