//! The software function of the reference machine: events, resets, and what it has sent.

use pvmsi_guest_runtime::mmio::Register;
use pvmsi_guest_runtime::{interrupts, pci, software, vcpu};
use pvmsi_software::registers::{
    CONTROL, DONE, DOORBELL, FIRST, PACE, RESET, ROTATION, SENT, START, STARTED, of_vector,
};

const COMMAND: u16 = 0x04;
const COMMAND_MEMORY: u16 = 2;
const BAR: u16 = 0x10;
/// A vector that no function has.
const NO_VECTOR: u16 = u16::MAX;
/// Looks at a register before the guest sleeps in between.
const LOOKS: u32 = 300;
/// Milliseconds that the device may take.
const PATIENCE: u32 = 5000;

/// The registers of a function whose memory answers.
pub(crate) struct Device {
    base: usize,
    vectors: u16,
}

impl Device {
    /// `None` while its memory does not answer. `power` is the offset of its power state.
    pub(crate) fn of(function: pci::Function, power: u16, vectors: u16) -> Option<Self> {
        let decodes = function.read_u16(COMMAND) & COMMAND_MEMORY != 0;
        let is_on = function.read_u16(power) & 3 == 0;
        let base = usize::try_from(function.read_u32(BAR) & !0xf).ok()?;
        (decodes && is_on && base != 0).then_some(Self { base, vectors })
    }

    /// An event; the device has seen it when this returns. `false`: it has not.
    pub(crate) fn raise(&self, vector: u16) -> bool {
        let total = self.register(DOORBELL).read().wrapping_add(1);
        self.register(FIRST).write(vector.into());
        self.register(ROTATION).write(1);
        self.register(PACE).write(0);
        self.register(DOORBELL).write(total);
        wait(|| self.register(DONE).read() == total)
    }

    /// Makes sure that the device has looked at every mask bit as it is now, and has sent what is to be sent: it looks at all of them in each round of its work, and an event of a vector that it does not have takes a round.
    pub(crate) fn settle(&self) -> bool {
        self.raise(NO_VECTOR) && self.raise(NO_VECTOR)
    }

    /// Loses table and pending bits, unseen by the host.
    pub(crate) fn reset(&self) -> bool {
        let control = self.register(CONTROL);
        control.write(RESET);
        wait(|| control.read() == 0)
    }

    /// Starts the device; whether it found its own MSI-X Enable set. `None`: it does not say.
    pub(crate) fn start(&self) -> Option<bool> {
        let control = self.register(CONTROL);
        control.write(START);
        wait(|| control.read() != START).then(|| control.read() == STARTED)
    }

    /// Messages that it has sent.
    pub(crate) fn sent(&self) -> u32 {
        let counters = (0..self.vectors).map(|vector| self.register(of_vector(SENT, vector)));
        counters.fold(0, |sum, counter| sum.wrapping_add(counter.read()))
    }

    fn register(&self, offset: u64) -> Register<u32> {
        // SAFETY: a register of the data sheet, inside the BAR and aligned.
        unsafe { Register::at(software::address(self.base, offset)) }
    }
}

/// Waits with interrupts on.
fn wait(mut done: impl FnMut() -> bool) -> bool {
    for _ in 0..LOOKS {
        if done() {
            return true;
        }
        core::hint::spin_loop();
    }
    let done = vcpu::wait_until(PATIENCE, done);
    interrupts::enable();
    done
}
