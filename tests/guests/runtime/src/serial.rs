//! Text on the serial port.
//!
//! A printed byte costs two exits, so nothing prints while something is measured.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::arch::machine;

const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// How often the line status is looked at for one byte. The machine's UART is always ready.
const PATIENCE: u32 = 1000;

static BUSY: AtomicBool = AtomicBool::new(false);

/// Prints formatted text and a line break.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => {
        $crate::serial::print(format_args!("{}\n", format_args!($($argument)*)))
    };
}

/// Prints text. Lines of several vCPUs do not mix, except that a vCPU does not wait for ever.
pub fn print(text: fmt::Arguments<'_>) {
    let mut patience = 1_000_000u32;
    while BUSY.swap(true, Ordering::Acquire) && patience != 0 {
        patience = patience.saturating_sub(1);
        core::hint::spin_loop();
    }
    let _ = Port.write_fmt(text);
    BUSY.store(false, Ordering::Release);
}

struct Port;

impl Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            for _ in 0..PATIENCE {
                if machine::line_status() & TRANSMITTER_EMPTY != 0 {
                    break;
                }
            }
            machine::transmit(byte);
        }
        Ok(())
    }
}
