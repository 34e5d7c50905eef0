//! The report channel: one page, one register.

use core::cell::UnsafeCell;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use pvmsi_guest_report::{EVENT_BYTES, Event};

use crate::arch::machine;

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; EVENT_BYTES]>);

// SAFETY: `BUSY` lets one vCPU at a time at it.
unsafe impl Sync for Page {}

static PAGE: Page = Page(UnsafeCell::new([0; EVENT_BYTES]));
static BUSY: AtomicBool = AtomicBool::new(false);

/// Hands an event to the machine. It has seen it when this returns.
pub fn send(event: &Event<'_>) {
    while BUSY.swap(true, Ordering::Acquire) {
        core::hint::spin_loop();
    }
    write(event);
    BUSY.store(false, Ordering::Release);
}

/// Says that something is wrong, on the serial port and in the report.
pub fn failure(text: fmt::Arguments<'_>) {
    crate::serial::print(format_args!("guest: {text}\n"));
    let mut line = Line::new();
    let _ = line.write_fmt(text);
    send(&Event::Failure(line.as_str()));
}

/// As [`failure`], report only, for a vCPU that may hold the page itself: it waits a while, then takes it.
pub(crate) fn failure_anyhow(text: fmt::Arguments<'_>) {
    let mut line = Line::new();
    let _ = line.write_fmt(text);
    for _ in 0..100_000 {
        if !BUSY.swap(true, Ordering::Acquire) {
            break;
        }
        core::hint::spin_loop();
    }
    write(&Event::Failure(line.as_str()));
}

fn write(event: &Event<'_>) {
    // SAFETY: the caller has `BUSY`, or the guest is at its end.
    let page = unsafe { &mut *PAGE.0.get() };
    if event.encode(page).is_err() {
        return;
    }
    let Ok(number) = u32::try_from(PAGE.0.get().addr() / EVENT_BYTES) else { return };
    machine::report(number);
}

/// A line of text that is cut where its room ends.
struct Line {
    bytes: [u8; 200],
    used: usize,
}

impl Line {
    fn new() -> Self {
        Self { bytes: [0; 200], used: 0 }
    }

    fn as_str(&self) -> &str {
        self.bytes.get(..self.used).and_then(|text| str::from_utf8(text).ok()).unwrap_or_default()
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            let room = self.bytes.get_mut(self.used..).unwrap_or_default();
            if room.len() < character.len_utf8() {
                return Ok(());
            }
            self.used = self.used.saturating_add(character.encode_utf8(room).len());
        }
        Ok(())
    }
}
