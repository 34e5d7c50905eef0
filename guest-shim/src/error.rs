//! Errors of [`MsiX`](crate::MsiX).

use core::fmt;

use pvmsi_protocol::{CallError, VectorIndex};

/// Why an operation on [`MsiX`](crate::MsiX) failed. What it would have changed is as before, unless stated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsiXError {
    /// The host answered a call with an error; [`CallError::remedy`] says what to do.
    Call(CallError),
    /// MSI-X is enabled already. Call [`disable`](crate::MsiX::disable) first.
    Enabled,
    /// 0 vectors, or more than the table has. Ask for fewer.
    Count {
        /// The vectors asked for.
        requested: u16,
        /// The vectors that the table has.
        table_size: u16,
    },
    /// A vector that was not granted. Use vectors below the number that `enable` returned.
    Vector {
        /// The vector.
        vector: VectorIndex,
        /// The vectors granted; 0 while MSI-X is not enabled.
        granted: u16,
    },
    /// The vectors belong to the host's service, and no client was given. Pass the client that `enable` was given, or another one.
    ClientMissing,
}

impl From<CallError> for MsiXError {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

impl fmt::Display for MsiXError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(error) => fmt::Display::fmt(error, f),
            Self::Enabled => f.write_str("MSI-X is enabled already; disable it first"),
            Self::Count { requested, table_size } => {
                write!(f, "{requested} vectors asked for; ask for 1 to {table_size}")
            }
            Self::Vector { vector, granted: 0 } => {
                write!(f, "vector {vector} is not granted; enable MSI-X first")
            }
            Self::Vector { vector, granted } => {
                write!(f, "vector {vector} is not granted; use vectors below {granted}")
            }
            Self::ClientMissing => {
                f.write_str("the vectors belong to the host's service; pass a client")
            }
        }
    }
}

impl core::error::Error for MsiXError {}
