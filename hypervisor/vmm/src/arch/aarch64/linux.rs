//! Linux kernels.

use super::Start;
use crate::boot::Boot;
use crate::error::MachineError;

/// Loads a kernel, its first file system and the device tree.
///
/// # Errors
/// Always: this machine cannot do it yet.
pub(crate) fn load(
    _boot: &Boot<'_>,
    _kernel: &[u8],
    _initrd: Option<&[u8]>,
) -> Result<Start, MachineError> {
    Err(MachineError::Guest("the arm64 machine starts bare-metal guests only".to_owned()))
}
