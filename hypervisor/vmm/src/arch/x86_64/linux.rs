//! Linux kernels.

use super::Start;
use crate::boot::Boot;
use crate::error::MachineError;

/// Loads a kernel, its first file system and what they are told.
///
/// # Errors
/// Always: this machine cannot do it yet.
pub(crate) fn load(
    boot: &Boot<'_>,
    _kernel: &[u8],
    _initrd: Option<&[u8]>,
) -> Result<Start, MachineError> {
    tracing::debug!(cpus = boot.cpus, doorbell = ?boot.doorbell, "a Linux kernel");
    Err(MachineError::Guest("the x86_64 machine starts bare-metal guests only".to_owned()))
}
