//! How much is explored.

use std::fmt;

use crate::VECTORS;
use crate::bugs::Bug;

/// The bounds of an exploration. The function has [`VECTORS`] vectors, each with up to two messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// Its name.
    pub name: &'static str,
    /// An arm64 machine, whose events are bound to messages when they are attached.
    pub arm64: bool,
    /// Whether the host isolates the function.
    pub isolated: bool,
    /// Whether the operator allows the table to be mapped.
    pub direct: bool,
    /// Routes that the function can have.
    pub routes: usize,
    /// Whether `configure` is busy after each vector.
    pub busy: bool,
    /// Whether others act in the middle of an operation.
    pub interference: bool,
    /// Whether messages can be under way for a while.
    pub late: bool,
    /// Whether the guest writes foreign messages into the table.
    pub scribbles: bool,
    /// Whether the guest resets the function behind the host's back.
    pub unseen: bool,
    /// Whether a vector has a second message, and the BAR a second place.
    pub second: bool,
    /// Whether KVM can see an event twice that comes at the very moment of an attach.
    pub races: bool,
    /// A seeded bug.
    pub bug: Option<Bug>,
}

impl Bounds {
    /// One message for each vector, one place for the BAR, nothing out of the ordinary.
    pub const SMALL: Self = Self {
        name: "small",
        arm64: false,
        isolated: true,
        direct: true,
        routes: VECTORS,
        busy: false,
        interference: true,
        late: false,
        scribbles: false,
        unseen: false,
        second: false,
        races: false,
        bug: None,
    };

    /// What is explored in a minute or two.
    pub const QUICK: &'static [Self] = &[
        Self { name: "x86_64", ..Self::SMALL },
        Self { name: "one route", routes: 1, ..Self::SMALL },
        Self { name: "busy", busy: true, interference: false, ..Self::SMALL },
    ];

    /// What is explored where there is time.
    pub const FULL: &'static [Self] = &[
        Self { name: "x86_64", second: true, late: true, ..Self::SMALL },
        Self { name: "arm64", arm64: true, late: true, ..Self::SMALL },
        Self { name: "unruly guest", scribbles: true, unseen: true, ..Self::SMALL },
        Self { name: "busy", busy: true, ..Self::SMALL },
        Self { name: "one route", routes: 1, late: true, ..Self::SMALL },
        Self { name: "not isolated", isolated: false, ..Self::SMALL },
        Self { name: "policy trapped", direct: false, ..Self::SMALL },
    ];
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            arm64,
            isolated,
            direct,
            routes,
            busy,
            interference,
            late,
            scribbles,
            unseen,
            second,
            races,
            bug,
        } = self;
        let messages = if *second { 2 } else { 1 };
        let platform = if *arm64 { "arm64" } else { "x86_64" };
        write!(
            f,
            "{name}: {platform}, {VECTORS} vectors, {messages} messages each, {routes} routes"
        )?;
        for (what, holds) in [
            ("not isolated", !isolated),
            ("policy trapped", !direct),
            ("busy after each vector", *busy),
            ("others act in the middle of operations", *interference),
            ("messages under way", *late),
            ("foreign messages in the table", *scribbles),
            ("resets that the host does not see", *unseen),
            ("KVM sees events twice", *races),
        ] {
            if holds {
                write!(f, ", {what}")?;
            }
        }
        bug.map_or(Ok(()), |bug| write!(f, ", seeded bug {bug:?}"))
    }
}
