//! The serial port: a 16550A whose output is kept, and shown.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// Output beyond this many bytes is shown but no longer kept: a guest cannot make the host grow.
const KEPT_MAX: usize = 1 << 20;

/// The UART.
pub(crate) struct SerialPort {
    uart: Mutex<Option<Uart>>,
    interrupt: EventFd,
    output: Output,
}

type Uart = Serial<Interrupt, NoEvents, Output>;

impl SerialPort {
    /// A UART whose interrupt is `interrupt`.
    pub(crate) fn new(
        interrupt: EventFd,
        console: Option<Box<dyn Write + Send>>,
    ) -> io::Result<Self> {
        let output = Output(Arc::new(Mutex::new(Kept { bytes: Vec::new(), console })));
        let port = Self { uart: Mutex::new(None), interrupt, output };
        port.reset()?;
        Ok(port)
    }

    /// Back to power-on. What was written stays.
    pub(crate) fn reset(&self) -> io::Result<()> {
        let interrupt = Interrupt(self.interrupt.try_clone()?);
        *self.uart() = Some(Serial::new(interrupt, self.output.clone()));
        Ok(())
    }

    /// The registers. What was written is not part of them.
    pub(crate) fn save(&self) -> SerialState {
        self.uart().as_ref().map_or_else(SerialState::default, Serial::state)
    }

    /// Puts registers back.
    pub(crate) fn restore(&self, state: &SerialState) -> io::Result<()> {
        let interrupt = Interrupt(self.interrupt.try_clone()?);
        let uart = Serial::from_state(state, interrupt, NoEvents, self.output.clone());
        *self.uart() = Some(uart.map_err(|error| io::Error::other(format!("{error:?}")))?);
        Ok(())
    }

    /// Reads a register.
    pub(crate) fn read(&self, register: u8) -> u8 {
        self.uart().as_mut().map_or(0xff, |uart| uart.read(register))
    }

    /// Writes a register.
    pub(crate) fn write(&self, register: u8, value: u8) {
        if let Some(uart) = self.uart().as_mut() {
            // An output that takes no bytes is not the guest's business.
            let _ = uart.write(register, value);
        }
    }

    /// Puts bytes into the receive buffer; returns how many of the first ones it has taken.
    pub(crate) fn receive(&self, bytes: &[u8]) -> usize {
        // A full buffer takes none.
        self.uart().as_mut().and_then(|uart| uart.enqueue_raw_bytes(bytes).ok()).unwrap_or(0)
    }

    /// What the guest has written so far, at most the first MiB.
    pub(crate) fn output(&self) -> Vec<u8> {
        self.output.kept().bytes.clone()
    }

    fn uart(&self) -> MutexGuard<'_, Option<Uart>> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The UART's interrupt line.
struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        // A full counter still interrupts.
        let _ = self.0.write(1);
        Ok(())
    }
}

struct Kept {
    bytes: Vec<u8>,
    console: Option<Box<dyn Write + Send>>,
}

#[derive(Clone)]
struct Output(Arc<Mutex<Kept>>);

impl Output {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.kept();
        let room = KEPT_MAX.saturating_sub(kept.bytes.len());
        kept.bytes.extend(bytes.iter().take(room));
        if let Some(console) = &mut kept.console {
            console.write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.kept().console.as_mut().map_or(Ok(()), |console| console.flush())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_is_taken_as_far_as_there_is_room() {
        let interrupt = EventFd::new(0).unwrap();
        let port = SerialPort::new(interrupt.try_clone().unwrap(), None).unwrap();
        // Received data interrupts.
        port.write(1, 1);
        assert_eq!(port.receive(&[b'a'; 100]), 64);
        assert_eq!(port.receive(b"b"), 0, "full");
        assert_eq!(interrupt.read().unwrap(), 1);
        assert_eq!((port.read(5) & 1, port.read(0)), (1, b'a'));
        assert_eq!(port.receive(b"bc"), 1);
        port.reset().unwrap();
        assert_eq!(port.read(5) & 1, 0, "a reset drops what was not read");
    }

    #[test]
    fn output_is_kept_and_bounded() {
        let port = SerialPort::new(EventFd::new(0).unwrap(), None).unwrap();
        for byte in b"hello" {
            port.write(0, *byte);
        }
        port.reset().unwrap();
        port.write(0, b'!');
        assert_eq!(port.output(), b"hello!");
        for _ in 0..KEPT_MAX {
            port.write(0, b'x');
        }
        assert_eq!(port.output().len(), KEPT_MAX);
        assert_eq!(port.read(5) & 0x60, 0x60, "the transmitter is empty");
    }
}
