//! Where the architecture's start code meets a guest's main function.

use core::panic::PanicInfo;

use crate::exit::STATUS_PANIC;
use crate::{Start, exit, report, serial, vcpu};

unsafe extern "Rust" {
    /// Defined by [`entry!`](crate::entry).
    safe fn pvmsi_guest_main(start: &Start, index: usize) -> !;
}

/// Names the function that every vCPU runs: `fn(&Start, usize) -> !`, the second argument being the vCPU index.
///
/// It starts with interrupts off.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        const _: () = {
            #[unsafe(no_mangle)]
            fn pvmsi_guest_main(start: &$crate::Start, index: usize) -> ! {
                let main: fn(&$crate::Start, usize) -> ! = $main;
                main(start, index)
            }
        };
    };
}

/// Runs the guest on a vCPU that can take interrupts.
pub(crate) fn enter(start: &Start, index: usize) -> ! {
    vcpu::online();
    pvmsi_guest_main(start, index)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    serial::print(format_args!("guest panic: {info}\n"));
    report::failure_anyhow(format_args!("guest panic: {info}"));
    exit(STATUS_PANIC)
}
