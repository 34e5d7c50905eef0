//! Seeded bugs: each breaks one property, which shows that the property can fail.

/// What is wrong behind the seams, or in the step that the model takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bug {
    /// An attach drops what the event holds.
    AttachDrops,
    /// An attach delivers what the event holds twice.
    AttachDoubles,
    /// An attach does not look at what the event holds.
    AttachLate,
    /// A detach says that it is done, and is not.
    DetachForgotten,
    /// Waiting for messages under way does not wait.
    SettleForgotten,
    /// The host's writes of mask bits do not reach the function.
    MaskIgnored,
    /// Pages are taken out only when the next change comes.
    UnmapLate,
    /// Table pages are never put in.
    MapForgotten,
    /// The function claims to be isolated.
    IsolationClaimed,
    /// A revoke names the neighbour.
    WrongFunction,
    /// Each route costs an update of its own.
    RoutesOneByOne,
    /// GSIs are not given back.
    RoutesKept,
    /// The generation stands still.
    GenerationStands,
    /// The host reads a mask bit wrong.
    MaskMisread,
    /// `update` fails, but has acted.
    UpdateLies,
    /// Enabling a function without vectors does nothing.
    EnableForgotten,
    /// The function says that it is in D0 while it sleeps.
    SleepDenied,
}
