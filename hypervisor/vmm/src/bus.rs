//! Accesses of the guest that exit to this process: what answers them on every architecture.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use pvmsi_guest_report::{EVENT_BYTES, Event};
use pvmsi_hypervisor::{Router, Service};
use pvmsi_protocol::{BufferPage, ServiceBlock};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::arch::{DOORBELL_REGISTER, PciConfig};
use crate::doorbell::Doorbell;
use crate::measurements::Recorder;
use crate::measurements::{ExitCounters, ExitKind};
use crate::serial::SerialPort;

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
    pub(crate) router: Router,
    pub(crate) exits: Arc<ExitCounters>,
    pub(crate) serial: SerialPort,
    pub(crate) pci: PciConfig,
    /// `None` with policy off.
    pub(crate) doorbell: Option<Doorbell>,
    /// What the guest can find of the service without a device tree; `None` where it finds nothing.
    pub(crate) offer: Option<ServiceBlock>,
    pub(crate) recorder: Mutex<Recorder>,
}

impl Bus {
    /// A load where neither memory nor a device of the machine is. What nobody answers leaves `data` as it is.
    pub(crate) fn memory_read(&self, address: u64, data: &mut [u8]) {
        let kind = if self.is_doorbell(address) {
            ExitKind::Doorbell
        } else if self.router.mmio_read(address, data) {
            ExitKind::FunctionMmio
        } else {
            ExitKind::Other
        };
        self.exits.count(kind);
    }

    /// A store where neither memory nor a device of the machine is.
    pub(crate) fn memory_write(&self, address: u64, data: &[u8]) -> Action {
        if self.is_doorbell(address) {
            self.exits.count(ExitKind::Doorbell);
            self.ring(word(data).filter(|_| address == DOORBELL_REGISTER.start));
        } else if self.router.mmio_write(address, data) {
            self.exits.count(ExitKind::FunctionMmio);
        } else {
            self.exits.count(ExitKind::Other);
        }
        Action::Continue
    }

    /// The report so far.
    pub(crate) fn recorder(&self) -> MutexGuard<'_, Recorder> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_doorbell(&self, address: u64) -> bool {
        self.doorbell == Some(Doorbell::Mmio) && DOORBELL_REGISTER.contains(&address)
    }

    /// Only 32-bit writes ring.
    pub(crate) fn ring(&self, page: Option<u32>) {
        let Some(page) = page else { return };
        let start = Instant::now();
        let served = self.service.doorbell(self.memory.as_ref(), page);
        self.exits.served(start.elapsed());
        if let Err(error) = served {
            // The guest finds its sentinel; a log at this level is nobody's default.
            tracing::trace!(%error, page, "doorbell without an answer");
        }
    }

    /// A write to the report channel; `now` is the moment of the exit.
    pub(crate) fn report(&self, page: Option<u32>, now: Instant) -> Action {
        self.exits.count(ExitKind::Report);
        match page {
            Some(page) if self.take_event(page, now) => Action::Finish,
            _ => Action::Continue,
        }
    }

    /// Takes an event of the report; `true` when it was the last.
    fn take_event(&self, page: u32, now: Instant) -> bool {
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

/// What a 32-bit access writes; `None` for other widths.
pub(crate) fn word(data: &[u8]) -> Option<u32> {
    <[u8; 4]>::try_from(data).map(u32::from_le_bytes).ok()
}
