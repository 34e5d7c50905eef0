//! The function that sends what its driver forges: Intel 82576 (datasheet, sections 7.3 and 8.8).

use pvmsi_guest::{FunctionId, GuestMessage, Kind, TableMessage, TableMode, VectorSetup};
use pvmsi_guest_client::ServiceClient;
use pvmsi_guest_runtime::interrupts::FIRST_DEVICE;
use pvmsi_guest_runtime::mmio::Register;
use pvmsi_guest_runtime::msi::{self, Route};
use pvmsi_guest_runtime::pci;

const STATUS: usize = 0x0008;
/// General Purpose Interrupt Enable.
const GPIE: usize = 0x1514;
const GPIE_MULTIPLE_MSIX: u32 = 1 << 4;
/// Extended Interrupt Cause Set: raises a vector.
const EICS: usize = 0x1520;
/// Extended Interrupt Mask Set.
const EIMS: usize = 0x1524;
/// Extended Interrupt Auto Clear.
const EIAC: usize = 0x152c;

const VECTORS: u16 = 4;
/// The vector that is raised, and whose message is forged.
const VECTOR: u16 = 1;
const ENABLE: u16 = 1 << 15;

/// The function and its vector table.
pub(crate) struct Network {
    function: pci::Function,
    registers: usize,
    table: usize,
    control: u16,
}

impl Network {
    /// The function, when it is one.
    pub(crate) fn find(function: pci::Function) -> Option<Self> {
        if function.vendor_device() != (0x8086, 0x10c9) {
            return None;
        }
        let (table, control) = table(function)?;
        function.enable();
        let network = Self { function, registers: function.bar(0)?, table, control };
        msi::prepare(function, VECTORS, Self::route).ok()?;
        Some(network)
    }

    pub(crate) fn id(&self) -> FunctionId {
        self.function.id()
    }

    /// Sets its vectors up: the table must become direct.
    pub(crate) fn start(&self, client: &mut ServiceClient) -> Result<(), &'static str> {
        self.function.write_u16(self.control, ENABLE);
        let setups = (0..VECTORS).map(|vector| {
            let (address, data) = msi::message(vector, Self::route(vector));
            VectorSetup { message: Some(GuestMessage { address, data }), masked: false }
        });
        let grant = client
            .configure(self.id(), Kind::MsiX, VECTORS, setups, |_, _| {})
            .map_err(|_| "configure failed")?;
        if grant.mode != TableMode::Direct {
            return Err("the table is not direct");
        }
        self.register(GPIE).write(GPIE_MULTIPLE_MSIX);
        self.register(EIAC).write(1 << VECTOR);
        self.register(EIMS).write(1 << VECTOR);
        Ok(())
    }

    /// Makes the function emit the message of its vector.
    pub(crate) fn raise(&self) {
        self.register(EICS).write(1 << VECTOR);
    }

    /// Writes a message into the table.
    pub(crate) fn forge(&self, TableMessage { address, data }: TableMessage) {
        let [a0, a1, a2, a3, a4, a5, a6, a7] = address.to_le_bytes();
        let [low, high] = [[a0, a1, a2, a3], [a4, a5, a6, a7]].map(u32::from_le_bytes);
        for (word, value) in [(3, 1), (0, low), (1, high), (2, data), (3, 0)] {
            self.entry(word).write(value);
        }
    }

    /// What its status register reads as.
    pub(crate) fn status(&self) -> u32 {
        self.register(STATUS).read()
    }

    fn route(vector: u16) -> Route {
        let step = u8::try_from(vector).unwrap_or(0);
        Route { vcpu: 0, interrupt: FIRST_DEVICE.saturating_add(step) }
    }

    fn entry(&self, word: usize) -> Register<u32> {
        let entry = usize::from(VECTOR).wrapping_mul(16);
        let offset = entry.wrapping_add(word.wrapping_mul(4));
        // SAFETY: a word of the vector table, in the identity map.
        unsafe { Register::at(self.table.wrapping_add(offset)) }
    }

    fn register(&self, offset: usize) -> Register<u32> {
        // SAFETY: the datasheet's registers, inside BAR 0 and aligned.
        unsafe { Register::at(self.registers.wrapping_add(offset)) }
    }
}

/// Where a function's vector table is, and MSI-X Message Control.
pub(crate) fn table(function: pci::Function) -> Option<(usize, u16)> {
    let capability = function.capability(pci::CAPABILITY_MSIX)?;
    let place = function.read_u32(capability.wrapping_add(4));
    let [bar, ..] = (place & 7).to_le_bytes();
    let table = function.bar(bar)?.wrapping_add(usize::try_from(place & !7).ok()?);
    Some((table, capability.wrapping_add(2)))
}
