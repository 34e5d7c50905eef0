//! The ends of a guest.

use crate::{arch, interrupts};

/// The exit status after a panic or an unexpected exception.
pub(crate) const STATUS_PANIC: u8 = 101;

/// Ends the run with this exit status.
pub fn exit(status: u8) -> ! {
    arch::machine::end_run(status);
    park()
}

/// Stops this vCPU for good.
pub fn park() -> ! {
    loop {
        interrupts::disable();
        arch::interrupts::sleep();
    }
}
