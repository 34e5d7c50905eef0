//! Our guest with one mistake: in what a driver asks of it, or in what it does to its machine.

use std::cell::Cell;
use std::ptr::NonNull;
use std::rc::Rc;

use pvmsi_protocol::{
    CallId, ConfigureAnswer, Features, FunctionId, Generation, GuestMessage, Header, Limits,
    NegotiateAnswer, ReleaseAnswer, Sequence, Status, Version,
};
use vm_memory::{Bytes, VolatileSlice};

use super::exchange::{Exchange, body};
use super::guest_bug::GuestBug as Bug;
use crate::guest::{Doorbell, GuestFactory, GuestMachine, GuestUnderTest, RAM_BYTES, ours};
use crate::host::Ram;

/// Makes mutants of our guest.
pub(super) struct MutantGuestFactory(pub(super) Bug);

/// Entries of a table that a mutant remembers: more than any test looks at.
const ENTRIES: usize = 64;

/// The machine, as a guest with a bug uses it.
struct MutantMachine<'m> {
    machine: &'m dyn GuestMachine,
    bug: Bug,
    /// The status of the last `configure`.
    configured: Cell<Status>,
}

struct MutantGuest<'m> {
    guest: Box<dyn GuestUnderTest + 'm>,
    machine: Rc<MutantMachine<'m>>,
    messages: Vec<Option<GuestMessage>>,
    /// The table before a reset.
    entries: Vec<u32>,
}

impl GuestFactory for MutantGuestFactory {
    fn create<'m>(
        &self,
        machine: &'m dyn GuestMachine,
    ) -> Result<Box<dyn GuestUnderTest + 'm>, String> {
        let configured = Cell::new(Status::SUCCESS);
        let machine = Rc::new(MutantMachine { machine, bug: self.0, configured });
        let guest = ours::create(Rc::clone(&machine) as _)?;
        let (messages, entries) = (vec![None; 2048], Vec::new());
        Ok(Box::new(MutantGuest { guest, machine, messages, entries }))
    }
}

/// Memory of the machine.
struct Memory<'m>(VolatileSlice<'m>);

impl Ram for Memory<'_> {
    fn read(&self, address: u64, data: &mut [u8]) {
        let _ = self.0.read(data, usize::try_from(address).unwrap_or(usize::MAX));
    }

    fn write(&self, address: u64, data: &[u8]) {
        let _ = self.0.write(data, usize::try_from(address).unwrap_or(usize::MAX));
    }
}

impl MutantMachine<'_> {
    fn memory(&self) -> Memory<'_> {
        // SAFETY: RAM has this length and exists as long as the machine; accesses are volatile.
        Memory(unsafe { VolatileSlice::new(self.machine.ram().as_ptr(), RAM_BYTES) })
    }

    /// The entries of the table that tests use.
    fn entries(&self) -> VolatileSlice<'_> {
        let table = self.machine.table().as_ptr().cast();
        // SAFETY: tests give tables of 2048 entries, whatever the capability says, and they exist
        // as long as the machine; accesses are volatile.
        unsafe { VolatileSlice::new(table, ENTRIES * 16) }
    }

    fn load(&self, vector: u16, word: usize) -> u32 {
        self.entries().read_obj(usize::from(vector) * 16 + word * 4).unwrap_or(0)
    }

    fn store(&self, vector: u16, word: usize, value: u32) {
        let _ = self.entries().write_obj(value, usize::from(vector) * 16 + word * 4);
    }

    /// The answer that the guest makes up instead of a call.
    fn made_up(&self, request: &Exchange) -> Option<Exchange> {
        let answer = match (self.bug, CallId::from_number(request.header.call)?) {
            (Bug::NegotiateLeftOut, CallId::Negotiate) => body(&NegotiateAnswer {
                version: Version::V1_0,
                features: Features::empty(),
                limits: Limits { buffer_bytes: 65536, vectors: 2048 },
            }),
            (Bug::NotReleasedAfterGarbage, CallId::Release) => {
                body(&ReleaseAnswer { generation: Generation(1) })
            }
            _ => return None,
        };
        Some(request.answered(Status::SUCCESS, answer))
    }

    fn changed_request(&self, request: &Exchange) -> Option<Exchange> {
        let header = request.header;
        let call = CallId::from_number(header.call)?;
        let changed = match (self.bug, call) {
            (Bug::MagicForgotten, _) => Header { magic: 0, ..header },
            (Bug::SentinelNotPreset, _) => Header { status: Status::SUCCESS, ..header },
            (Bug::ReservedFieldNotZero, _) => Header { reserved: 7, ..header },
            (Bug::BufferBeyondTheLimit, _) => Header { buffer_length: 65537, ..header },
            (_, CallId::Negotiate) => return None,
            (Bug::WrongVersion, _) => Header { version: Version { major: 1, minor: 1 }, ..header },
            (Bug::WrongFunction, _) => {
                Header { function: FunctionId(header.function.0 ^ 1), ..header }
            }
            (Bug::BusyStartedAnew, CallId::Configure) => {
                return request.configure_with(|head, _| head.sequence = Sequence::START);
            }
            (Bug::BusyRepeatedWithAnotherCount, CallId::Configure) => {
                return request.configure_with(|head, setups| {
                    if head.sequence != Sequence::START {
                        head.requested -= 1;
                        setups.truncate(head.requested.into());
                    }
                });
            }
            _ => return None,
        };
        Some(Exchange { header: changed, body: request.body.clone() })
    }

    fn look_at_answer(&self, page: u32, request: &Exchange) {
        let answer = Exchange::read(&self.memory(), page);
        let status = answer.header.status;
        if request.header.call != CallId::Configure.number() {
            return;
        }
        self.configured.set(status);
        match self.bug {
            Bug::UnknownStatusTakenAsSuccess
                if !status.0.is_multiple_of(16) && status.0 < u32::MAX =>
            {
                answer.answered(Status::SUCCESS, answer.body.clone()).write(&self.memory(), page);
            }
            Bug::PendingDeliveredWhileMasked if status == Status::SUCCESS => {
                let Ok(read) = ConfigureAnswer::decode(&answer.body) else { return };
                for (vector, reported) in (0..).zip(read.vectors) {
                    if reported.is_ok_and(|it| it.pending) {
                        self.machine.deliver(vector);
                    }
                }
            }
            _ => {}
        }
    }
}

impl GuestMachine for MutantMachine<'_> {
    fn cpuid(&self, leaf: u32) -> [u32; 4] {
        let words = self.machine.cpuid(leaf);
        match (self.bug, words) {
            (Bug::SignatureNotCompared, [highest, ..])
                if leaf & 0xff == 0 && highest > leaf + 2 =>
            {
                [highest, 0x4d2d_5650, 0x4953, 0]
            }
            (Bug::OnlyTheFirstBasesTried, _) if leaf >= 0x4000_0200 => [0; 4],
            (Bug::UnknownFeaturesRejected, [version, features, ..])
                if version >> 16 == 1 && features > 7 =>
            {
                [0; 4]
            }
            _ => words,
        }
    }

    fn ram(&self) -> NonNull<u8> {
        self.machine.ram()
    }

    fn ring(&self, doorbell: Doorbell, page: u32) {
        let request = Exchange::read(&self.memory(), page);
        if let Some(answer) = self.made_up(&request) {
            return answer.write(&self.memory(), page);
        }
        if let Some(changed) = self.changed_request(&request) {
            changed.write(&self.memory(), page);
        }
        self.machine.ring(doorbell, page);
        self.look_at_answer(page, &request);
    }

    fn delay_us(&self, microseconds: u32) {
        let asked = match self.bug {
            Bug::HintFollowedHoweverLong => microseconds.saturating_mul(1000),
            _ => microseconds,
        };
        self.machine.delay_us(asked);
    }

    fn function(&self) -> FunctionId {
        self.machine.function()
    }

    fn read_config_u16(&self, offset: u16) -> u16 {
        self.machine.read_config_u16(offset)
    }

    fn write_config_u16(&self, offset: u16, value: u16) {
        match (self.bug, value & 0xc000) {
            (Bug::EnableAfterConfigure, 0xc000) => {}
            (Bug::FunctionMaskLeftSet, 0x8000) => {
                self.machine.write_config_u16(offset, value | 0x4000);
            }
            _ => self.machine.write_config_u16(offset, value),
        }
    }

    fn table(&self) -> NonNull<u32> {
        self.machine.table()
    }

    fn pending(&self) -> NonNull<u32> {
        self.machine.pending()
    }

    fn deliver(&self, vector: u16) {
        let times = match self.bug {
            Bug::PendingDropped | Bug::PendingDeliveredWhileMasked => 0,
            Bug::PendingDeliveredTwice => 2,
            _ => 1,
        };
        (0..times).for_each(|_| self.machine.deliver(vector));
    }
}

impl MutantGuest<'_> {
    fn bug(&self) -> Bug {
        self.machine.bug
    }

    fn clear_control_bits(&self, vector: u16) {
        if self.bug() == Bug::VectorControlBitsCleared {
            self.machine.store(vector, 3, self.machine.load(vector, 3) & 1);
        }
    }
}

impl GuestUnderTest for MutantGuest<'_> {
    fn start(&mut self) -> bool {
        self.guest.start()
    }

    fn enable(&mut self, vectors: u16) -> Result<u16, String> {
        let mut enabled = self.guest.enable(vectors);
        while self.bug() == Bug::BusyRepeatedForEver
            && self.machine.configured.get() == Status::BUSY
            && enabled.as_ref().is_err_and(|error| error.contains("busy"))
        {
            enabled = self.guest.enable(vectors);
        }
        if self.bug() == Bug::NoFallback && self.machine.configured.get() != Status::SUCCESS {
            self.guest.disable();
            return Err("the host refuses".to_owned());
        }
        let mut entries = vec![0; ENTRIES * 4];
        for (at, word) in (0..).step_by(4).zip(&mut entries) {
            *word = self.machine.entries().read_obj(at).unwrap_or(0);
        }
        self.entries = entries;
        if self.bug() == Bug::ShortGrantIgnored { enabled.map(|_| vectors) } else { enabled }
    }

    fn enable_standard(&mut self, vectors: u16) -> Result<u16, String> {
        if self.bug() == Bug::NotWithoutTheService {
            return Err("no service".to_owned());
        }
        self.guest.enable_standard(vectors)
    }

    fn set_message(&mut self, vector: u16, message: GuestMessage) -> Result<(), String> {
        let at = usize::from(vector);
        let known = self.messages.get_mut(at).and_then(|known| known.replace(message));
        if self.bug() == Bug::RepeatedMessageNotCalled && known == Some(message) {
            return Ok(());
        }
        let set = self.guest.set_message(vector, message);
        if self.bug() == Bug::GuestMessageInADirectTable {
            self.machine.store(vector, 2, message.data);
        }
        set
    }

    fn mask(&mut self, vector: u16) -> Result<(), String> {
        if self.bug() == Bug::MaskForgotten {
            return Ok(());
        }
        let masked = self.guest.mask(vector);
        self.clear_control_bits(vector);
        masked
    }

    fn unmask(&mut self, vector: u16) -> Result<(), String> {
        let unmasked = self.guest.unmask(vector);
        self.clear_control_bits(vector);
        unmasked
    }

    fn disable(&mut self) {
        self.guest.disable();
    }

    fn after_reset(
        &mut self,
        messages: &dyn Fn(u16) -> Option<GuestMessage>,
    ) -> Result<(), String> {
        if self.bug() == Bug::NothingAfterAReset {
            return Ok(());
        }
        self.guest.after_reset(messages)?;
        for (vector, entry) in (0..).zip(self.entries.chunks_exact(4)) {
            match self.bug() {
                Bug::MasksNotWrittenAfterAReset => self.machine.store(vector, 3, 1),
                Bug::OldTableMessagesWrittenBack => {
                    (0..).zip(entry).take(3).for_each(|(word, &value)| {
                        self.machine.store(vector, word, value);
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }
}
