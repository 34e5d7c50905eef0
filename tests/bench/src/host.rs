//! The host half: the service with one software function, and what a guest does to it.
//!
//! The only file here that knows the interface of `pvmsi-hypervisor`.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use kvm_ioctls::Kvm;
use pvmsi_hypervisor::{
    BarIndex, FunctionHandle, FunctionPolicy, KvmRoutes, KvmWindow, MemorySlots, PciFunction,
    Platform, Policy, Service, ServiceConfig, Window, host_page_size,
};
use pvmsi_protocol::{
    BUFFER_MAX, Busy, CallError, CallId, ConfigureRequest, EncodeError, FunctionId, GuestMessage,
    Header, Kind, Sequence, TableMode, UpdateRequest, VectorIndex, VectorSetup, VectorUpdate,
};
use pvmsi_software::config::MSIX_CONTROL;
use pvmsi_software::registers::{ROTATION, entry_word};
use pvmsi_software::{SoftwareFunction, SoftwareOptions};
use pvmsi_test_doubles::{IdleRoutes, IdleWindow};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, MmapRegion, VolatileMemory};

use crate::VECTORS;
use crate::meter::count;

/// MSI-X Enable, in message control.
pub const ENABLE: u16 = 0x8000;
/// Function Mask, in message control.
pub const FUNCTION_MASK: u16 = 0x4000;

const PLATFORM: Platform = Platform::X86_64 { extended_destination_ids: true };
const FUNCTION: FunctionId = FunctionId(8);
const BAR: u64 = 0xc000_0000;
const MEMORY: BarIndex = BarIndex(0);
const RAM_BYTES: usize = 0x10_0000;
/// The call buffer's page of the guest's RAM, its address, and that of the body in it.
const PAGE: u32 = 0x10;
const BUFFER: GuestAddress = GuestAddress(0x1_0000);
const BODY: GuestAddress = GuestAddress(0x1_0020);
const COMMAND: u64 = 0x04;
const BAR_REGISTER: u64 = 0x10;

/// The words of a table entry.
const ADDRESS_LOW: u64 = 0;
const ADDRESS_HIGH: u64 = 1;
const DATA: u64 = 2;
const VECTOR_CONTROL: u64 = 3;

/// How a host is set up.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Vectors of the function.
    pub vectors: u16,
    /// Whether the table is mapped where it can be.
    pub direct: bool,
    /// The most vectors of one call.
    pub bound: u16,
}

impl Default for Options {
    /// A direct table of 2048 vectors, without a bound.
    fn default() -> Self {
        Self { vectors: VECTORS, direct: true, bound: VECTORS }
    }
}

/// What the guest has cost: exits, and what the host's kernel was asked for on behalf of the function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// `KVM_SET_GSI_ROUTING`.
    pub routing_updates: u64,
    /// `VFIO_DEVICE_SET_IRQS`.
    pub interrupt_requests: u64,
    /// `KVM_IRQFD`.
    pub irqfds: u64,
    /// Exits to the VMM that the service has answered.
    pub exits: u64,
}

impl Cost {
    /// What came since `earlier`.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self {
            routing_updates: self.routing_updates.saturating_sub(earlier.routing_updates),
            interrupt_requests: self.interrupt_requests.saturating_sub(earlier.interrupt_requests),
            irqfds: self.irqfds.saturating_sub(earlier.irqfds),
            exits: self.exits.saturating_sub(earlier.exits),
        }
    }
}

/// The service of a VM with one software function, after the guest's firmware.
pub struct Host {
    service: Service,
    function: FunctionHandle,
    memory: GuestMemoryMmap,
    bar: Arc<MmapRegion>,
    /// Tells whether the guest's memory map shows the table; on KVM this program has no guest.
    shown: Option<IdleWindow>,
    exits: Cell<u64>,
}

impl Host {
    /// With routes and a window that do nothing: what is left is the service's own work.
    ///
    /// # Errors
    /// Where there is no memory for it.
    pub fn new(options: Options) -> Result<Self> {
        let policy = if options.direct { Policy::Direct } else { Policy::Trapped };
        let vectors_per_call = options.bound;
        let config = ServiceConfig { policy, vectors_per_call, platform: PLATFORM };
        let service = Service::new(config, Arc::new(IdleRoutes::default()));
        let function = software(options.vectors)?;
        let window = IdleWindow::new(true);
        Self::with(service, function, Box::new(window.clone()), Some(window))
    }

    /// On this machine's KVM, with at most `bound` vectors for each call.
    ///
    /// # Errors
    /// Where there is no KVM.
    pub fn on_kvm(vectors: u16, bound: u16) -> Result<Self> {
        ensure!(
            cfg!(target_arch = "x86_64"),
            "on arm64 KVM routes messages only to an interrupt controller that this program does not build"
        );
        let kvm = Kvm::new().context("/dev/kvm cannot be opened")?;
        let vm = Arc::new(kvm.create_vm().context("KVM_CREATE_VM")?);
        #[cfg(target_arch = "x86_64")]
        vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
        let routes = KvmRoutes::new(Arc::clone(&vm), KvmRoutes::default_pins(24), 24..)?;
        let config = ServiceConfig { vectors_per_call: bound, ..ServiceConfig::new(PLATFORM) };
        let service = Service::new(config, Arc::new(routes));
        let slots = Arc::new(MemorySlots::new(vm, 100..200));
        let function = software(vectors)?;
        let window = KvmWindow::new(slots, function.layout(), function.mappings()?);
        Self::with(service, function, Box::new(window), None)
    }

    fn with(
        service: Service,
        function: SoftwareFunction,
        window: Box<dyn Window>,
        shown: Option<IdleWindow>,
    ) -> Result<Self> {
        let bar = function.mappings()?.pop().context("the function has no memory")?.memory;
        let function = service
            .add_function(FUNCTION, Box::new(function), window, FunctionPolicy::default())
            .map_err(|failed| failed.error)?;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_BYTES)])?;
        let host = Self { service, function, memory, bar, shown, exits: Cell::new(0) };
        host.config_write(BAR_REGISTER, &u32::try_from(BAR)?.to_le_bytes());
        host.config_write(COMMAND, &[0x06, 0x00]);
        Ok(host)
    }

    /// Writes MSI-X Enable and Function Mask: one exit.
    pub fn write_control(&self, bits: u16) {
        self.config_write(MSIX_CONTROL, &bits.to_le_bytes());
    }

    /// Reads message control: one exit.
    pub fn read_control(&self) {
        self.exit(|| self.function.config_read(MSIX_CONTROL, &mut [0; 2]).ok());
    }

    /// Changes MSI-X Enable and Function Mask and leaves the other bits: two exits.
    pub fn change_control(&self, bits: u16) {
        self.read_control();
        self.write_control(bits);
    }

    /// Fills the call buffer for a `configure` of the first `vectors` vectors, all masked or not; returns the request's bytes, header included.
    ///
    /// # Errors
    /// Never, with up to 2048 vectors.
    pub fn write_configure(&self, vectors: u16, masked: bool, sequence: Sequence) -> Result<usize> {
        let setups =
            (0..vectors).map(|vector| VectorSetup { message: Some(message(vector)), masked });
        self.write_call(CallId::Configure, |body| {
            ConfigureRequest::encode(Kind::MsiX, vectors, sequence, setups, body)
        })
    }

    /// The same without any message: the vectors start masked.
    ///
    /// # Errors
    /// Never, with up to 2048 vectors.
    pub fn write_configure_without_messages(&self, vectors: u16) -> Result<usize> {
        self.write_call(CallId::Configure, |body| {
            let setups = std::iter::empty();
            ConfigureRequest::encode(Kind::MsiX, vectors, Sequence::START, setups, body)
        })
    }

    /// Fills the call buffer for a `release`; returns the request's bytes, header included.
    ///
    /// # Errors
    /// Never.
    pub fn write_release(&self) -> Result<usize> {
        self.write_call(CallId::Release, |_| Ok(0))
    }

    /// Fills the call buffer for an `update` of one vector, to the message that [`message`] gives for `to`; returns the request's bytes, header included.
    ///
    /// # Errors
    /// Never.
    pub fn write_update(&self, vector: u16, to: u16) -> Result<usize> {
        let update = VectorUpdate { vector: VectorIndex(vector), message: message(to) };
        self.write_call(CallId::Update, |body| UpdateRequest::encode(std::iter::once(update), body))
    }

    /// Rings the doorbell: one exit.
    pub fn ring(&self) {
        // A call buffer that cannot be answered is found in the answer.
        let _ = self.exit(|| self.service.doorbell(&self.memory, PAGE).ok());
    }

    /// Whether the last call has succeeded; its answer's bytes, header included.
    ///
    /// # Errors
    /// [`CallError`], as the guest finds it.
    pub fn answer(&self) -> Result<usize> {
        let mut bytes = [0; Header::SIZE];
        self.memory.read_slice(&mut bytes, BUFFER)?;
        let header = Header::from_bytes(&bytes);
        let mut body = vec![0; usize::try_from(header.body_length)?];
        self.memory.read_slice(&mut body, BODY)?;
        match CallError::decode(header.status, &body) {
            None => Ok(body.len().saturating_add(Header::SIZE)),
            Some(error) => Err(error.into()),
        }
    }

    /// The sequence number with which a `configure` that was answered *busy* is repeated; none where it is done.
    ///
    /// # Errors
    /// Any other failure of the call.
    pub fn busy(&self) -> Result<Option<Sequence>> {
        match self.answer() {
            Ok(_) => Ok(None),
            Err(error) => match error.downcast_ref::<CallError>() {
                Some(CallError::Busy(Busy { sequence, .. })) => Ok(Some(*sequence)),
                _ => Err(error),
            },
        }
    }

    /// Reads vector control: one exit where the table is trapped.
    pub fn read_vector_control(&self, vector: u16) {
        let offset = entry_word(vector, VECTOR_CONTROL);
        if let Some(offset) = self.direct(offset) {
            let _ = self.bar.as_volatile_slice().load::<u32>(offset, Ordering::SeqCst);
        } else {
            self.exit(|| self.function.bar_read(MEMORY, offset, &mut [0; 4]).ok());
        }
    }

    /// Writes the mask bit: one exit where the table is trapped.
    pub fn write_mask(&self, vector: u16, masked: bool) {
        self.write_table(vector, VECTOR_CONTROL, u32::from(masked));
    }

    /// Writes the message that [`message`] gives for `to` into the table: three exits where it is trapped.
    pub fn write_message(&self, vector: u16, to: u16) {
        let GuestMessage { address, data } = message(to);
        let [low @ .., h0, h1, h2, h3] = address.to_le_bytes();
        self.write_table(vector, ADDRESS_LOW, u32::from_le_bytes(low));
        self.write_table(vector, ADDRESS_HIGH, u32::from_le_bytes([h0, h1, h2, h3]));
        self.write_table(vector, DATA, data);
    }

    /// Writes a register in the page of the table: one exit where the table is trapped.
    pub fn write_beside_table(&self) {
        // It does nothing while no events are asked for.
        self.bar_write(ROTATION, 0);
    }

    /// What it was so far.
    ///
    /// # Errors
    /// Where the function is gone.
    pub fn cost(&self) -> Result<Cost> {
        let counters = self.function.status()?.counters;
        Ok(Cost {
            routing_updates: counters.routing_updates,
            interrupt_requests: counters.interrupt_setups.saturating_add(counters.enable_changes),
            irqfds: counters.attaches.saturating_add(counters.detaches),
            exits: self.exits.get(),
        })
    }

    /// That `vectors` vectors are assigned and the table is direct or not: a figure of anything else means nothing.
    ///
    /// # Errors
    /// Where it is not so.
    pub fn check(&self, vectors: u16, direct: bool) -> Result<()> {
        let status = self.function.status()?;
        ensure!(
            status.assigned == vectors && (status.mode == TableMode::Direct) == direct,
            "{} vectors are assigned, the table is {:?}: {:?}",
            status.assigned,
            status.mode,
            status.reasons
        );
        Ok(())
    }

    fn config_write(&self, offset: u64, data: &[u8]) {
        self.exit(|| self.function.config_write(offset, data).ok());
    }

    fn write_table(&self, vector: u16, word: u64, value: u32) {
        self.bar_write(entry_word(vector, word), value);
    }

    /// Where a guest whose memory map shows the table reaches an offset of the BAR without an exit.
    fn direct(&self, offset: u64) -> Option<usize> {
        let shows = self.shown.as_ref().is_some_and(Window::shows_table);
        shows.then(|| usize::try_from(offset).ok()).flatten()
    }

    fn bar_write(&self, offset: u64, value: u32) {
        if let Some(offset) = self.direct(offset) {
            let _ = self.bar.as_volatile_slice().store(value, offset, Ordering::SeqCst);
        } else {
            self.exit(|| self.function.bar_write(MEMORY, offset, &value.to_le_bytes()).ok());
        }
    }

    /// What a guest's exit makes the service do, which is counted.
    fn exit<T: Default>(&self, serve: impl FnOnce() -> T) -> T {
        self.exits.set(self.exits.get().saturating_add(1));
        count(serve)
    }

    fn write_call(
        &self,
        call: CallId,
        encode: impl FnOnce(&mut [u8]) -> Result<usize, EncodeError>,
    ) -> Result<usize> {
        let mut body = vec![0; BUFFER_MAX.saturating_sub(Header::SIZE)];
        let length = encode(&mut body)?;
        body.truncate(length);
        let header =
            Header::request(call, FUNCTION, BUFFER_MAX, length).context("the body is too long")?;
        self.memory.write_slice(&header.to_bytes(), BUFFER)?;
        self.memory.write_slice(&body, BODY)?;
        Ok(length.saturating_add(Header::SIZE))
    }
}

/// The message for a vector; all are different.
pub fn message(vector: u16) -> GuestMessage {
    let (processor, interrupt) = (vector >> 7, vector & 0x7f);
    GuestMessage {
        address: 0xfee0_0000 | u64::from(processor) << 12,
        data: 0x80 | u32::from(interrupt),
    }
}

/// Raises the soft limit of open files to the hard one: each vector takes two.
///
/// # Errors
/// Where that is not enough.
pub fn raise_file_limit() -> Result<()> {
    const NEEDED: u64 = 4096 + 128;
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    ensure!(
        maximum.is_none_or(|maximum| maximum >= NEEDED),
        "2048 vectors take {NEEDED} open files, and the hard limit is {}: raise it with ulimit -Hn {NEEDED}",
        maximum.unwrap_or_default()
    );
    Ok(())
}

fn software(vectors: u16) -> io::Result<SoftwareFunction> {
    SoftwareFunction::new(SoftwareOptions { vectors, isolated: true }, host_page_size())
}
