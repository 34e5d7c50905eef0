//! `release` and `restore`: calls without a request body.

use crate::codec::{plain_body, structure};
use crate::{Generation, Reasons, TableMode};

/// Answer of `release`. It always succeeds for a function that the caller owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReleaseAnswer {
    /// The number of the state after the call.
    pub generation: Generation,
}

/// Answer of `restore`: the table messages of all assigned vectors are in the table again. Mask bits are left as the function has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RestoreAnswer {
    /// Who answers the table now.
    pub mode: TableMode,
    /// Why the table is not direct; empty exactly when it is.
    pub reasons: Reasons,
    /// The number of the state after the call.
    pub generation: Generation,
}

structure! {
    ReleaseAnswer { generation }
    RestoreAnswer { mode, reasons, generation }
}

plain_body!(ReleaseAnswer, RestoreAnswer);
