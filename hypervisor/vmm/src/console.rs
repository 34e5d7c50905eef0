//! The program's standard input as the input of the guest's serial port.

use std::io::{self, PipeReader};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read};
use rustix::stdio::stdin;
use rustix::termios::{OptionalActions, OutputModes, Termios, tcgetattr, tcsetattr};

use crate::output;

/// How long a full receive buffer is left alone. With 64 bytes in it, this is faster than a line.
const FULL_PAUSE: Duration = Duration::from_millis(2);
const CHUNK_BYTES: usize = 64;
/// For how many pauses a terminal's keys wait for a guest that takes none. They are lost then, as
/// on a serial line, so that the user can still end the run.
const PATIENCE: u32 = 100;

/// Ctrl-A, which begins a command of the user to this program.
const ESCAPE: u8 = 0x01;

/// Carries standard input to `send`, which takes as many of the first bytes as it has room for,
/// until the input ends, the writer of `stop` is gone, or the user types the escape: `true` then.
///
/// # Errors
/// When standard input cannot be read.
pub(crate) fn carry(
    terminal: bool,
    stop: &PipeReader,
    mut send: impl FnMut(&[u8]) -> usize,
) -> io::Result<bool> {
    let mut escape = Escape::default();
    let mut buffer = [0; CHUNK_BYTES];
    loop {
        if wait(stop, Some(stdin()), None)? {
            return Ok(false);
        }
        let count = match read(stdin(), &mut buffer) {
            // The end.
            Ok(0) => return Ok(false),
            Ok(count) => count,
            Err(Errno::INTR | Errno::AGAIN) => continue,
            Err(error) => return Err(error.into()),
        };
        let bytes = buffer.get(..count).unwrap_or_default();
        let (bytes, end) = if terminal { escape.filter(bytes) } else { (bytes.to_vec(), false) };
        let mut rest = bytes.as_slice();
        let mut patience = PATIENCE;
        while !rest.is_empty() && patience > 0 {
            let taken = send(rest);
            rest = rest.get(taken..).unwrap_or_default();
            if terminal && taken == 0 {
                patience = patience.saturating_sub(1);
            }
            if !rest.is_empty() && wait(stop, None, Some(FULL_PAUSE))? {
                return Ok(false);
            }
        }
        if end {
            return Ok(true);
        }
    }
}

/// Waits for input, for `stop` or for the time to pass; whether it was `stop`.
fn wait(
    stop: &PipeReader,
    input: Option<BorrowedFd<'_>>,
    limit: Option<Duration>,
) -> io::Result<bool> {
    let mut files = vec![PollFd::new(stop, PollFlags::IN)];
    files.extend(input.as_ref().map(|input| PollFd::new(input, PollFlags::IN)));
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    match poll(&mut files, limit.as_ref()) {
        Ok(_) => Ok(files.first().is_some_and(|stop| !stop.revents().is_empty())),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Finds the user's commands: Ctrl-A X ends the run, Ctrl-A Ctrl-A is one Ctrl-A for the guest.
#[derive(Default)]
struct Escape {
    /// The byte before was the escape.
    begun: bool,
}

impl Escape {
    /// What the guest shall have of these bytes, and whether the user wants to end the run.
    fn filter(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut kept = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            match (self.begun, byte) {
                (true, b'x' | b'X') => return (kept, true),
                (false, ESCAPE) => self.begun = true,
                _ => {
                    self.begun = false;
                    kept.push(byte);
                }
            }
        }
        (kept, false)
    }
}

/// The terminal on standard input hands every key to the guest, as long as this exists.
pub(crate) struct RawTerminal(Termios);

impl RawTerminal {
    /// # Errors
    /// The system's.
    pub(crate) fn enter() -> io::Result<Self> {
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        // This program's own lines shall begin at the left.
        raw.output_modes |= before.output_modes & (OutputModes::OPOST | OutputModes::ONLCR);
        tcsetattr(stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(stdin(), OptionalActions::Now, &self.0) {
            output::complain(&format!("warning: the terminal stays raw, `reset` helps: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_is_found_across_reads() {
        let mut escape = Escape::default();
        assert_eq!(escape.filter(b"ls\r"), (b"ls\r".to_vec(), false));
        assert_eq!(escape.filter(b"a\x01"), (b"a".to_vec(), false));
        assert_eq!(escape.filter(b"\x01b"), (b"\x01b".to_vec(), false), "twice is once");
        assert_eq!(escape.filter(b"\x01c"), (b"c".to_vec(), false), "no command");
        assert_eq!(escape.filter(b"d\x01"), (b"d".to_vec(), false));
        assert_eq!(escape.filter(b"xe"), (Vec::new(), true));
    }
}
