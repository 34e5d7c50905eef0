//! Target `guest`: what the author of a guest kernel implements to run the suite against a guest half of their own.
//!
//! [`GuestUnderTest`] is what a driver asks its kernel for; [`GuestMachine`] is
//! what that kernel runs on. The suite's machine answers each call as the test
//! says (busy, a short grant, nothing at all, garbage …) and looks at
//! everything that the guest does.
//!
//! No processor is needed: where the guest half would execute CPUID or ring
//! its doorbell, the adapter calls the machine. RAM, vector table and pending
//! bits are ordinary memory. While the guest half makes one of the steps of
//! [`GuestUnderTest`], nothing else accesses them, but the host at a ring.
//!
//! [`ours`] is the first implementation, on `pvmsi-guest`; [`reader`] the second, in C; [`linux`]
//! the third, on what the Linux module calls with.

mod call;
mod good_host;
pub mod linux;
mod machine;
pub mod ours;
pub mod reader;
mod tests;

use std::ptr::NonNull;

use pvmsi_protocol::{FunctionId, GuestMessage};

pub(crate) use tests::tests;

/// Guest RAM starts at address 0 and is so long.
pub const RAM_BYTES: usize = 0x10_0000;

/// A doorbell of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doorbell {
    /// A 32-bit write to an I/O port.
    Port(u16),
    /// A 32-bit write to a register at a guest physical address.
    Register(u64),
}

/// The machine that a guest half runs on: one function with MSI-X, memory decoding on, MSI-X off.
pub trait GuestMachine {
    /// EAX, EBX, ECX and EDX of a CPUID leaf.
    fn cpuid(&self, leaf: u32) -> [u32; 4];

    /// Guest physical address 0 in this process: [`RAM_BYTES`] bytes, readable and writable, for as long as the machine exists. The guest chooses where its call buffers are.
    fn ram(&self) -> NonNull<u8>;

    /// Rings a doorbell; the host has answered, or will not, when this returns.
    fn ring(&self, doorbell: Doorbell, value: u32);

    /// Lets time pass.
    fn delay_us(&self, microseconds: u32);

    /// The function's address.
    fn function(&self) -> FunctionId;

    /// Reads 16 bits of the function's configuration space.
    fn read_config_u16(&self, offset: u16) -> u16;

    /// Writes 16 bits of the function's configuration space.
    fn write_config_u16(&self, offset: u16, value: u16);

    /// The function's vector table, as the guest has it mapped: 16 bytes for each entry that the capability names.
    fn table(&self) -> NonNull<u32>;

    /// The function's pending bit array, likewise: 8 bytes for each 64 entries.
    fn pending(&self) -> NonNull<u32>;

    /// The kernel runs a vector's handler for an event that the host has reported as pending.
    fn deliver(&self, vector: u16);
}

impl<M: GuestMachine + ?Sized> GuestMachine for &M {
    fn cpuid(&self, leaf: u32) -> [u32; 4] {
        (**self).cpuid(leaf)
    }

    fn ram(&self) -> NonNull<u8> {
        (**self).ram()
    }

    fn ring(&self, doorbell: Doorbell, value: u32) {
        (**self).ring(doorbell, value);
    }

    fn delay_us(&self, microseconds: u32) {
        (**self).delay_us(microseconds);
    }

    fn function(&self) -> FunctionId {
        (**self).function()
    }

    fn read_config_u16(&self, offset: u16) -> u16 {
        (**self).read_config_u16(offset)
    }

    fn write_config_u16(&self, offset: u16, value: u16) {
        (**self).write_config_u16(offset, value);
    }

    fn table(&self) -> NonNull<u32> {
        (**self).table()
    }

    fn pending(&self) -> NonNull<u32> {
        (**self).pending()
    }

    fn deliver(&self, vector: u16) {
        (**self).deliver(vector);
    }
}

/// A guest half, as a driver of a kernel sees it. Errors are for the report.
pub trait GuestUnderTest {
    /// Looks for the service and agrees on a version, once. `true`: the service will be used.
    fn start(&mut self) -> bool;

    /// Switches MSI-X on with so many vectors, all masked: by the service where [`start`](Self::start) has found it, else, or where it is refused, by the standard table. Returns how many there are.
    ///
    /// # Errors
    /// MSI-X is off; the function can be enabled again.
    fn enable(&mut self, vectors: u16) -> Result<u16, String>;

    /// The same without the service.
    ///
    /// # Errors
    /// As [`enable`](Self::enable).
    fn enable_standard(&mut self, vectors: u16) -> Result<u16, String>;

    /// Says where a vector's interrupt shall go, also when it goes there already.
    ///
    /// # Errors
    /// The old message stays.
    fn set_message(&mut self, vector: u16, message: GuestMessage) -> Result<(), String>;

    /// Masks a vector.
    ///
    /// # Errors
    /// The driver does not have the vector.
    fn mask(&mut self, vector: u16) -> Result<(), String>;

    /// Unmasks a vector.
    ///
    /// # Errors
    /// The driver does not have the vector.
    fn unmask(&mut self, vector: u16) -> Result<(), String>;

    /// Switches MSI-X off.
    fn disable(&mut self);

    /// Brings interrupts back after the function was reset, with the masks as they were. `messages` is for a guest that does not remember what [`set_message`](Self::set_message) was given.
    ///
    /// # Errors
    /// Interrupts do not work.
    fn after_reset(&mut self, messages: &dyn Fn(u16) -> Option<GuestMessage>)
    -> Result<(), String>;
}

/// Makes guest halves.
pub trait GuestFactory: Sync {
    /// A guest half on this machine, which has done nothing yet.
    ///
    /// # Errors
    /// Why this guest cannot be had; the test is skipped.
    fn create<'m>(
        &self,
        machine: &'m dyn GuestMachine,
    ) -> Result<Box<dyn GuestUnderTest + 'm>, String>;
}
