//! What a double is about to do.

use std::io;

/// A step that can be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// GSIs are taken. Refused, none is left.
    Allocate,
    /// The routing table is replaced.
    Install,
    /// An event is tied to a GSI.
    Attach,
    /// An event is untied.
    Detach,
    /// A view is to be shown; nothing has changed.
    Show,
    /// Pages leave the guest's memory map. Refused, it is as before.
    TakeOut,
    /// Pages come in. Refused, those that were to leave have left.
    PutIn,
    /// The last page comes in. Refused, the others stay.
    PutInLast,
}

/// Is asked before each step. An error refuses it.
pub type Hook = dyn Fn(Step) -> io::Result<()> + Send + Sync;

pub(crate) fn never(_: Step) -> io::Result<()> {
    Ok(())
}
