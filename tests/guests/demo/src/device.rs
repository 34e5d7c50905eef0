//! A PCI function with MSI-X, and where its interrupts go.

use core::fmt;
use core::ptr::NonNull;

use pvmsi_guest::{
    FunctionId, GuestMessage, MsiX, MsiXCapability, MsiXError, PciFunction, TableLocation,
    VectorIndex,
};
use pvmsi_guest_client::ServiceClient;
use pvmsi_guest_runtime::interrupts::FIRST_DEVICE;
use pvmsi_guest_runtime::msi::{self, Route};
use pvmsi_guest_runtime::software::is_software;
use pvmsi_guest_runtime::{memory, pci, report};

/// Interrupt numbers of devices on one vCPU. As many vectors of a function as this can be told apart at a time.
pub(crate) const VECTORS: u16 = 192;

/// What a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The software function of the reference machine.
    Software,
    /// An NVMe controller.
    Nvme,
    /// Anything else with MSI-X.
    Other,
}

/// A function whose interrupts are measured.
pub(crate) struct Device {
    /// What it is.
    pub(crate) kind: Kind,
    /// BAR 0 in the identity map; 0 when it has none.
    pub(crate) bar0: usize,
    /// Its interrupts.
    pub(crate) msix: &'static MsiX<Interrupts>,
}

/// The function as the shim sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interrupts {
    function: pci::Function,
    /// Vector n + 1 goes to vCPU n, for so many; all others go to vCPU 0.
    spread: u16,
}

impl Device {
    /// Looks at a function and switches its memory on. `None` when it has no MSI-X; without a reachable table also a failure of the run.
    pub(crate) fn new(function: pci::Function, vcpus: usize) -> Option<Self> {
        let kind = match function.class() {
            _ if is_software(&function) => Kind::Software,
            0x01_0802 => Kind::Nvme,
            _ => Kind::Other,
        };
        let spread = match kind {
            Kind::Nvme => u16::try_from(vcpus).unwrap_or(u16::MAX),
            Kind::Software | Kind::Other => 0,
        };
        let interrupts = Interrupts { function, spread };
        let capability = MsiXCapability::find(&interrupts)?;
        function.enable();
        let Some(table) = mapped(function, capability.table) else {
            let id = function.id();
            report::failure(format_args!("{id}: the vector table is not below 4 GiB"));
            return None;
        };
        let route = |vector| interrupts.route(VectorIndex(vector));
        if let Err(error) = msi::prepare(function, capability.table_size, route) {
            report::failure(format_args!("{}: {error}", function.id()));
            return None;
        }
        // SAFETY:
        // 1. The BAR is mapped where it is, on every vCPU, for good; the capability gives the table's length.
        // 2. No pending bit array is given.
        // 3. Nothing but this `MsiX` writes to the table; the neighbour register is not part of it.
        let msix = unsafe { MsiX::new(interrupts, capability, table, None) };
        let Some(msix) = memory::place(msix) else {
            report::failure(format_args!("{}: no RAM left; give the guest more", function.id()));
            return None;
        };
        Some(Self { kind, bar0: function.bar(0).unwrap_or(0), msix })
    }

    /// Enables all vectors, masked, each with its message. Returns how many there are.
    pub(crate) fn enable(&self, client: Option<&mut ServiceClient>) -> Result<u16, MsiXError> {
        let interrupts = *self.msix.function();
        let requested = self.msix.capability().table_size;
        self.msix.enable_with(client, requested, |vector| Some(interrupts.message(vector)))
    }

    /// Unmasks vectors, from the first on.
    pub(crate) fn unmask(&self, vectors: u16) -> Result<(), MsiXError> {
        (0..vectors).try_for_each(|vector| self.msix.unmask(VectorIndex(vector)))
    }

    /// How reports name it.
    pub(crate) fn id(&self) -> FunctionId {
        self.msix.function().id()
    }
}

impl Interrupts {
    /// The guest message of a vector.
    pub(crate) fn message(self, vector: VectorIndex) -> GuestMessage {
        let (address, data) = msi::message(vector.0, self.route(vector));
        GuestMessage { address, data }
    }

    /// Which vCPU takes a vector, and as which interrupt: VECTORS consecutive ones have one each.
    fn route(self, vector: VectorIndex) -> Route {
        let queue = vector.0.checked_sub(1).filter(|&queue| queue < self.spread);
        let step = u8::try_from(vector.0.checked_rem(VECTORS).unwrap_or(0)).unwrap_or(0);
        Route { vcpu: queue.map_or(0, usize::from), interrupt: FIRST_DEVICE.saturating_add(step) }
    }
}

impl PciFunction for Interrupts {
    fn id(&self) -> FunctionId {
        self.function.id()
    }

    fn read_config_u16(&self, offset: u16) -> u16 {
        self.function.read_u16(offset)
    }

    fn read_config_u32(&self, offset: u16) -> u32 {
        self.function.read_u32(offset)
    }

    fn write_config_u16(&self, offset: u16, value: u16) {
        self.function.write_u16(offset, value);
    }

    fn deliver(&self, vector: VectorIndex) {
        msi::deliver(self.function, vector.0, self.route(vector));
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.id(), self.kind)
    }
}

fn mapped(function: pci::Function, location: TableLocation) -> Option<NonNull<u32>> {
    let address =
        function.bar(location.bar)?.checked_add(usize::try_from(location.offset).ok()?)?;
    NonNull::new(core::ptr::with_exposed_provenance_mut(address))
}
