//! Our host behind a wrapper that makes one mistake.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pvmsi_protocol::{CallId, Features, Generation, GuestMessage};
use pvmsi_software::config::{DEVICE_CONTROL, MSIX_CONTROL, POWER_CONTROL as POWER};
use pvmsi_software::registers;

use super::exchange::Exchange;
use super::host_bug::HostBug as Bug;
use crate::host::ours::OurHost;
use crate::host::{Counts, HostFactory, HostOptions, HostUnderTest, Isolation, Policy, Ram};

/// Makes mutants of our host.
pub(super) struct MutantHostFactory(pub(super) Bug);

/// Where the tests put the BAR, and where the function has its table in it.
const BAR: u64 = 0xc000_0000;
const TABLE: u64 = BAR + registers::TABLE;
const PENDING: std::ops::Range<u64> = BAR + registers::PENDING..BAR + registers::PENDING + 0x100;
const COMMAND: u64 = 0x04;
const BAR_REGISTER: u64 = 0x10;
const ENABLE: u8 = 0x80;
/// Where a message to a local APIC has the upper bits of its destination id.
pub(super) const ID_31_8: u64 = 0xffff_ff00_0000_0000;
pub(super) const ID_14_8: u64 = 0xfe0;
const FUNCTION_MASK: u8 = 0x40;

pub(super) struct MutantHost {
    pub(super) inner: Box<dyn HostUnderTest>,
    pub(super) bug: Bug,
    pub(super) options: HostOptions,
    memory: Mutex<Memory>,
}

/// What a mutant remembers.
#[derive(Default)]
pub(super) struct Memory {
    /// Interrupts that our host has not sent.
    delivered: Vec<GuestMessage>,
    /// Vectors that were reported as pending once.
    pub(super) pending: BTreeSet<u16>,
    pub(super) released: Option<Generation>,
    calls: u32,
    /// MSI-X has been enabled once.
    enabled: bool,
    /// The function has reset itself once.
    pub(super) reset: bool,
    /// High byte of Message Control as the guest has written it.
    control: u8,
    written: BTreeMap<u64, Vec<u8>>,
    exits: u64,
    routes: u64,
    /// The page that was rung last, and an answer that is late.
    last_page: u32,
    late: Option<Exchange>,
}

/// The message of the tests with this number, on x86.
pub(super) fn message(number: u16) -> GuestMessage {
    GuestMessage { address: 0xfee0_0000, data: 48 + u32::from(number % 200) }
}

impl HostFactory for MutantHostFactory {
    fn create(&self, options: &HostOptions) -> Result<Box<dyn HostUnderTest>, String> {
        let mut inner = *options;
        match self.0 {
            Bug::DirectWithoutIsolation => inner.isolation = Isolation::Confined,
            Bug::UnknownIsolationTakenAsConfined if options.isolation == Isolation::Unknown => {
                inner.isolation = Isolation::Confined;
            }
            Bug::PolicyIgnored if options.policy == Policy::Trapped => {
                inner.policy = Policy::Direct
            }
            Bug::QuotaIgnored => inner.quota = None,
            Bug::UnreadableTableGiven => inner.readable = true,
            Bug::ExtendedDestinationIdsTakenUnoffered => {
                inner.extended_destination_ids = Some(true);
            }
            _ => {}
        }
        let inner = OurHost.create(&inner)?;
        let memory = Mutex::default();
        Ok(Box::new(MutantHost { inner, bug: self.0, options: *options, memory }))
    }
}

impl MutantHost {
    pub(super) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An interrupt that our host would not have sent.
    pub(super) fn deliver(&self, message: GuestMessage) {
        self.memory().delivered.push(message);
    }

    /// Counts calls.
    pub(super) fn count(&self) -> u32 {
        let mut memory = self.memory();
        memory.calls += 1;
        memory.calls
    }

    pub(super) fn entry_address(&self, vector: u16) -> u64 {
        TABLE + u64::from(vector) * 16
    }

    /// Whether an address is that of the first three words of an entry.
    fn is_message(&self, address: u64) -> bool {
        let end = self.entry_address(self.options.vectors);
        (TABLE..end).contains(&address) && (address - TABLE) % 16 < 12
    }

    fn is_vector_control(&self, address: u64) -> bool {
        let end = self.entry_address(self.options.vectors);
        (TABLE..end).contains(&address) && (address - TABLE) % 16 == 12
    }

    /// A write of the high byte of Message Control, with the bug.
    fn write_control(&self, byte: u8) {
        self.memory().control = byte;
        self.memory().enabled |= byte & ENABLE != 0;
        let passed = match self.bug {
            Bug::FunctionMaskIgnored => byte & !FUNCTION_MASK,
            Bug::ClearedEnableKeepsTheAssignment if self.assigned() > 0 => byte | ENABLE,
            _ => byte,
        };
        self.inner.config_write(MSIX_CONTROL, &[0, passed]);
        if self.bug == Bug::UnseenResetsAreTheGuests && self.memory().reset && self.assigned() == 0
        {
            self.inner.reset_unseen();
        }
    }

    /// Lets all vectors fire for a moment, and drops what comes.
    fn swallow_held_events(&self) {
        let vectors = || (0..self.options.vectors).map(|vector| self.entry_address(vector) + 12);
        let mut masks = vec![[0; 4]; usize::from(self.options.vectors)];
        for (address, mask) in vectors().zip(&mut masks) {
            self.inner.mmio_read(address, mask);
            self.inner.mmio_write(address, &[0; 4]);
        }
        self.inner.config_write(MSIX_CONTROL, &[0, ENABLE]);
        self.inner.interrupts();
        self.inner.config_write(MSIX_CONTROL, &[0, self.memory().control]);
        for (address, mask) in vectors().zip(&masks) {
            self.inner.mmio_write(address, mask);
        }
    }

    fn function_mask(&self) -> bool {
        self.memory().control & FUNCTION_MASK != 0
    }
}

impl HostUnderTest for MutantHost {
    fn ram(&self) -> &dyn Ram {
        self.inner.ram()
    }

    fn ring(&self, page: u32) {
        self.memory().last_page = page;
        if self.bug == Bug::AnswerAfterTheReturn {
            let ram = self.inner.ram();
            let request = Exchange::read(ram, page);
            self.inner.ring(page);
            self.memory().late = Some(Exchange::read(ram, page));
            return request.write(ram, page);
        }
        self.mutant_ring(page);
    }

    fn ring_watched(&self, page: u32, watcher: &mut dyn FnMut(&dyn Ram)) -> bool {
        match self.bug {
            Bug::RequestReadTwice => self.read_twice(page, watcher),
            Bug::HeaderBeforeBody => self.header_first(page, watcher),
            _ => return self.inner.ring_watched(page, watcher),
        }
        true
    }

    fn doorbell_write(&self, data: &[u8]) {
        let mut page = [0; 4];
        for (byte, value) in page.iter_mut().zip(data) {
            *byte = *value;
        }
        match self.bug {
            Bug::AnyWidthRings => self.inner.ring(u32::from_le_bytes(page)),
            _ => self.inner.doorbell_write(data),
        }
    }

    fn doorbell_read(&self, data: &mut [u8]) {
        self.inner.doorbell_read(data);
    }

    fn service_block(&self, leaf: u32) -> Option<[u32; 4]> {
        let found = self.inner.service_block(leaf);
        match (self.bug, leaf) {
            (Bug::UndefinedFeatureBits, 1) => found.map(|[version, ..]| [version, u32::MAX, 0, 0]),
            (Bug::ExtendedDestinationIdsTakenUnoffered, 1)
                if self.options.extended_destination_ids == Some(false) =>
            {
                let offered = Features::all() - Features::EXTENDED_DESTINATION_ID;
                found.map(|[version, features, ..]| [version, features & offered.bits(), 0, 0])
            }
            (Bug::ServiceShownWhenOff, 0) => Some([3, 0x4d2d_5650, 0x4953, 0]),
            _ => found,
        }
    }

    fn smccc(&self, function: u32, x1: u64) -> Option<[u64; 4]> {
        let answer = self.inner.smccc(function, x1);
        match self.bug {
            Bug::LeafBeyondTheLastAnswered if x1 > 3 && self.options.policy != Policy::Off => {
                answer.map(|_| [0; 4])
            }
            _ => answer,
        }
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        self.inner.config_read(offset, data);
        let byte = match self.bug {
            Bug::EnableReadsAsClear => 0,
            Bug::FunctionMaskIgnored | Bug::ClearedEnableKeepsTheAssignment => {
                self.memory().control & (ENABLE | FUNCTION_MASK)
            }
            _ => return,
        };
        if let (MSIX_CONTROL, Some(high)) = (offset, data.get_mut(1)) {
            *high = *high & 0x3f | byte;
        }
    }

    fn config_write(&self, offset: u64, data: &[u8]) {
        if self.bug == Bug::BufferWrittenLater {
            let page = self.memory().last_page;
            self.inner.ram().write((u64::from(page) << 12) + 64, &[0; 4]);
        }
        match (offset, data) {
            (MSIX_CONTROL, &[_, byte]) => return self.write_control(byte),
            (POWER, &[0, _]) if self.bug == Bug::TableLostInD3 => {
                self.inner.config_write(offset, data);
                return self.inner.reset_unseen();
            }
            _ => self.inner.config_write(offset, data),
        }
        if let (DEVICE_CONTROL, &[_, 0x80..=0xff]) = (offset, data) {
            self.after_reset();
        }
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.inner.mmio_read(address, data);
        match self.bug {
            Bug::ExitsWhileDirect => self.memory().exits += 1,
            Bug::OtherBitsOfVectorControlHidden
                if self.is_vector_control(address) && self.is_assigned_and_trapped() =>
            {
                data.iter_mut().zip([1, 0, 0, 0]).for_each(|(byte, bits)| *byte &= bits);
            }
            Bug::PendingBitsHidden if PENDING.contains(&address) => data.fill(0),
            Bug::PendingBitsThatExitReadAsZero
                if PENDING.contains(&address) && !self.options.pending_mappable =>
            {
                data.fill(0);
            }
            Bug::AddressWritesHonoured if self.is_message(address) => {
                if self.is_assigned_and_trapped()
                    && let Some(written) = self.memory().written.get(&address)
                    && written.len() == data.len()
                {
                    data.copy_from_slice(written);
                }
            }
            _ => {}
        }
    }

    fn mmio_write(&self, address: u64, data: &[u8]) {
        match self.bug {
            Bug::ExitsWhileDirect => self.memory().exits += 1,
            Bug::MaskBitIgnored if self.is_vector_control(address) && data == [1, 0, 0, 0] => {
                return;
            }
            Bug::OtherBitsOfVectorControlDropped
                if self.is_vector_control(address) && self.is_assigned_and_trapped() =>
            {
                let masked = data.first().is_some_and(|byte| byte & 1 != 0);
                return self.inner.mmio_write(address, &u32::from(masked).to_le_bytes());
            }
            Bug::MessagesWrittenBackIgnored
                if data.len() == 4
                    && self.is_message(address)
                    && self.is_assigned_and_trapped() =>
            {
                return;
            }
            Bug::AddressWritesHonoured => {
                self.memory().written.insert(address, data.to_vec());
            }
            Bug::UnalignedStoreReachesTheNextEntry if !address.is_multiple_of(4) => {
                let next = (address - TABLE) / 16 + 1;
                self.inner.mmio_write(TABLE + next * 16 + 12, &[1, 0, 0, 0]);
            }
            _ => {}
        }
        self.inner.mmio_write(address, data);
    }

    fn raise(&self, vector: u16) {
        let fires = match self.bug {
            Bug::FunctionMaskDropsEvents if self.function_mask() => return,
            Bug::MaskedVectorFires => {
                let mut control = [0; 4];
                self.inner.mmio_read(self.entry_address(vector) + 12, &mut control);
                vector < self.assigned() && control == [1, 0, 0, 0]
            }
            Bug::VectorsBeyondTheGrantFire => (1..=vector).contains(&self.assigned()),
            _ => false,
        };
        if fires {
            self.deliver(message(vector));
        }
        self.inner.raise(vector);
    }

    fn start(&self) -> bool {
        let masked = |vector| {
            let mut control = [0; 4];
            self.inner.mmio_read(self.entry_address(vector) + 12, &mut control);
            control != [0; 4]
        };
        let found = self.inner.start();
        match self.bug {
            Bug::EnabledWhenTheFirstVectorIsUnmasked => {
                found && !(0..self.options.vectors).all(masked)
            }
            Bug::FunctionStaysEnabled => found || self.memory().enabled,
            _ => found,
        }
    }

    fn reset_unseen(&self) {
        self.memory().reset = true;
        self.inner.reset_unseen();
    }

    fn reset_unseen_with_enable(&self) -> bool {
        self.memory().reset = true;
        self.inner.reset_unseen_with_enable()
    }

    fn reset_function(&self) {
        self.inner.reset_function();
        self.after_reset();
    }

    fn reset_machine(&self) {
        if self.bug == Bug::MachineResetKeepsTheAssignment {
            return self.inner.config_write(COMMAND, &[0, 0]);
        }
        self.inner.reset_machine();
    }

    fn revoke(&self) {
        self.inner.revoke();
        self.after_switch();
    }

    fn allow(&self) {
        self.inner.allow();
        self.after_switch();
    }

    fn fail(&self) {
        if self.bug != Bug::FailureIgnored {
            self.inner.fail();
        }
    }

    fn recover(&self) {
        if self.bug != Bug::RecoveryForgotten {
            self.inner.recover();
        }
    }

    fn remove(&self) {
        if self.bug != Bug::RemovedFunctionAnswers {
            self.inner.remove();
        }
    }

    fn move_elsewhere(&mut self) -> bool {
        if self.bug == Bug::MoveLosesEvents {
            self.swallow_held_events();
        }
        let moved = self.inner.move_elsewhere();
        match self.bug {
            Bug::MoveLosesTheAssignment => self.inner.reset_machine(),
            Bug::MoveGivesTheTable => drop(self.call(CallId::Restore, vec![])),
            _ => {}
        }
        moved
    }

    fn refuse_step(&self, step: u32) -> bool {
        self.inner.refuse_step(step)
    }

    fn refusal_is_due(&self) -> bool {
        self.inner.refusal_is_due()
    }

    fn interrupts(&self) -> Vec<GuestMessage> {
        let mut seen = self.inner.interrupts();
        let mut memory = self.memory();
        if self.bug == Bug::GuestsThatNeverCallAreForgotten && memory.last_page == 0 {
            seen.clear();
        }
        let cut = match self.bug {
            Bug::ExtendedDestinationIdsCut => ID_31_8 | ID_14_8,
            Bug::ExtendedDestinationIdsOfBits11To5Cut => ID_14_8,
            _ => 0,
        };
        seen.iter_mut().for_each(|message| message.address &= !cut);
        seen.append(&mut memory.delivered);
        if let Some(late) = memory.late.take() {
            late.write(self.inner.ram(), memory.last_page);
        }
        seen
    }

    fn table_entry(&self, vector: u16) -> [u32; 4] {
        self.inner.table_entry(vector)
    }

    fn foreign_messages(&self) -> u64 {
        self.inner.foreign_messages()
    }

    fn is_mapped(&self, address: u64) -> bool {
        let mapped = self.inner.is_mapped(address);
        let mut word = [0; 4];
        let at = match self.bug {
            Bug::MappingKeptWhileDecodingIsOff => COMMAND,
            Bug::MovedBarKeepsItsOldMapping => BAR_REGISTER,
            _ => return mapped,
        };
        self.inner.config_read(at, &mut word);
        let [low, .., high] = word;
        match self.bug {
            Bug::MappingKeptWhileDecodingIsOff => mapped || low & 2 == 0,
            _ => mapped || high == 0xd0 && address < BAR + registers::BAR_BYTES,
        }
    }

    fn counts(&self) -> Counts {
        let mut counts = self.inner.counts();
        let mut memory = self.memory();
        counts.exits += memory.exits;
        if self.bug == Bug::RoutesNotGivenBack {
            memory.routes = memory.routes.max(counts.routes);
            counts.routes = memory.routes;
        }
        counts
    }
}

impl MutantHost {
    fn after_reset(&self) {
        match self.bug {
            Bug::ResetEndsTheAssignment => {
                self.call(CallId::Release, vec![]);
            }
            Bug::ResetLosesTheTable => self.inner.reset_unseen(),
            _ => {}
        }
    }

    fn after_switch(&self) {
        match self.bug {
            Bug::EventsLostAtASwitch => drop(self.inner.interrupts()),
            Bug::EventsDoubledAtASwitch => {
                let seen = self.inner.interrupts();
                self.memory().delivered.extend(seen.iter().chain(&seen));
            }
            _ => {}
        }
    }
}
