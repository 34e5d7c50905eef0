//! What a test is, and how it says what it expected.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Debug;

#[cfg(feature = "std")]
use crate::guest::GuestFactory;
use crate::host::HostFactory;

/// Why a test went no further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The half under test does not do what a clause demands: what was expected, what was seen.
    Failed(String),
    /// The half under test, or its adapter, lacks what the test needs.
    Skipped(String),
}

/// What a test comes to.
pub type Verdict<T = ()> = Result<T, Stop>;

/// Which half is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A host half, by what a guest can do to it and by what can be seen from outside.
    Host,
    /// A guest half, by a host that answers as the test says.
    Guest,
}

impl Target {
    /// As on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Guest => "guest",
        }
    }
}

/// What a test does.
#[derive(Clone, Copy)]
pub enum Body {
    /// With machines of the host under test.
    Host(fn(&dyn HostFactory) -> Verdict),
    /// With the guest under test and a scripted host.
    #[cfg(feature = "std")]
    Guest(fn(&dyn GuestFactory) -> Verdict),
}

/// A test.
#[derive(Clone, Copy)]
pub struct Test {
    /// Unique; says what must hold.
    pub name: &'static str,
    /// The clauses that it tests.
    pub clauses: &'static [&'static str],
    /// What it does.
    pub body: Body,
}

impl Test {
    /// A test of a host.
    pub(crate) const fn host(
        name: &'static str,
        clauses: &'static [&'static str],
        body: fn(&dyn HostFactory) -> Verdict,
    ) -> Self {
        Self { name, clauses, body: Body::Host(body) }
    }

    /// A test of a guest.
    #[cfg(feature = "std")]
    pub(crate) const fn guest(
        name: &'static str,
        clauses: &'static [&'static str],
        body: fn(&dyn GuestFactory) -> Verdict,
    ) -> Self {
        Self { name, clauses, body: Body::Guest(body) }
    }

    /// Which half it tests.
    pub const fn target(&self) -> Target {
        match self.body {
            Body::Host(_) => Target::Host,
            #[cfg(feature = "std")]
            Body::Guest(_) => Target::Guest,
        }
    }
}

/// All tests, the host's first.
pub fn tests() -> Vec<Test> {
    let tests = crate::host::tests().into_iter();
    #[cfg(feature = "std")]
    let tests = tests.chain(crate::guest::tests());
    tests.collect()
}

/// Two values that must be the same.
pub(crate) fn equal<T: PartialEq + Debug>(what: &str, seen: T, expected: T) -> Verdict {
    if seen == expected {
        Ok(())
    } else {
        Err(Stop::Failed(format!("{what}: expected {expected:?}, seen {seen:?}")))
    }
}

/// Two values that must differ.
pub(crate) fn differ<T: PartialEq + Debug>(what: &str, seen: T, before: T) -> Verdict {
    if seen == before {
        Err(Stop::Failed(format!("{what}: expected another value than {before:?}")))
    } else {
        Ok(())
    }
}

/// Something that must hold.
pub(crate) fn holds(what: &str, condition: bool) -> Verdict {
    if condition { Ok(()) } else { Err(Stop::Failed(format!("expected: {what}"))) }
}

/// Takes a value that must be there.
pub(crate) fn there<T>(what: &str, value: Option<T>) -> Verdict<T> {
    value.ok_or_else(|| Stop::Failed(format!("expected: {what}")))
}
