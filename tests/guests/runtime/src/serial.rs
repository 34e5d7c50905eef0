//! Text on COM1.
//!
//! A printed byte costs two exits, so nothing prints while something is measured.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use x86_64::instructions::port::{Port, PortReadOnly};

const DATA: u16 = 0x3f8;
const LINE_STATUS: u16 = DATA + 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// How often the line status is looked at for one byte. The machine's UART is always ready.
const PATIENCE: u32 = 1000;

static BUSY: AtomicBool = AtomicBool::new(false);

/// Prints formatted text and a line break on COM1.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => {
        $crate::serial::print(format_args!("{}\n", format_args!($($argument)*)))
    };
}

/// Prints on COM1. Lines of several vCPUs do not mix, except that a vCPU does not wait for ever.
pub fn print(text: fmt::Arguments<'_>) {
    let mut patience = 1_000_000u32;
    while BUSY.swap(true, Ordering::Acquire) && patience != 0 {
        patience = patience.saturating_sub(1);
        core::hint::spin_loop();
    }
    let _ = Com1.write_fmt(text);
    BUSY.store(false, Ordering::Release);
}

struct Com1;

impl Write for Com1 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut data = Port::<u8>::new(DATA);
        let mut status = PortReadOnly::<u8>::new(LINE_STATUS);
        for byte in text.bytes() {
            for _ in 0..PATIENCE {
                // SAFETY: reading the line status of COM1 has no effect that matters.
                if unsafe { status.read() } & TRANSMITTER_EMPTY != 0 {
                    break;
                }
            }
            // SAFETY: the data register of COM1 takes any byte.
            unsafe { data.write(byte) };
        }
        Ok(())
    }
}
