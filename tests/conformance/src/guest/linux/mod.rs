//! The suite on the wire layer of the Linux module (`guest-shim/linux`), compiled for user space.
//!
//! The C code under test finds the service, and makes and reads the calls. What the kernel and
//! the module's upper layer do with it in Linux, as little as the suite asks for, is here: MSI-X
//! Enable, Function Mask, the table, waiting, going on without the service.

mod raw;
pub mod wire;

use std::ptr::NonNull;

use pvmsi_protocol::{
    CallError, Features, FunctionId, GuestMessage, Kind, Leaf, Reasons, Sequence, VectorIndex,
    VectorUpdate,
};

use super::{Doorbell, GuestFactory, GuestMachine, GuestUnderTest};
use wire::{Client, Configure, Service};

/// Where the guest has its call buffer.
const BUFFER: u64 = 0x2_0000;
const BUFFER_BYTES: u32 = 0x1_0000;

const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;

/// Attempts of a busy `configure`, beside one for each vector.
const ATTEMPTS: u32 = 16;
/// The longest wait for a busy host, and all waits of one `configure` together.
const WAIT_US: u32 = 50_000;
const WAITS_US: u32 = 2_000_000;

/// Makes guests with the wire layer of the Linux module.
#[derive(Clone, Copy, Debug)]
pub struct LinuxGuest;

impl GuestFactory for LinuxGuest {
    fn create<'m>(
        &self,
        machine: &'m dyn GuestMachine,
    ) -> Result<Box<dyn GuestUnderTest + 'm>, String> {
        wire::check_layout()?;
        let capability = msix_capability(machine).ok_or("no MSI-X capability")?;
        let (client, vectors) = (None, Vec::new());
        Ok(Box::new(Kernel { machine, capability, client, vectors, assigned: false }))
    }
}

/// Walks the list of capabilities, which is hostile where it goes round.
fn msix_capability(machine: &dyn GuestMachine) -> Option<u16> {
    let mut next = machine.read_config_u16(0x34);
    for _ in 0..64 {
        let offset = next & 0xfc;
        let header = Some(offset).filter(|offset| *offset != 0);
        let header = machine.read_config_u16(header?);
        if header & 0xff == 0x11 {
            return Some(offset);
        }
        next = header >> 8;
    }
    None
}

type Bell<'m> = Box<dyn Fn(u32) + 'm>;

struct Kernel<'m> {
    machine: &'m dyn GuestMachine,
    capability: u16,
    client: Option<Client<Bell<'m>>>,
    /// Those that the driver has.
    vectors: Vec<Vector>,
    /// By the service; else by the standard table.
    assigned: bool,
}

/// What a kernel remembers of a vector.
#[derive(Clone, Copy)]
struct Vector {
    message: Option<GuestMessage>,
    masked: bool,
    pending: bool,
}

impl Vector {
    const NEW: Self = Self { message: None, masked: true, pending: false };
}

/// What became of a try with the service.
enum Attempt {
    /// So many vectors are assigned.
    Granted(u16),
    /// None is.
    Refused,
}

impl Kernel<'_> {
    fn function(&self) -> FunctionId {
        self.machine.function()
    }

    /// Sets Enable and Function Mask; the rest of Message Control is read-only.
    fn control(&self, bits: u16) {
        self.machine.write_config_u16(self.capability.saturating_add(2), bits);
    }

    /// A word of an entry that the driver has.
    fn word(&self, vector: u16, word: usize) -> NonNull<u32> {
        let offset = usize::from(vector).saturating_mul(4).saturating_add(word);
        // SAFETY: `enable` takes no more vectors than the table has entries.
        unsafe { self.machine.table().add(offset) }
    }

    fn store(&self, vector: u16, word: usize, value: u32) {
        // SAFETY: a word of the table, which nobody else writes meanwhile.
        unsafe { self.word(vector, word).write_volatile(value) };
    }

    /// Writes the mask bit and leaves the others of vector control (G-521).
    fn store_mask(&self, vector: u16, masked: bool) {
        // SAFETY: a word of the table, which nobody else writes meanwhile.
        let control = unsafe { self.word(vector, 3).read_volatile() };
        self.store(vector, 3, control & !1 | u32::from(masked));
    }

    fn store_message(&self, vector: u16, GuestMessage { address, data }: GuestMessage) {
        let [a0, a1, a2, a3, a4, a5, a6, a7] = address.to_le_bytes();
        self.store(vector, 0, u32::from_le_bytes([a0, a1, a2, a3]));
        self.store(vector, 1, u32::from_le_bytes([a4, a5, a6, a7]));
        self.store(vector, 2, data);
    }

    fn entries(&self) -> u16 {
        let control = self.machine.read_config_u16(self.capability.saturating_add(2));
        (control & 0x7ff).saturating_add(1)
    }

    fn vector(&mut self, vector: u16) -> Result<&mut Vector, String> {
        let there = self.vectors.get_mut(usize::from(vector));
        there.ok_or_else(|| format!("the driver does not have vector {vector}"))
    }

    /// Asks for vectors until the host is no longer busy, or the kernel has waited enough.
    fn configure(&mut self, wanted: u16) -> Attempt {
        let function = self.function();
        let Some(client) = &mut self.client else { return Attempt::Refused };
        let Some(mut configure) = Configure::new(Kind::MsiX, wanted, Sequence::START, []) else {
            return Attempt::Refused;
        };
        let (mut attempts, mut waited) = (0_u32, 0_u32);
        loop {
            match client.configure(function, &mut configure) {
                Ok((configured, answers)) => {
                    let vector = |answer: pvmsi_protocol::VectorAnswer| Vector {
                        pending: answer.pending,
                        ..Vector::NEW
                    };
                    self.vectors = answers.map(vector).collect();
                    return Attempt::Granted(configured.granted);
                }
                Err(CallError::Busy(busy)) => {
                    attempts = attempts.saturating_add(1);
                    let delay = busy.delay_us.min(WAIT_US);
                    waited = waited.saturating_add(delay);
                    let most = ATTEMPTS.saturating_add(wanted.into());
                    if attempts > most || waited > WAITS_US {
                        break;
                    }
                    self.machine.delay_us(delay);
                }
                Err(
                    CallError::NotSupported
                    | CallError::NoSuchFunction
                    | CallError::NoResources
                    | CallError::Denied
                    | CallError::Parameter(_),
                ) => return Attempt::Refused,
                Err(CallError::Hardware) => break,
            }
        }
        self.release();
        Attempt::Refused
    }

    /// After this no vector is assigned, whatever the host says. Enable and Function Mask are set.
    fn release(&mut self) {
        let function = self.function();
        let released = self.client.as_mut().is_some_and(|client| client.release(function).is_ok());
        if !released {
            self.control(0);
            self.control(ENABLE | FUNCTION_MASK);
        }
        self.assigned = false;
    }

    /// Puts what the kernel remembers into the standard table.
    fn write_table(&self) {
        for (index, vector) in (0..).zip(&self.vectors) {
            self.store_mask(index, true);
            if let Some(message) = vector.message {
                self.store_message(index, message);
                self.store_mask(index, vector.masked);
            }
        }
    }
}

impl GuestUnderTest for Kernel<'_> {
    fn start(&mut self) -> bool {
        let machine = self.machine;
        let service = Service::find_by_cpuid(|leaf| {
            let [eax, ebx, ecx, edx] = machine.cpuid(leaf);
            Leaf { eax, ebx, ecx, edx }
        });
        let Some(service) = service else { return false };
        let doorbell = match (service.port, service.address) {
            (Some(port), _) => Doorbell::Port(port),
            (None, Some(address)) => Doorbell::Register(address),
            (None, None) => return false,
        };
        let Ok(start) = usize::try_from(BUFFER) else { return false };
        // SAFETY: the buffer lies inside RAM, which has `RAM_BYTES` bytes.
        let buffer = unsafe { machine.ram().add(start) };
        let ring: Bell<'_> = Box::new(move |page| machine.ring(doorbell, page));
        // SAFETY: RAM is there as long as the machine, and the guest uses this part of it for
        // nothing else; the host accesses it at a ring.
        let mut client = unsafe { Client::new(buffer, BUFFER_BYTES, BUFFER, ring) };
        self.client = client.negotiate(Features::DIRECT).is_ok().then_some(client);
        self.client.is_some()
    }

    fn enable(&mut self, vectors: u16) -> Result<u16, String> {
        self.control(ENABLE | FUNCTION_MASK);
        let most = self.client.as_ref().map_or(0, Client::most_vectors);
        match self.configure(vectors.min(self.entries()).min(most)) {
            Attempt::Granted(granted) => {
                self.assigned = true;
                self.control(ENABLE);
                Ok(granted)
            }
            Attempt::Refused => self.enable_standard(vectors),
        }
    }

    fn enable_standard(&mut self, vectors: u16) -> Result<u16, String> {
        let vectors = vectors.min(self.entries());
        self.control(ENABLE | FUNCTION_MASK);
        self.assigned = false;
        self.vectors = vec![Vector::NEW; vectors.into()];
        self.write_table();
        self.control(ENABLE);
        Ok(vectors)
    }

    fn set_message(&mut self, vector: u16, message: GuestMessage) -> Result<(), String> {
        let masked = self.vector(vector)?.masked;
        match &mut self.client {
            Some(client) if self.assigned => {
                let update = VectorUpdate { vector: VectorIndex(vector), message };
                client
                    .update(self.machine.function(), [update])
                    .map_err(|error| error.to_string())?;
            }
            _ => {
                // No message is written while its vector could fire.
                self.store_mask(vector, true);
                self.store_message(vector, message);
                self.store_mask(vector, masked);
            }
        }
        self.vector(vector)?.message = Some(message);
        Ok(())
    }

    fn mask(&mut self, vector: u16) -> Result<(), String> {
        self.vector(vector)?.masked = true;
        self.store_mask(vector, true);
        Ok(())
    }

    fn unmask(&mut self, vector: u16) -> Result<(), String> {
        let state = self.vector(vector)?;
        state.masked = false;
        let pending = std::mem::take(&mut state.pending);
        self.store_mask(vector, false);
        if pending {
            self.machine.deliver(vector);
        }
        Ok(())
    }

    fn disable(&mut self) {
        self.control(0);
        self.vectors.clear();
        self.assigned = false;
    }

    fn after_reset(
        &mut self,
        messages: &dyn Fn(u16) -> Option<GuestMessage>,
    ) -> Result<(), String> {
        for (index, vector) in (0..).zip(&mut self.vectors) {
            vector.message = vector.message.or_else(|| messages(index));
        }
        self.control(ENABLE | FUNCTION_MASK);
        let function = self.function();
        let restored = match &mut self.client {
            Some(client) if self.assigned => client
                .restore(function)
                .is_ok_and(|answer| !answer.reasons.contains(Reasons::NOT_ASSIGNED)),
            _ => false,
        };
        if restored {
            for (index, vector) in (0..).zip(&self.vectors) {
                self.store_mask(index, vector.masked);
            }
        } else {
            if self.assigned {
                self.release();
            }
            self.write_table();
        }
        self.control(ENABLE);
        Ok(())
    }
}
