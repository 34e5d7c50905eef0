//! A software function, and what a driver knows of it.

use core::sync::atomic::{AtomicPtr, AtomicU16, AtomicU32, AtomicUsize, Ordering, fence};

use pvmsi_guest::{
    CallError, FunctionId, GuestMessage, Kind, VectorIndex, VectorSetup, VectorUpdate,
};
use pvmsi_guest_client::ServiceClient;
use pvmsi_guest_runtime::interrupts::FIRST_DEVICE;
use pvmsi_guest_runtime::mmio::Register;
use pvmsi_guest_runtime::msi::{self, Route};
use pvmsi_guest_runtime::{memory, pci, software};
use pvmsi_software::registers::{
    CONTROL, DONE, DOORBELL, EVENTS, FIRST, PACE, RESET, ROTATION, SENDING, entry_word, of_vector,
    pending_word,
};

use crate::ledger::{self, SLOTS, Slot};
use crate::sync::{PATIENCE, wait, wake_others};

const COMMAND: u16 = 0x04;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_MEMORY: u16 = 1 << 1;
const BAR0: u16 = 0x10;
const POWER_MANAGEMENT: u8 = 0x01;
const PCI_EXPRESS: u8 = 0x10;
const FUNCTION_LEVEL_RESET: u16 = 1 << 15;
/// MSI-X Enable.
pub(crate) const ENABLE: u16 = 1 << 15;
/// Function Mask.
pub(crate) const FUNCTION_MASK: u16 = 1 << 14;
/// Between the two places of BAR 0.
const MOVE: usize = 0x100_0000;
const D3_HOT: u16 = 3;

/// The most functions of a run.
const SUBJECTS_MAX: usize = 8;
static SUBJECTS: [AtomicPtr<Subject>; SUBJECTS_MAX] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; SUBJECTS_MAX];

/// All functions of the run.
pub(crate) fn all() -> impl Iterator<Item = &'static Subject> {
    SUBJECTS.iter().filter_map(|place| {
        // SAFETY: `prepare` stored a reference that lives for ever.
        unsafe { place.load(Ordering::Acquire).as_ref() }
    })
}

/// A function under test.
#[derive(Debug)]
pub(crate) struct Subject {
    function: pci::Function,
    /// Entries of its table.
    pub(crate) vectors: u16,
    /// Vectors that the running round is about.
    pub(crate) active: AtomicU16,
    /// Vectors that the last `configure` has assigned.
    assigned: AtomicU16,
    first_slot: usize,
    vcpus: usize,
    /// Where BAR 0 is.
    base: AtomicUsize,
    control: u16,
    power: u16,
    device_control: u16,
    /// The lock: the ticket that is handed out next, and the one that has it.
    next: AtomicU32,
    serving: AtomicU32,
}

/// Nobody else masks, resets or moves the function meanwhile, as a kernel's locks would have it.
pub(crate) struct Locked<'a>(&'a Subject);

impl Subject {
    /// Takes a function over; false when there are no interrupt numbers left for it.
    pub(crate) fn prepare(
        function: pci::Function,
        number: usize,
        vcpus: usize,
    ) -> Result<bool, &'static str> {
        let missing = "a capability is missing";
        let msix = function.capability(pci::CAPABILITY_MSIX).ok_or(missing)?;
        let power = function.capability(POWER_MANAGEMENT).ok_or(missing)?;
        let express = function.capability(PCI_EXPRESS).ok_or(missing)?;
        let control = msix.wrapping_add(2);
        let vectors = (function.read_u16(control) & 0x7ff).wrapping_add(1);
        let first_slot =
            all().map(|subject| usize::from(subject.vectors)).fold(0, usize::saturating_add);
        let Some(place) = SUBJECTS.get(number) else { return Ok(false) };
        if first_slot.saturating_add(vectors.into()) > SLOTS {
            return Ok(false);
        }
        function.enable();
        let subject = Self {
            function,
            vectors,
            active: AtomicU16::new(0),
            assigned: AtomicU16::new(0),
            first_slot,
            vcpus,
            base: AtomicUsize::new(function.bar(0).ok_or("BAR 0 is out of reach")?),
            control,
            power: power.wrapping_add(4),
            device_control: express.wrapping_add(8),
            next: AtomicU32::new(0),
            serving: AtomicU32::new(0),
        };
        // On arm64 an event id stands for vector and vCPU.
        let ids = vectors.saturating_mul(u16::try_from(vcpus).unwrap_or(1));
        msi::prepare(function, ids, |id| subject.route_of(id))?;
        let subject = memory::place(subject).ok_or("no RAM left; give the guest more")?;
        subject.write_control(ENABLE);
        place.store(core::ptr::from_ref(subject).cast_mut(), Ordering::Release);
        Ok(true)
    }

    pub(crate) fn id(&self) -> FunctionId {
        self.function.id()
    }

    /// The accounts of its vectors, in order.
    pub(crate) fn slots(&self) -> impl Iterator<Item = (u16, &'static Slot)> {
        (0..self.vectors).zip(ledger::slots(self.first_slot))
    }

    pub(crate) fn slot(&self, vector: u16) -> Option<&'static Slot> {
        self.slots().nth(vector.into()).map(|(_, slot)| slot)
    }

    /// Interrupts of all vectors, modulo 2^32.
    pub(crate) fn taken(&self) -> u32 {
        self.slots().fold(0, |sum, (_, slot)| sum.wrapping_add(slot.taken()))
    }

    /// Waits for the lock, in turn, with interrupts on: who holds it may wait for this vCPU to take an interrupt.
    pub(crate) fn lock(&self) -> Locked<'_> {
        let ticket = self.next.fetch_add(1, Ordering::AcqRel);
        while !wait(PATIENCE, || self.serving.load(Ordering::Acquire) == ticket) {}
        Locked(self)
    }

    /// New messages for some vectors that are assigned: beside anything that others do.
    pub(crate) fn update(
        &self,
        client: &mut ServiceClient,
        first: u16,
        count: u16,
        target: u8,
    ) -> Result<(), CallError> {
        let end = first.saturating_add(count).min(self.assigned.load(Ordering::Acquire));
        for (_, slot) in self.slots().take(end.into()).skip(first.into()) {
            slot.target.store(target, Ordering::Release);
        }
        let updates = (first..end).map(|vector| VectorUpdate {
            vector: VectorIndex(vector),
            message: self.message(vector, target),
        });
        client.update(self.id(), updates).map(drop)
    }

    pub(crate) fn assigned(&self) -> u16 {
        self.assigned.load(Ordering::Acquire)
    }

    fn message(&self, vector: u16, target: u8) -> GuestMessage {
        let id = vector.wrapping_add(self.vectors.wrapping_mul(target.into()));
        let (address, data) = msi::message(id, self.route_of(id));
        GuestMessage { address, data }
    }

    fn route_of(&self, id: u16) -> Route {
        let vector = usize::from(id.checked_rem(self.vectors).unwrap_or(0));
        let target = usize::from(id.checked_div(self.vectors).unwrap_or(0));
        let slot = u8::try_from(self.first_slot.saturating_add(vector)).unwrap_or(0);
        Route {
            vcpu: target.min(self.vcpus.saturating_sub(1)),
            interrupt: FIRST_DEVICE.saturating_add(slot),
        }
    }

    fn write_control(&self, value: u16) {
        self.function.write_u16(self.control, value);
    }

    fn register(&self, offset: u64) -> Register<u32> {
        let base = self.base.load(Ordering::Acquire);
        // SAFETY: the offsets are those of the data sheet, inside the BAR and aligned.
        unsafe { Register::at(software::address(base, offset)) }
    }
}

impl Locked<'_> {
    /// Where a word of the BAR is now.
    pub(crate) fn address(&self, offset: u64) -> usize {
        software::address(self.0.base.load(Ordering::Acquire), offset)
    }

    /// One of the device's counters of a vector.
    pub(crate) fn counter(&self, kind: u64, vector: u16) -> u32 {
        self.0.register(of_vector(kind, vector)).read()
    }

    /// The words of a table entry.
    pub(crate) fn entry(&self, vector: u16) -> [u32; 4] {
        [0, 1, 2, 3].map(|word| self.0.register(entry_word(vector, word)).read())
    }

    /// Asks for events of the vectors below `length`, in turn.
    pub(crate) fn ask(&self, length: u16, events: u32, pace: u32) {
        let total = self.0.register(DOORBELL).read().wrapping_add(events);
        self.0.register(FIRST).write(0);
        self.0.register(ROTATION).write(length.into());
        self.0.register(PACE).write(pace);
        self.0.register(DOORBELL).write(total);
    }

    /// Whether the device has raised all events that it was asked for, or has forgotten them in a reset.
    pub(crate) fn is_done(&self) -> bool {
        self.0.register(DONE).read() == self.0.register(DOORBELL).read()
    }

    /// Whether no event waits in the function.
    pub(crate) fn is_empty(&self) -> bool {
        (0..self.0.vectors)
            .step_by(32)
            .all(|vector| self.0.register(pending_word(vector)).read() == 0)
    }

    /// `configure` of so many vectors with messages to anywhere, masked as they are.
    pub(crate) fn configure(
        &self,
        client: &mut ServiceClient,
        count: u16,
        mut target: impl FnMut() -> u8,
    ) -> Result<(), CallError> {
        let active = self.0.active.load(Ordering::Acquire);
        for (vector, slot) in self.0.slots() {
            slot.target.store(target(), Ordering::Release);
            if vector >= active {
                slot.masked.store(true, Ordering::Release);
                slot.held.store(false, Ordering::Release);
            }
        }
        let setups = (0..count).map(|vector| {
            let slot = self.0.slot(vector);
            let target = slot.map_or(0, |slot| slot.target.load(Ordering::Acquire));
            VectorSetup {
                message: Some(self.0.message(vector, target)),
                masked: slot.is_none_or(|slot| slot.masked.load(Ordering::Acquire)),
            }
        });
        let note = |VectorIndex(vector), answer: pvmsi_guest::VectorAnswer| {
            if answer.pending
                && let Some(slot) = self.0.slot(vector)
            {
                slot.held.store(true, Ordering::Release);
            }
        };
        let grant = client.configure(self.0.id(), Kind::MsiX, count, setups, note)?;
        self.0.assigned.store(grant.granted, Ordering::Release);
        if grant.granted == count { Ok(()) } else { Err(CallError::NoResources) }
    }

    /// Sets the mask bit; on return the device starts no message.
    pub(crate) fn mask(&self, vector: u16) -> Result<(), &'static str> {
        let control = self.vector_control(vector);
        control.write(1);
        control.read();
        // The device looks at the mask bit after it has written SENDING, this the other way round.
        fence(Ordering::SeqCst);
        let sending = self.0.register(of_vector(SENDING, vector));
        if wait(PATIENCE, || sending.read() == 0) {
            Ok(())
        } else {
            Err("the device sends for ever")
        }
    }

    /// Clears the mask bit, and delivers what the host has handed over.
    pub(crate) fn unmask(&self, vector: u16) {
        self.vector_control(vector).write(0);
        if let Some(slot) = self.0.slot(vector)
            && slot.held.swap(false, Ordering::AcqRel)
        {
            let target = slot.target.load(Ordering::Acquire);
            let id = vector.wrapping_add(self.0.vectors.wrapping_mul(target.into()));
            msi::deliver(self.0.function, id, self.0.route_of(id));
        }
    }

    /// Memory decoding off, and on again.
    pub(crate) fn toggle_decoding(&self, meanwhile: impl FnOnce()) {
        self.0.function.write_u16(COMMAND, COMMAND_BUS_MASTER);
        meanwhile();
        self.0.function.write_u16(COMMAND, COMMAND_BUS_MASTER | COMMAND_MEMORY);
    }

    /// D3hot, and back to D0.
    pub(crate) fn toggle_power(&self, meanwhile: impl FnOnce()) {
        self.0.function.write_u16(self.0.power, D3_HOT);
        meanwhile();
        self.0.function.write_u16(self.0.power, 0);
    }

    /// BAR 0 goes to its other place, with decoding on.
    pub(crate) fn move_bar(&self) {
        let place = self.address(0) ^ MOVE;
        self.0.function.write_u32(BAR0, u32::try_from(place).unwrap_or(0));
        self.0.base.store(place, Ordering::Release);
    }

    /// Function Mask, and off again.
    pub(crate) fn toggle_function_mask(&self, meanwhile: impl FnOnce()) {
        self.0.write_control(ENABLE | FUNCTION_MASK);
        meanwhile();
        self.0.write_control(ENABLE);
    }

    /// Clears MSI-X Enable, which releases, and sets it again.
    pub(crate) fn toggle_enable(&self) {
        self.0.write_control(0);
        self.forget_held();
        self.0.write_control(ENABLE);
    }

    /// Releases by a call.
    pub(crate) fn release(&self, client: &mut ServiceClient) -> Result<(), CallError> {
        client.release(self.0.id())?;
        self.forget_held();
        Ok(())
    }

    /// Function level reset, which the host sees and mends.
    pub(crate) fn reset(&self) {
        self.0.function.write_u16(self.0.device_control, FUNCTION_LEVEL_RESET);
    }

    /// A reset that the host does not see, mended by `restore`.
    pub(crate) fn reset_unseen(&self, client: &mut ServiceClient) -> Result<(), &'static str> {
        let control = self.0.register(CONTROL);
        control.write(RESET);
        if !wait(PATIENCE, || control.read() == 0) {
            return Err("the device does not reset");
        }
        client.restore(self.0.id()).map_err(|_| "restore failed")?;
        for (vector, slot) in self.0.slots().take(self.0.assigned().into()) {
            let masked = slot.masked.load(Ordering::Acquire);
            self.vector_control(vector).write(masked.into());
        }
        Ok(())
    }

    /// Events of the round that have come so far may have been dropped.
    pub(crate) fn excuse(&self) {
        for (vector, slot) in self.0.slots().take(self.0.active.load(Ordering::Acquire).into()) {
            if self.counter(EVENTS, vector) != slot.events_before() {
                slot.excused.store(true, Ordering::Release);
            }
        }
    }

    fn forget_held(&self) {
        for (_, slot) in self.0.slots() {
            slot.held.store(false, Ordering::Release);
        }
    }

    fn vector_control(&self, vector: u16) -> Register<u32> {
        self.0.register(entry_word(vector, 3))
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let served = self.0.serving.fetch_add(1, Ordering::AcqRel).wrapping_add(1);
        if self.0.next.load(Ordering::Acquire) != served {
            wake_others();
        }
    }
}
