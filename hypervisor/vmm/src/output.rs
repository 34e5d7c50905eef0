//! What this program prints. A reader that has gone is no error; a disk that is full is one, and neither is a panic.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// Prints on standard output, all of it. Succeeds where nobody reads it any more (`EPIPE`): who has closed a pipe has what he wanted.
///
/// # Errors
/// Other errors of the system, as `ENOSPC`.
pub(crate) fn print(text: &str) -> io::Result<()> {
    print_to(io::stdout().lock(), text.as_bytes())
}

fn print_to(mut output: impl Write, bytes: &[u8]) -> io::Result<()> {
    unless_closed(output.write_all(bytes).and_then(|()| output.flush()))
}

/// A result of writing, for which a closed pipe is success.
pub(crate) fn unless_closed(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Standard output for what comes bit by bit, as a guest's console. Writing succeeds whatever becomes of the bytes; the first error that [`print`] would tell is kept.
#[derive(Clone)]
pub(crate) struct Stream<W> {
    output: W,
    error: Arc<Mutex<Option<io::Error>>>,
}

impl<W: Write> Stream<W> {
    pub(crate) fn new(output: W) -> Self {
        Self { output, error: Arc::default() }
    }

    /// Where the error will be, also when the stream is somebody else's.
    pub(crate) fn error(&self) -> Arc<Mutex<Option<io::Error>>> {
        Arc::clone(&self.error)
    }

    fn keep(&self, result: io::Result<()>) {
        if let Err(error) = unless_closed(result) {
            let mut first = self.error.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(error);
        }
    }
}

impl<W: Write> Write for Stream<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = self.output.write_all(bytes);
        self.keep(result);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.output.flush();
        self.keep(result);
        Ok(())
    }
}

/// Says something on standard error, if that can be.
pub(crate) fn complain(text: &str) {
    // Nobody is left to be told.
    let _ = writeln!(io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An output that answers every write, or every flush, with this error.
    struct Broken {
        error: i32,
        buffers: bool,
    }

    impl Broken {
        fn answer(&self) -> io::Error {
            io::Error::from_raw_os_error(self.error)
        }
    }

    impl Write for Broken {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.buffers { Ok(bytes.len()) } else { Err(self.answer()) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(self.answer())
        }
    }

    #[test]
    fn a_closed_output_is_quiet_and_a_full_one_an_error() {
        for buffers in [false, true] {
            print_to(Broken { error: libc::EPIPE, buffers }, b"text").unwrap();
            let full = print_to(Broken { error: libc::ENOSPC, buffers }, b"text").unwrap_err();
            assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
        }
    }

    #[test]
    fn a_stream_goes_on_and_keeps_the_error() {
        for (error, kept) in [(libc::EPIPE, None), (libc::ENOSPC, Some(libc::ENOSPC))] {
            let mut stream = Stream::new(Broken { error, buffers: false });
            let found = stream.error();
            stream.write_all(b"text").unwrap();
            stream.flush().unwrap();
            let found = found.lock().unwrap().as_ref().and_then(io::Error::raw_os_error);
            assert_eq!(found, kept);
        }
    }
}
