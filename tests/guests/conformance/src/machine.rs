//! One function of the machine, as power-on leaves it.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use pvmsi_conformance::host::{Ability, Counts, HostUnderTest, Ram};
use pvmsi_guest_runtime::mmio::Register;
use pvmsi_guest_runtime::{interrupts, msi, println, vcpu};
use pvmsi_protocol::{
    CallId, FunctionId, GuestMessage, Header, MAGIC, SMCCC_CALL, Status, Version,
};

use crate::device::Device;
use crate::host::{Described, Host};
use crate::{arch, arrivals};

const COMMAND: u16 = 0x04;
const COMMAND_MEMORY: u16 = 2;
const BAR: u16 = 0x10;
const FUNCTION_LEVEL_RESET: u16 = 0x8000;
/// BIST; bit 6 starts it. The software function loses its MSI-X Enable by that.
const SELF_TEST: u64 = 0x0f;
/// The page that a call of the guest's own uses, the last.
const OWN_PAGE: u32 = 0xff;

pub(crate) struct Machine {
    host: &'static Host,
    it: Described,
    /// Messages that the function had sent, and interrupts that had arrived, before this machine.
    sent: AtomicU32,
    arrived: AtomicUsize,
}

impl Machine {
    pub(crate) fn new(host: &'static Host, it: Described) -> Self {
        let machine = Self { host, it, sent: AtomicU32::new(0), arrived: AtomicUsize::new(0) };
        machine.power_off();
        // The counters stay as they are; they are read once with memory decoding on.
        machine.place_bar(it.bar);
        it.function.write_u16(COMMAND, COMMAND_MEMORY);
        let sent = machine.device().map_or(0, |device| device.sent());
        it.function.write_u16(COMMAND, 0);
        machine.place_bar(0);
        machine.sent.store(sent, Ordering::Relaxed);
        arrivals::take();
        machine.arrived.store(arrivals::count(), Ordering::Relaxed);
        machine
    }

    /// Back to where power-on leaves a function.
    fn power_off(&self) {
        let Described { function, msix, power, device_control, .. } = self.it;
        let control = msix.wrapping_add(2);
        function.write_u16(power, 0);
        function.write_u16(control, 0);
        self.release();
        let reset = function.read_u16(device_control) | FUNCTION_LEVEL_RESET;
        function.write_u16(device_control, reset);
        function.write_u16(control, 0);
        function.write_u16(COMMAND, 0);
        self.place_bar(0);
    }

    fn place_bar(&self, address: u64) {
        self.it.function.write_u32(BAR, u32::try_from(address).unwrap_or(0));
    }

    fn release(&self) {
        let header = Header {
            magic: MAGIC,
            version: Version::V1_0,
            call: CallId::Release.number(),
            function: self.it.function.id(),
            buffer_length: 4096,
            body_length: 0,
            status: Status::SENTINEL,
            reserved: 0,
        };
        let address = u64::from(OWN_PAGE) << 12;
        self.host.ram.write(address, &header.to_bytes());
        self.ring(OWN_PAGE);
        self.host.ram.write(address, &[0; 64]);
    }

    /// Its registers, while its memory answers.
    fn device(&self) -> Option<Device> {
        Device::of(self.it.function, self.it.power, self.it.vectors)
    }

    /// Waits until what is under way has arrived: at least as many interrupts as the function has sent messages, or, where the host holds some, a while.
    fn settle(&self) {
        let device = self.device();
        if device.as_ref().is_some_and(|device| !device.settle()) {
            println!("# the device does not answer");
        }
        let arrived = || arrivals::count().wrapping_sub(self.arrived.load(Ordering::Relaxed));
        let sent = device.map(|device| device.sent());
        let sent = sent.map(|sent| sent.wrapping_sub(self.sent.load(Ordering::Relaxed)));
        let sent = sent.and_then(|sent| usize::try_from(sent).ok());
        // What must not come is waited for in any case, a tick or two.
        vcpu::wait_until(0, || false);
        vcpu::wait_until(self.host.patience, || sent.is_some_and(|sent| arrived() >= sent));
        interrupts::enable();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.power_off();
    }
}

impl HostUnderTest for Machine {
    fn can(&self, ability: Ability) -> bool {
        match ability {
            Ability::BusReset
            | Ability::MachineReset
            | Ability::Revoke
            | Ability::Remove
            | Ability::Failure
            | Ability::TableLoss
            | Ability::AnyMessage
            | Ability::Table
            | Ability::ForeignMessages
            | Ability::Mappings
            | Ability::Counts => false,
            Ability::Start => true,
        }
    }

    fn function(&self) -> Option<FunctionId> {
        Some(self.it.function.id())
    }

    fn bar(&self) -> u64 {
        self.it.bar
    }

    fn ram(&self) -> &dyn Ram {
        &self.host.ram
    }

    fn ring(&self, page: u32) {
        self.host.doorbell.write(&self.host.ram.page_32(page).to_le_bytes());
    }

    fn doorbell_write(&self, data: &[u8]) {
        let [a, b, c, d] = self.host.ram.page_32(0).to_le_bytes();
        match *data {
            [e, f, g, h] => self.ring(u32::from_le_bytes([e, f, g, h])),
            [_, _, _, _, _, _, _, _] => self.host.doorbell.write(&[a, b, c, d, 0, 0, 0, 0]),
            [_, _] => self.host.doorbell.write(&[a, b]),
            [_] => self.host.doorbell.write(&[a]),
            _ => {}
        }
    }

    fn doorbell_read(&self, data: &mut [u8]) {
        self.host.doorbell.read(data.len());
    }

    fn service_block(&self, leaf: u32) -> Option<[u32; 4]> {
        arch::block(self.host.platform, leaf)
    }

    fn smccc(&self, function: u32, x1: u64) -> Option<[u64; 4]> {
        let x1 = if function == SMCCC_CALL { self.host.ram.page(x1) } else { x1 };
        arch::smccc(self.host.platform, function, x1)
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let function = self.it.function;
        let Ok(offset) = u16::try_from(offset) else { return };
        match data {
            [a, b] if offset.is_multiple_of(2) => {
                [*a, *b] = function.read_u16(offset).to_le_bytes();
            }
            _ => {
                for (at, byte) in (offset..).zip(data) {
                    *byte = function.read_u8(at);
                }
            }
        }
    }

    fn config_write(&self, offset: u64, data: &[u8]) {
        let function = self.it.function;
        let Ok(offset) = u16::try_from(offset) else { return };
        match *data {
            [a, b, c, d] if offset.is_multiple_of(4) => {
                function.write_u32(offset, u32::from_le_bytes([a, b, c, d]));
            }
            [a, b] if offset.is_multiple_of(2) => {
                function.write_u16(offset, u16::from_le_bytes([a, b]));
            }
            _ => {
                for (at, &byte) in (offset..).zip(data) {
                    function.write_u8(at, byte);
                }
            }
        }
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        let Ok(address) = usize::try_from(address) else { return };
        match data {
            [a, b, c, d, e, f, g, h] if address.is_multiple_of(8) => {
                // SAFETY: device memory, aligned; whatever answers there.
                let value = unsafe { Register::<u64>::at(address) }.read();
                [*a, *b, *c, *d, *e, *f, *g, *h] = value.to_le_bytes();
            }
            [a, b, c, d] if address.is_multiple_of(4) => {
                // SAFETY: as above.
                let value = unsafe { Register::<u32>::at(address) }.read();
                [*a, *b, *c, *d] = value.to_le_bytes();
            }
            [a, b] if address.is_multiple_of(2) => {
                // SAFETY: as above.
                [*a, *b] = unsafe { Register::<u16>::at(address) }.read().to_le_bytes();
            }
            _ => {
                for (at, byte) in (address..).zip(data) {
                    // SAFETY: as above.
                    *byte = unsafe { Register::<u8>::at(at) }.read();
                }
            }
        }
    }

    fn mmio_write(&self, address: u64, data: &[u8]) {
        let Ok(address) = usize::try_from(address) else { return };
        match *data {
            [a, b, c, d, e, f, g, h] if address.is_multiple_of(8) => {
                let value = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
                // SAFETY: device memory, aligned; no Rust object lies there.
                unsafe { Register::<u64>::at(address) }.write(value);
            }
            [a, b, c, d] if address.is_multiple_of(4) => {
                // SAFETY: as above.
                unsafe { Register::<u32>::at(address) }.write(u32::from_le_bytes([a, b, c, d]));
            }
            [a, b] if address.is_multiple_of(2) => {
                // SAFETY: as above.
                unsafe { Register::<u16>::at(address) }.write(u16::from_le_bytes([a, b]));
            }
            _ => {
                for (at, &byte) in (address..).zip(data) {
                    // SAFETY: as above.
                    unsafe { Register::<u8>::at(at) }.write(byte);
                }
            }
        }
    }

    fn raise(&self, vector: u16) {
        if self.device().is_none_or(|device| !device.raise(vector)) {
            println!("# the device did not take an event of vector {vector}");
        }
    }

    fn start(&self) -> bool {
        let started = self.device().and_then(|device| device.start());
        if started.is_none() {
            println!("# the device was not started");
        }
        started.unwrap_or(false)
    }

    fn reset_unseen(&self) {
        if self.device().is_none_or(|device| !device.reset()) {
            println!("# the device did not reset itself");
        }
    }

    fn reset_unseen_with_enable(&self) -> bool {
        self.config_write(SELF_TEST, &[0x40]);
        true
    }

    fn interrupts(&self) -> Vec<GuestMessage> {
        self.settle();
        let mut numbers = arrivals::take();
        if !self.host.exact {
            numbers.sort_unstable();
            numbers.dedup();
        }
        let message = |number| {
            let (address, data) = msi::message(number, arrivals::route(number));
            GuestMessage { address, data }
        };
        numbers.into_iter().map(message).collect()
    }

    // What a guest cannot do or see, as `can` says.

    fn reset_function(&self) {}

    fn reset_machine(&self) {}

    fn revoke(&self) {}

    fn allow(&self) {}

    fn fail(&self) {}

    fn recover(&self) {}

    fn remove(&self) {}

    fn table_entry(&self, _vector: u16) -> [u32; 4] {
        [0; 4]
    }

    fn foreign_messages(&self) -> u64 {
        0
    }

    fn is_mapped(&self, _address: u64) -> bool {
        false
    }

    fn counts(&self) -> Counts {
        Counts::default()
    }
}
