//! The guest, the device and the operator of the tests: steps on a machine under test.

use alloc::boxed::Box;
use alloc::vec::Vec;

use pvmsi_protocol::{FunctionId, GuestMessage};

use super::{Ability, Counts, HostFactory, HostOptions, HostUnderTest, Platform};
use crate::suite::{Stop, Verdict, equal, holds, there};

/// MSI-X Enable in Message Control.
pub(crate) const ENABLE: u16 = 0x8000;
/// Function Mask in Message Control.
pub(crate) const FUNCTION_MASK: u16 = 0x4000;
/// An entry of the table after power-on.
pub(crate) const POWER_ON: [u32; 4] = [0, 0, 0, 1];

const COMMAND: u64 = 4;
const COMMAND_MEMORY: u16 = 2;
const COMMAND_BUS_MASTER: u16 = 4;
const BARS: u64 = 0x10;
const FIRST_CAPABILITY: u64 = 0x34;
const CAPABILITIES_MAX: usize = 48;

/// The first vector of messages to local APICs: those below are exceptions, and what a guest needs itself.
const FIRST_VECTOR: u32 = 48;
/// Vectors that are used on each processor.
const VECTORS: u16 = 200;
const APIC_MESSAGES: u64 = 0xfee0_0000;

/// Where a function keeps what the tests need.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places {
    /// The MSI-X capability in configuration space.
    pub(crate) msix: u64,
    /// Power management control and status.
    pub(crate) power: u64,
    /// PCI Express device control.
    pub(crate) device_control: u64,
    /// The register of the BAR that holds the table.
    pub(crate) bar_register: u64,
    /// The table, bytes from the start of the BAR.
    pub(crate) table: u64,
    /// The pending bit array, likewise.
    pub(crate) pending: u64,
}

/// A machine under test, with memory decoding on.
pub(crate) struct Machine {
    pub(crate) host: Box<dyn HostUnderTest>,
    pub(crate) function: FunctionId,
    pub(crate) vectors: u16,
    pub(crate) platform: Platform,
    pub(crate) bar: u64,
    pub(crate) at: Places,
    /// Whether the pages of the pending bits come with those of the table.
    shows_pending: bool,
}

/// A message of the guest: each number has its own.
fn message(platform: Platform, number: u16) -> GuestMessage {
    match platform {
        Platform::X86 => GuestMessage {
            address: APIC_MESSAGES | u64::from(number / VECTORS) << 12,
            data: FIRST_VECTOR + u32::from(number % VECTORS),
        },
        Platform::Arm64 { its_doorbell } => {
            GuestMessage { address: its_doorbell, data: number.into() }
        }
    }
}

/// The number of a message; `None`: it is none of those.
fn number(platform: Platform, seen: GuestMessage) -> Option<u16> {
    let number = match platform {
        Platform::X86 => {
            let processor = u16::try_from(seen.address.checked_sub(APIC_MESSAGES)? >> 12).ok()?;
            let vector = u16::try_from(seen.data.checked_sub(FIRST_VECTOR)?).ok()?;
            processor.checked_mul(VECTORS)?.checked_add(vector)?
        }
        Platform::Arm64 { .. } => u16::try_from(seen.data).ok()?,
    };
    (message(platform, number) == seen).then_some(number)
}

impl Machine {
    /// A machine with the defaults.
    pub(crate) fn new(factory: &dyn HostFactory) -> Verdict<Self> {
        Self::with(factory, HostOptions::default())
    }

    /// A machine with the defaults and MSI-X enabled.
    pub(crate) fn enabled(factory: &dyn HostFactory) -> Verdict<Self> {
        let machine = Self::new(factory)?;
        machine.control(ENABLE);
        Ok(machine)
    }

    /// A machine as `options` say, with MSI-X enabled.
    pub(crate) fn enabled_with(factory: &dyn HostFactory, options: HostOptions) -> Verdict<Self> {
        let machine = Self::with(factory, options)?;
        machine.control(ENABLE);
        Ok(machine)
    }

    pub(crate) fn with(factory: &dyn HostFactory, options: HostOptions) -> Verdict<Self> {
        let platform = options.platform.or(factory.platforms().first().copied());
        let platform = there("a platform", platform)?;
        let options = HostOptions { platform: Some(platform), ..options };
        let host = factory.create(&options).map_err(Stop::Skipped)?;
        let function = host.function().unwrap_or(options.function);
        let (vectors, bar, at) = (options.vectors, host.bar(), places(host.as_ref())?);
        let shows_pending = options.pending_mappable;
        let machine = Self { host, function, vectors, platform, bar, at, shows_pending };
        equal("table size", machine.word(at.msix + 2) & 0x7ff, vectors - 1)?;
        machine.power_on();
        Ok(machine)
    }

    /// Whether the host under test can do or show something.
    pub(crate) fn can(&self, ability: Ability) -> bool {
        self.host.can(ability)
    }

    /// Skips the test where the host under test cannot do or show something.
    pub(crate) fn needs(&self, ability: Ability) -> Verdict {
        if self.can(ability) { Ok(()) } else { Err(Stop::Skipped(ability.lack().into())) }
    }

    /// Programs the BAR and switches memory decoding on, as firmware does.
    pub(crate) fn power_on(&self) {
        self.place_bar(self.bar);
        self.decoding(true);
    }

    pub(crate) fn place_bar(&self, address: u64) {
        let [a0, a1, a2, a3, ..] = address.to_le_bytes();
        self.host.config_write(self.at.bar_register, &[a0, a1, a2, a3]);
    }

    pub(crate) fn decoding(&self, on: bool) {
        let memory = if on { COMMAND_MEMORY } else { 0 };
        self.host.config_write(COMMAND, &(COMMAND_BUS_MASTER | memory).to_le_bytes());
    }

    pub(crate) fn decodes(&self) -> bool {
        self.word(COMMAND) & COMMAND_MEMORY != 0
    }

    pub(crate) fn power_state(&self, state: u16) {
        self.host.config_write(self.at.power, &state.to_le_bytes());
    }

    pub(crate) fn function_level_reset(&self) {
        let control = self.word(self.at.device_control) | 0x8000;
        self.host.config_write(self.at.device_control, &control.to_le_bytes());
    }

    /// Writes MSI-X Enable and Function Mask.
    pub(crate) fn control(&self, bits: u16) {
        self.host.config_write(self.at.msix + 2, &bits.to_le_bytes());
    }

    /// MSI-X Enable and Function Mask as they read back.
    pub(crate) fn read_control(&self) -> u16 {
        self.word(self.at.msix + 2) & (ENABLE | FUNCTION_MASK)
    }

    /// A 16-bit word of configuration space.
    pub(crate) fn word(&self, offset: u64) -> u16 {
        word(self.host.as_ref(), offset)
    }

    pub(crate) fn load(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.host.mmio_read(self.bar + offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn store(&self, offset: u64, value: u32) {
        self.host.mmio_write(self.bar + offset, &value.to_le_bytes());
    }

    /// The offset of a word of an entry.
    pub(crate) fn entry_at(&self, vector: u16, word: u64) -> u64 {
        self.at.table + u64::from(vector) * 16 + word * 4
    }

    /// An entry as the guest reads it.
    pub(crate) fn entry(&self, vector: u16) -> [u32; 4] {
        [0, 1, 2, 3].map(|word| self.load(self.entry_at(vector, word)))
    }

    pub(crate) fn entries(&self) -> Vec<[u32; 4]> {
        (0..self.vectors).map(|vector| self.entry(vector)).collect()
    }

    pub(crate) fn mask(&self, vector: u16) {
        self.store(self.entry_at(vector, 3), 1);
    }

    pub(crate) fn unmask(&self, vector: u16) {
        self.store(self.entry_at(vector, 3), 0);
    }

    pub(crate) fn masked(&self, vector: u16) -> bool {
        self.load(self.entry_at(vector, 3)) & 1 != 0
    }

    /// The pending bit as the guest reads it.
    pub(crate) fn pending(&self, vector: u16) -> bool {
        let word = self.load(self.at.pending + u64::from(vector / 32) * 4);
        word & (1 << (vector % 32)) != 0
    }

    /// Writes a message into an entry, as a guest does that uses the standard table.
    pub(crate) fn write_message(&self, vector: u16, message: GuestMessage) {
        for (word, value) in (0..).zip(message_words(message)) {
            self.store(self.entry_at(vector, word), value);
        }
    }

    /// Programs an entry in the standard way: masked, written, unmasked.
    pub(crate) fn program(&self, vector: u16, message: GuestMessage) {
        self.mask(vector);
        self.write_message(vector, message);
        self.unmask(vector);
    }

    pub(crate) fn message(&self, number: u16) -> GuestMessage {
        message(self.platform, number)
    }

    pub(crate) fn raise(&self, vector: u16) {
        self.host.raise(vector);
    }

    /// The interrupts since the last look, by number of [`message`](Self::message), sorted.
    pub(crate) fn interrupts(&self) -> Verdict<Vec<u16>> {
        let mut numbers = Vec::new();
        for seen in self.host.interrupts() {
            let number = number(self.platform, seen);
            numbers.push(there("only messages that the guest has given", number)?);
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Raises an event; exactly the interrupt with that number must arrive.
    pub(crate) fn arrives(&self, vector: u16, number: u16) -> Verdict {
        self.raise(vector);
        let what = format!("interrupts after an event of vector {vector}");
        equal(&what, self.interrupts()?, vec![number])
    }

    /// Raises an event; no interrupt must arrive.
    pub(crate) fn stays_away(&self, why: &str, vector: u16) -> Verdict {
        self.raise(vector);
        self.quiet(&format!("{why}: interrupts after an event of vector {vector}"))
    }

    /// No interrupt must have arrived.
    pub(crate) fn quiet(&self, what: &str) -> Verdict {
        equal(what, self.interrupts()?, vec![])
    }

    /// Exactly these must have arrived.
    pub(crate) fn arrived(&self, what: &str, numbers: &[u16]) -> Verdict {
        equal(what, self.interrupts()?, numbers.to_vec())
    }

    /// Whether the guest has the pages of the table, and those of the pending bit array where they can be mapped; `None` where that cannot be seen.
    pub(crate) fn is_direct(&self) -> Option<bool> {
        let is_mapped = |offset| self.host.is_mapped(self.bar + offset);
        let pending = || !self.shows_pending || is_mapped(self.at.pending);
        self.can(Ability::Mappings).then(|| is_mapped(self.at.table) && pending())
    }

    /// The guest must have these pages, or must not, as far as that can be seen.
    pub(crate) fn mapped(&self, what: &str, expected: bool) -> Verdict {
        self.is_direct().map_or(Ok(()), |direct| equal(what, direct, expected))
    }

    /// The guest must have the page at an address, or must not, as far as that can be seen.
    pub(crate) fn mapped_at(&self, what: &str, address: u64, expected: bool) -> Verdict {
        if self.can(Ability::Mappings) {
            equal(what, self.host.is_mapped(address), expected)
        } else {
            Ok(())
        }
    }

    /// So many routes may be taken at most, as far as that can be seen.
    pub(crate) fn routes_up_to(&self, bound: u64) -> Verdict {
        let routes = self.routes().unwrap_or(0);
        holds(&format!("{routes} routes, {bound} at most"), routes <= bound)
    }

    /// The routes that are taken; `None` where that cannot be seen.
    pub(crate) fn routes(&self) -> Option<u64> {
        self.can(Ability::Counts).then(|| self.host.counts().routes)
    }

    /// What `act` costs; `routes` are those taken after it.
    pub(crate) fn cost(&self, act: impl FnOnce() -> Verdict) -> Verdict<Counts> {
        let before = self.host.counts();
        act()?;
        let after = self.host.counts();
        Ok(Counts {
            exits: after.exits - before.exits,
            routing_updates: after.routing_updates - before.routing_updates,
            interrupt_setups: after.interrupt_setups - before.interrupt_setups,
            routes: after.routes,
        })
    }
}

/// The three words of an entry that hold a message.
pub(crate) fn message_words(message: GuestMessage) -> [u32; 3] {
    let [a0, a1, a2, a3, a4, a5, a6, a7] = message.address.to_le_bytes();
    [u32::from_le_bytes([a0, a1, a2, a3]), u32::from_le_bytes([a4, a5, a6, a7]), message.data]
}

fn word(host: &dyn HostUnderTest, offset: u64) -> u16 {
    let mut data = [0; 2];
    host.config_read(offset, &mut data);
    u16::from_le_bytes(data)
}

fn double_word(host: &dyn HostUnderTest, offset: u64) -> u32 {
    u32::from(word(host, offset + 2)) << 16 | u32::from(word(host, offset))
}

fn places(host: &dyn HostUnderTest) -> Verdict<Places> {
    let msix = there("a capability for MSI-X", capability(host, 0x11))?;
    let power = there("a capability for power management", capability(host, 0x01))?;
    let express = there("a capability for PCI Express", capability(host, 0x10))?;
    let (table, pending) = (double_word(host, msix + 4), double_word(host, msix + 8));
    equal("BAR of the pending bits, which must be the table's", pending & 7, table & 7)?;
    Ok(Places {
        msix,
        power: power + 4,
        device_control: express + 8,
        bar_register: BARS + u64::from(table & 7) * 4,
        table: u64::from(table & !7),
        pending: u64::from(pending & !7),
    })
}

fn capability(host: &dyn HostUnderTest, id: u16) -> Option<u64> {
    let mut next = u64::from(word(host, FIRST_CAPABILITY) & 0xfc);
    for _ in 0..CAPABILITIES_MAX {
        if next < 0x40 {
            return None;
        }
        let header = word(host, next);
        if header & 0xff == id {
            return Some(next);
        }
        next = u64::from(header >> 8 & 0xfc);
    }
    None
}
