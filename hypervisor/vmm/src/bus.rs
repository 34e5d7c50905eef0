//! Port and memory accesses of the guest that exit to this process: who answers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use pvmsi_guest_report::{EVENT_BYTES, Event, REPORT_PORT};
use pvmsi_hypervisor::Service;
use pvmsi_protocol::BufferPage;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::config::Doorbell;
use crate::exits::{ExitCounters, ExitKind};
use crate::memory::{DOORBELL_PAGE, DOORBELL_PAGE_BYTES};
use crate::pci::{ADDRESS_PORT, ConfigMechanism, DATA_PORTS};
use crate::recorder::Recorder;
use crate::serial::{self, Com1};

/// The doorbell's I/O port.
pub(crate) const DOORBELL_PORT: u16 = 0x5650;
const RESET_PORT: u16 = 0xcf9;
/// System reset and CPU reset.
const RESET_VALUE: u8 = 0x06;
const EXIT_PORT: u16 = 0xf4;
const SERIAL_END: u16 = serial::PORT + serial::PORTS;

/// What the machine shall do after an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Continue,
    /// Reset the machine.
    Reset,
    /// The guest has ended the run with this status.
    Exit(u8),
    /// The guest has sent the last event of its report.
    Finish,
}

/// Everything that answers accesses.
pub(crate) struct Bus {
    pub(crate) memory: Arc<GuestMemoryMmap>,
    pub(crate) service: Arc<Service>,
    pub(crate) exits: Arc<ExitCounters>,
    pub(crate) serial: Com1,
    pub(crate) config: ConfigMechanism,
    /// `None` with policy off.
    pub(crate) doorbell: Option<Doorbell>,
    pub(crate) recorder: Mutex<Recorder>,
}

impl Bus {
    /// `in`.
    pub(crate) fn port_in(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        let kind = match port {
            serial::PORT..SERIAL_END => {
                for byte in data {
                    *byte = self.serial.read(serial_register(port));
                }
                ExitKind::Serial
            }
            ADDRESS_PORT => {
                self.config.read_address(data);
                ExitKind::PciConfig
            }
            _ if DATA_PORTS.contains(&port) => {
                self.config.read_data(port, data);
                ExitKind::PciConfig
            }
            _ => ExitKind::Other,
        };
        self.exits.count(kind);
    }

    /// `out`. The exit is counted before anything else happens, except that the end of a section is dated first.
    pub(crate) fn port_out(&self, port: u16, data: &[u8]) -> Action {
        let now = Instant::now();
        let value = <[u8; 4]>::try_from(data).map(u32::from_le_bytes).ok();
        match port {
            DOORBELL_PORT if self.doorbell == Some(Doorbell::Port) => {
                self.exits.count(ExitKind::Doorbell);
                self.ring(value);
            }
            REPORT_PORT => {
                self.exits.count(ExitKind::Report);
                if value.is_some_and(|page| self.report(page, now)) {
                    return Action::Finish;
                }
            }
            serial::PORT..SERIAL_END => {
                self.exits.count(ExitKind::Serial);
                for byte in data {
                    self.serial.write(serial_register(port), *byte);
                }
            }
            ADDRESS_PORT => {
                self.exits.count(ExitKind::PciConfig);
                self.config.write_address(data);
            }
            RESET_PORT => {
                self.exits.count(ExitKind::Other);
                if data == [RESET_VALUE] {
                    return Action::Reset;
                }
            }
            EXIT_PORT => {
                self.exits.count(ExitKind::Other);
                if let [status] = data {
                    return Action::Exit(*status);
                }
            }
            _ if DATA_PORTS.contains(&port) => {
                self.exits.count(ExitKind::PciConfig);
                self.config.write_data(port, data);
            }
            _ => self.exits.count(ExitKind::Other),
        }
        Action::Continue
    }

    /// A load where no memory is.
    pub(crate) fn memory_read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        let kind = if self.is_doorbell(address) {
            ExitKind::Doorbell
        } else if self.service.mmio_read(address, data) {
            ExitKind::FunctionMmio
        } else {
            ExitKind::Other
        };
        self.exits.count(kind);
    }

    /// A store where no memory is.
    pub(crate) fn memory_write(&self, address: u64, data: &[u8]) {
        if self.is_doorbell(address) {
            self.exits.count(ExitKind::Doorbell);
            let value = <[u8; 4]>::try_from(data).map(u32::from_le_bytes).ok();
            self.ring(value.filter(|_| address == DOORBELL_PAGE));
        } else if self.service.mmio_write(address, data) {
            self.exits.count(ExitKind::FunctionMmio);
        } else {
            self.exits.count(ExitKind::Other);
        }
    }

    /// The report so far.
    pub(crate) fn recorder(&self) -> MutexGuard<'_, Recorder> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_doorbell(&self, address: u64) -> bool {
        self.doorbell == Some(Doorbell::Mmio)
            && address.checked_sub(DOORBELL_PAGE).is_some_and(|at| at < DOORBELL_PAGE_BYTES)
    }

    /// Only 32-bit writes ring.
    fn ring(&self, page: Option<u32>) {
        let Some(page) = page else { return };
        if let Err(error) = self.service.doorbell(self.memory.as_ref(), page) {
            // The guest finds its sentinel; a log at this level is nobody's default.
            tracing::trace!(%error, page, "doorbell without an answer");
        }
    }

    /// Takes an event of the report; `true` when it was the last.
    fn report(&self, page: u32, now: Instant) -> bool {
        let mut bytes = [0; EVENT_BYTES];
        let address = GuestAddress(BufferPage(page).address());
        let read = self.memory.read_slice(&mut bytes, address).is_ok();
        let mut recorder = self.recorder();
        match Event::decode(&bytes) {
            Ok(event) if read => recorder.take(event, now),
            _ => {
                recorder.fail(format!("the page at {:#x} holds no event of a report", address.0));
                false
            }
        }
    }
}

fn serial_register(port: u16) -> u8 {
    let [register, _] = port.wrapping_sub(serial::PORT).to_le_bytes();
    register
}
