//! The service with one function behind VFIO, and what its guest does.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use kvm_ioctls::{Kvm, VmFd};
use pvmsi_hypervisor::{
    FunctionHandle, FunctionPolicy, FunctionStatus, KvmRoutes, KvmWindow, MemorySlots, PciFunction,
    Platform, Service, ServiceConfig, VfioFunction, VfioHost, host_page_size,
};
use pvmsi_protocol::{
    BUFFER_MAX, CallError, CallId, ConfigureAnswer, ConfigureRequest, FunctionId, GuestMessage,
    Header, Kind, Sequence, TableMode, VectorSetup,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// This VM has no processor that a message could go to.
const PLATFORM: Platform = Platform::X86_64 { extended_destination_ids: false };
/// Where the guest has the function.
const FUNCTION: FunctionId = FunctionId(8);
const BAR: u32 = 0xc000_0000;
const COMMAND: u64 = 0x04;
const BARS: u64 = 0x10;
const CAPABILITIES: u64 = 0x34;
const MSIX: u8 = 0x11;
const ENABLE: u8 = 0x80;
const RAM_BYTES: usize = 0x10_0000;
/// The page of the call buffer.
const PAGE: u32 = 0x10;
const BUFFER: u64 = 0x1_0000;

/// What a `configure` has answered.
pub(crate) enum Answer {
    /// To be repeated with this sequence.
    Busy(Sequence),
    /// So many vectors.
    Granted(u16),
}

/// A VM without a processor.
pub(crate) struct Host {
    service: Service,
    /// None while it is unplugged.
    function: Option<FunctionHandle>,
    memory: GuestMemoryMmap,
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
            service: Service::new(config, Arc::new(routes)),
            function: None,
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_BYTES)])?,
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
        if self.function.is_none() {
            let function = VfioFunction::open(&self.vfio, &self.sysfs)?;
            ensure!(host_page_size() == 4096, "the BAR is placed for pages of 4096 bytes");
            self.vectors = function.layout().vectors();
            // Nothing is set up yet, so it says for how many it must be.
            self.grows = function.set_up_count(1) == 1;
            let slots = Arc::clone(&self.slots);
            let window = KvmWindow::new(slots, function.layout(), function.mappings()?);
            let policy = FunctionPolicy::default();
            let added =
                self.service.add_function(FUNCTION, Box::new(function), Box::new(window), policy);
            self.function = Some(added.map_err(|refused| refused.error)?);
        }
        self.write(BARS, &BAR.to_le_bytes())?;
        self.write(BARS.saturating_add(4), &[0; 4])?;
        self.write(COMMAND, &[2, 0])?;
        let capability = self.msix()?;
        self.write(capability.saturating_add(3), &[ENABLE])
    }

    /// A call for all vectors, each with a message.
    ///
    /// # Errors
    /// Any answer but success and *busy*.
    pub(crate) fn configure(&self, sequence: Sequence) -> Result<Answer> {
        let setups = (0..self.vectors).map(|vector| {
            let (processor, interrupt) = (vector >> 7, vector & 0x7f);
            let address = 0xfee0_0000 | u64::from(processor) << 12;
            let data = 0x80 | u32::from(interrupt);
            VectorSetup { message: Some(GuestMessage { address, data }), masked: false }
        });
        let mut body = vec![0; BUFFER_MAX.saturating_sub(Header::SIZE)];
        let used = ConfigureRequest::encode(Kind::MsiX, self.vectors, sequence, setups, &mut body)?;
        body.truncate(used);
        match self.call(CallId::Configure, &body)? {
            Ok(answer) => {
                let answer = ConfigureAnswer::decode(&answer);
                let answer = answer.ok().context("the answer cannot be decoded")?;
                Ok(Answer::Granted(answer.granted))
            }
            Err(CallError::Busy(busy)) => Ok(Answer::Busy(busy.sequence)),
            Err(error) => Err(error.into()),
        }
    }

    /// The guest gives up.
    ///
    /// # Errors
    /// Where the call fails.
    pub(crate) fn release(&mut self) -> Result<()> {
        self.call(CallId::Release, &[])??;
        Ok(())
    }

    /// The host takes the table back.
    ///
    /// # Errors
    /// Where the function is gone.
    pub(crate) fn revoke(&self) -> Result<()> {
        Ok(self.function()?.revoke()?)
    }

    /// And allows it again.
    ///
    /// # Errors
    /// Where the function is gone.
    pub(crate) fn allow(&self) -> Result<()> {
        Ok(self.function()?.allow()?)
    }

    /// The host resets the function.
    ///
    /// # Errors
    /// Where it is gone.
    pub(crate) fn reset_function(&mut self) -> Result<()> {
        Ok(self.function()?.reset()?)
    }

    /// The host resets the machine.
    ///
    /// # Errors
    /// None.
    pub(crate) fn reset_machine(&mut self) -> Result<()> {
        Ok(self.service.reset()?)
    }

    /// The host takes the function out.
    ///
    /// # Errors
    /// Where it is gone.
    pub(crate) fn remove(&mut self) -> Result<()> {
        let function = self.function.take().context("the function is gone")?;
        Ok(function.remove()?)
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
        Ok(self.function()?.status()?)
    }

    fn function(&self) -> Result<&FunctionHandle> {
        self.function.as_ref().context("the function is gone")
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        Ok(self.function()?.config_write(offset, data)?)
    }

    fn byte(&self, offset: u64) -> Result<u8> {
        let mut byte = [0];
        self.function()?.config_read(offset, &mut byte)?;
        let [byte] = byte;
        Ok(byte)
    }

    /// Where the MSI-X capability is.
    fn msix(&self) -> Result<u64> {
        let mut at = u64::from(self.byte(CAPABILITIES)?);
        // No more than there can be.
        for _ in 0..64 {
            if at == 0 || self.byte(at)? == MSIX {
                break;
            }
            at = u64::from(self.byte(at.saturating_add(1))?);
        }
        ensure!(at != 0, "the function has no MSI-X");
        Ok(at)
    }

    fn call(&self, call: CallId, body: &[u8]) -> Result<Result<Vec<u8>, CallError>> {
        let header = Header::request(call, FUNCTION, BUFFER_MAX, body.len());
        let header = header.context("the body is too long")?;
        let start = GuestAddress(BUFFER.saturating_add(u64::try_from(Header::SIZE)?));
        self.memory.write_slice(&header.to_bytes(), GuestAddress(BUFFER))?;
        self.memory.write_slice(body, start)?;
        self.service.doorbell(&self.memory, PAGE)?;
        let mut bytes = [0; Header::SIZE];
        self.memory.read_slice(&mut bytes, GuestAddress(BUFFER))?;
        let header = Header::from_bytes(&bytes);
        let mut answer = vec![0; usize::try_from(header.body_length)?];
        self.memory.read_slice(&mut answer, start)?;
        Ok(match CallError::decode(header.status, &answer) {
            None => Ok(answer),
            Some(error) => Err(error),
        })
    }
}
