//! The service with one function behind VFIO, and a KVM that delivers its interrupts.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use kvm_ioctls::{Kvm, VmFd};
use pvmsi_hypervisor::{
    FunctionStatus, KvmRoutes, KvmWindow, MemorySlots, PciFunction, Service, ServiceConfig,
    VfioFunction, VfioHost,
};
use pvmsi_protocol::{Sequence, TableMode};

use crate::guest::{Answer, Guest, PLATFORM};

/// A VM without a processor.
pub(crate) struct Host {
    guest: Guest,
    slots: Arc<MemorySlots>,
    vfio: VfioHost,
    sysfs: PathBuf,
    vectors: u16,
    grows: bool,
    /// Goes last: all of the above needs it.
    _vm: Arc<VmFd>,
}

impl Host {
    /// With a function of the host, MSI-X enabled, and at most `bound` vectors for a call.
    ///
    /// # Errors
    /// Where there is no KVM, no VFIO or no such function.
    pub(crate) fn new(function: &str, bound: u16) -> Result<Self> {
        let vm = Arc::new(Kvm::new().context("/dev/kvm cannot be opened")?.create_vm()?);
        #[cfg(target_arch = "x86_64")]
        vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
        let routes = KvmRoutes::new(Arc::clone(&vm), Vec::new(), 24..4096)?;
        let config = ServiceConfig { vectors_per_call: bound, ..ServiceConfig::new(PLATFORM) };
        let mut host = Self {
            guest: Guest::new(Service::new(config, Arc::new(routes)))?,
            slots: Arc::new(MemorySlots::new(Arc::clone(&vm), 100..200)),
            vfio: VfioHost::new(&vm)?,
            sysfs: PathBuf::from(format!("/sys/bus/pci/devices/{function}")),
            vectors: 0,
            grows: false,
            _vm: vm,
        };
        host.start()?;
        Ok(host)
    }

    /// Vectors of the function.
    pub(crate) fn vectors(&self) -> u16 {
        self.vectors
    }

    /// Whether vectors can be added to those that are set up: without `VFIO_IRQ_INFO_NORESIZE`.
    pub(crate) fn grows(&self) -> bool {
        self.grows
    }

    /// The function as a driver finds it, plugged where it is missing, with MSI-X enabled.
    ///
    /// # Errors
    /// Where it cannot be had.
    pub(crate) fn start(&mut self) -> Result<()> {
        if !self.guest.has_function() {
            let function = VfioFunction::open(&self.vfio, &self.sysfs)?;
            self.vectors = function.layout().vectors();
            // Nothing is set up yet, so it says for how many it must be.
            self.grows = function.set_up_count(1) == 1;
            let slots = Arc::clone(&self.slots);
            let window = KvmWindow::new(slots, function.layout(), function.mappings()?);
            self.guest.plug(function, window)?;
        }
        self.guest.start()
    }

    /// A call for all vectors, each with a message.
    ///
    /// # Errors
    /// Any answer but success and *busy*.
    pub(crate) fn configure(&self, sequence: Sequence) -> Result<Answer> {
        self.guest.configure(self.vectors, sequence)
    }

    /// The guest gives up.
    ///
    /// # Errors
    /// Where the call fails.
    pub(crate) fn release(&mut self) -> Result<()> {
        self.guest.release()
    }

    /// The host takes the table back.
    ///
    /// # Errors
    /// Where the function is gone.
    pub(crate) fn revoke(&self) -> Result<()> {
        Ok(self.guest.function()?.revoke()?)
    }

    /// And allows it again.
    ///
    /// # Errors
    /// Where the function is gone.
    pub(crate) fn allow(&self) -> Result<()> {
        Ok(self.guest.function()?.allow()?)
    }

    /// The host resets the function.
    ///
    /// # Errors
    /// Where it is gone.
    pub(crate) fn reset_function(&mut self) -> Result<()> {
        Ok(self.guest.function()?.reset()?)
    }

    /// The host resets the machine.
    ///
    /// # Errors
    /// None.
    pub(crate) fn reset_machine(&mut self) -> Result<()> {
        self.guest.reset_machine()
    }

    /// The host takes the function out.
    ///
    /// # Errors
    /// Where it is gone.
    pub(crate) fn remove(&mut self) -> Result<()> {
        self.guest.unplug()
    }

    /// Who answers the table.
    ///
    /// # Errors
    /// Where the function is gone.
    pub(crate) fn mode(&self) -> Result<&'static str> {
        Ok(match self.status()?.mode {
            TableMode::Direct => "direct",
            TableMode::Trapped => "trapped",
        })
    }

    /// Events that are attached to KVM; none of a function that is gone, which has closed them.
    pub(crate) fn attached(&self) -> u64 {
        self.status()
            .map_or(0, |status| status.counters.attaches.saturating_sub(status.counters.detaches))
    }

    fn status(&self) -> Result<FunctionStatus> {
        Ok(self.guest.function()?.status()?)
    }
}
