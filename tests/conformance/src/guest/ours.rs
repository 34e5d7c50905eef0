//! The suite on `pvmsi-guest`: what a kernel adds, without a processor.
//!
//! Discovery is the scan of the protocol crate with this machine's leaves; the
//! instruction itself is not executed.

use std::ptr::NonNull;
use std::rc::Rc;

use pvmsi_guest::{
    BufferPage, CallBuffer, Client, Delay, Doorbell as RingDoorbell, FunctionId, GuestMessage,
    MsiX, MsiXCapability, PciFunction, ServiceBlock, VectorIndex,
};
use pvmsi_protocol::Leaf;

use super::{Doorbell, GuestFactory, GuestMachine, GuestUnderTest};

/// Makes guests with our guest half.
#[derive(Clone, Copy, Debug)]
pub struct OurGuest;

/// Where the guest has its call buffer.
const BUFFER: u64 = 0x2_0000;
const BUFFER_BYTES: usize = 0x1_0000;

/// The machine, shared by the parts of the kernel.
type Shared<'m> = Rc<dyn GuestMachine + 'm>;

struct Kernel<'m> {
    machine: Shared<'m>,
    client: Option<Client<'m, Bell<'m>, Clock<'m>>>,
    msix: MsiX<Function<'m>>,
}

struct Bell<'m> {
    machine: Shared<'m>,
    doorbell: Doorbell,
}

impl RingDoorbell for Bell<'_> {
    fn ring(&self, page: BufferPage) {
        self.machine.ring(self.doorbell, page.0);
    }
}

struct Clock<'m>(Shared<'m>);

impl Delay for Clock<'_> {
    fn delay_us(&mut self, microseconds: u32) {
        self.0.delay_us(microseconds);
    }
}

struct Function<'m>(Shared<'m>);

impl PciFunction for Function<'_> {
    fn id(&self) -> FunctionId {
        self.0.function()
    }

    fn read_config_u16(&self, offset: u16) -> u16 {
        self.0.read_config_u16(offset)
    }

    fn read_config_u32(&self, offset: u16) -> u32 {
        let high = self.0.read_config_u16(offset.saturating_add(2));
        u32::from(high) << 16 | u32::from(self.0.read_config_u16(offset))
    }

    fn write_config_u16(&self, offset: u16, value: u16) {
        self.0.write_config_u16(offset, value);
    }

    fn deliver(&self, vector: VectorIndex) {
        self.0.deliver(vector.0);
    }
}

impl GuestFactory for OurGuest {
    fn create<'m>(
        &self,
        machine: &'m dyn GuestMachine,
    ) -> Result<Box<dyn GuestUnderTest + 'm>, String> {
        create(Rc::new(machine))
    }
}

/// Our guest half on a machine that it shares.
pub(crate) fn create<'m>(machine: Shared<'m>) -> Result<Box<dyn GuestUnderTest + 'm>, String> {
    let function = Function(Rc::clone(&machine));
    let capability = MsiXCapability::find(&function).ok_or("no MSI-X capability")?;
    let (table, pending) = (machine.table(), machine.pending());
    // SAFETY: the machine's table and pending bits have the size that its capability names, they
    // live as long as the machine, and only this guest half writes there.
    let msix = unsafe { MsiX::new(function, capability, table, Some(pending)) };
    Ok(Box::new(Kernel { machine, client: None, msix }))
}

impl<'m> Kernel<'m> {
    /// The client for a service block.
    fn client(&self, block: &ServiceBlock) -> Option<Client<'m, Bell<'m>, Clock<'m>>> {
        let machine = Rc::clone(&self.machine);
        let doorbell = match (block.doorbell_port, block.doorbell_address) {
            (Some(port), _) => Doorbell::Port(port),
            (None, address) => Doorbell::Register(address?),
        };
        // SAFETY: the buffer lies inside RAM.
        let start: NonNull<u8> = unsafe { machine.ram().add(usize::try_from(BUFFER).ok()?) };
        // SAFETY: RAM is the guest's for as long as the machine exists, the guest uses this part
        // of it for nothing else, and the host accesses it only at a ring.
        let buffer = unsafe { CallBuffer::new(start, BUFFER_BYTES, BUFFER) }?;
        let clock = Clock(Rc::clone(&machine));
        Some(Client::with_delay(buffer, Bell { machine, doorbell }, clock))
    }
}

impl GuestUnderTest for Kernel<'_> {
    fn start(&mut self) -> bool {
        let block = ServiceBlock::find_by_cpuid(|leaf| {
            let [eax, ebx, ecx, edx] = self.machine.cpuid(leaf);
            Leaf { eax, ebx, ecx, edx }
        });
        self.client = block
            .and_then(|block| self.client(&block))
            .and_then(|mut client| client.negotiate().is_ok().then_some(client));
        self.client.is_some()
    }

    fn enable(&mut self, vectors: u16) -> Result<u16, String> {
        self.msix.enable(self.client.as_mut(), vectors).map_err(|error| error.to_string())
    }

    fn enable_standard(&mut self, vectors: u16) -> Result<u16, String> {
        let none: Option<&mut Client<'_, Bell<'_>, Clock<'_>>> = None;
        self.msix.enable(none, vectors).map_err(|error| error.to_string())
    }

    fn set_message(&mut self, vector: u16, message: GuestMessage) -> Result<(), String> {
        let client = self.client.as_mut();
        self.msix.set(client, VectorIndex(vector), message).map_err(|error| error.to_string())
    }

    fn mask(&mut self, vector: u16) -> Result<(), String> {
        self.msix.mask(VectorIndex(vector)).map_err(|error| error.to_string())
    }

    fn unmask(&mut self, vector: u16) -> Result<(), String> {
        self.msix.unmask(VectorIndex(vector)).map_err(|error| error.to_string())
    }

    fn disable(&mut self) {
        self.msix.disable();
    }

    fn after_reset(
        &mut self,
        messages: &dyn Fn(u16) -> Option<GuestMessage>,
    ) -> Result<(), String> {
        let client = self.client.as_mut();
        self.msix
            .after_reset(client, |vector| messages(vector.0))
            .map_err(|error| error.to_string())
    }
}
