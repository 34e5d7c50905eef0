//! The suite on the guest half in C that was written from the specification alone (`tests/conformance/reader`).
//!
//! That it passes says something about the text: who has only the text can
//! write a guest half. What it does not do by itself, a kernel does here:
//! finding the capability, and remembering messages for a reset.

mod ffi;

use pvmsi_protocol::GuestMessage;

use super::{GuestFactory, GuestMachine, GuestUnderTest};
use ffi::Half;

/// Makes guests with the guest half in C.
#[derive(Clone, Copy, Debug)]
pub struct ReadersGuest;

impl GuestFactory for ReadersGuest {
    fn create<'m>(
        &self,
        machine: &'m dyn GuestMachine,
    ) -> Result<Box<dyn GuestUnderTest + 'm>, String> {
        let capability = find_msix(machine).ok_or("no MSI-X capability")?;
        Ok(Box::new(Half::new(machine, capability)?))
    }
}

/// Offset of the MSI-X capability.
fn find_msix(machine: &dyn GuestMachine) -> Option<u16> {
    const POINTER: u16 = 0x34;
    const MSIX: u16 = 0x11;
    let mut at = machine.read_config_u16(POINTER) & 0xfc;
    // A list that is longer than configuration space goes round.
    for _ in 0..48 {
        let [id, next] = machine.read_config_u16(at).to_le_bytes();
        match id {
            _ if at == 0 => return None,
            id if u16::from(id) == MSIX => return Some(at),
            _ => at = u16::from(next) & 0xfc,
        }
    }
    None
}

impl GuestUnderTest for Half<'_> {
    fn start(&mut self) -> bool {
        self.find() && self.negotiate().is_ok()
    }

    fn enable(&mut self, vectors: u16) -> Result<u16, String> {
        self.forget();
        // Where the service fails it has fallen back by itself: what counts is what works now.
        let result = self.configure(vectors);
        match self.count() {
            0 => Err(format!("no vectors: {result:?}")),
            count => Ok(count),
        }
    }

    fn enable_standard(&mut self, vectors: u16) -> Result<u16, String> {
        self.refuse();
        self.enable(vectors)
    }

    fn set_message(&mut self, vector: u16, message: GuestMessage) -> Result<(), String> {
        Half::set_message(self, vector, message)
    }

    fn mask(&mut self, vector: u16) -> Result<(), String> {
        self.set_enabled(vector, false)
    }

    fn unmask(&mut self, vector: u16) -> Result<(), String> {
        self.set_enabled(vector, true)
    }

    fn disable(&mut self) {
        self.release();
    }

    fn after_reset(
        &mut self,
        messages: &dyn Fn(u16) -> Option<GuestMessage>,
    ) -> Result<(), String> {
        self.remember(messages);
        self.restore()
    }
}
