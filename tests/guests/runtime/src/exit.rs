//! The ends of a guest.

use x86_64::instructions::port::Port;
use x86_64::instructions::{hlt, interrupts};

/// The exit status after a panic or an unexpected exception.
pub(crate) const STATUS_PANIC: u8 = 101;

/// Ends the run with this exit status (port 0xF4).
pub fn exit(status: u8) -> ! {
    let mut port = Port::<u8>::new(0xf4);
    // SAFETY: the machine contract gives this port that meaning; nothing runs after it.
    unsafe { port.write(status) };
    park()
}

/// Stops this vCPU for good.
pub fn park() -> ! {
    loop {
        interrupts::disable();
        hlt();
    }
}
