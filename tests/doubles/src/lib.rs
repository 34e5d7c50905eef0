//! Routes and windows that stand in for a hypervisor, for all tests of the host service.
//!
//! | double | does |
//! |---|---|
//! | [`RecordedRoutes`] | behaves as KVM's routing table and irqfds, keeps what was delivered, and checks its caller |
//! | [`RecordedWindow`] | keeps what the guest's memory map shows |
//! | [`IdleRoutes`], [`IdleWindow`] | nothing, at no cost: for tests of something else, and to count instructions |
//! | [`layouts`] | says how vendors lay out functions |
//!
//! Before each [`Step`] the recording ones ask their [`Hook`], which may refuse it, or act beside it.
//! They hold no lock then.
//!
//! A crate and no feature of the library: the doubles panic where their caller errs, which the
//! library's lints forbid, and a feature would be part of every build of the workspace. The model
//! checker has doubles of its own, since their state is part of the states that it explores.

// A caller that breaks the promises of a seam shall stop.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod idle;
pub mod layouts;
mod routes;
mod step;
mod sync;
mod window;

pub use idle::{IdleRoutes, IdleWindow};
pub use routes::RecordedRoutes;
pub use step::{Hook, Step};
pub use window::{RecordedWindow, SharedWindow};
