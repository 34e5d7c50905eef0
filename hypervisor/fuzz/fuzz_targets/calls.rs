//! Sequences of calls by a guest that means harm, with the events that a guest, a device and a
//! kernel can bring about in between: whatever comes, the rules of the service hold.

#![no_main]

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use pvmsi_hypervisor::{FunctionPolicy, Layout, Platform, Policy, View};
use pvmsi_hypervisor_fuzz::bounded;
use pvmsi_hypervisor_fuzz::fixture::{self, BAR, FUNCTION, Guest, faults, message};
use pvmsi_hypervisor_fuzz::memory::{HostileMemory, Interference, Place, Rung};
use pvmsi_protocol::{
    CallError, CallId, ConfigureAnswer, ConfigureRequest, Encode, EncodeError, Features,
    FunctionId, GuestMessage, Header, Kind, NegotiateAnswer, NegotiateRequest, QueryFunctionAnswer,
    QueryVectorsAnswer, QueryVectorsRequest, Reasons, ReleaseAnswer, RestoreAnswer, SMCCC_CALL,
    Sequence, Status, TableMode, UpdateAnswer, UpdateRequest, VectorIndex, VectorSetup,
    VectorUpdate, Version,
};

const ITS: u64 = 0x0809_0040;
const ROUTES: u16 = 100;

#[derive(Arbitrary, Debug)]
struct Scenario {
    machine: Plan,
    events: Vec<Event>,
}

#[derive(Arbitrary, Debug)]
struct Plan {
    vectors: u8,
    isolated: bool,
    allow_unisolated: bool,
    policy: Level,
    function_policy: Level,
    quota: Option<u8>,
    routes: u8,
    vectors_per_call: u8,
    arm64: bool,
    /// The VMM has the function's BAR in the memory that it hands to the service.
    bar_is_memory: bool,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Level {
    Off,
    Trapped,
    Direct,
}

#[derive(Arbitrary, Debug)]
enum Event {
    Call(Call),
    /// What a driver does: MSI-X on, all vectors with messages.
    Start {
        vectors: u8,
    },
    Config {
        offset: u16,
        length: u8,
        data: u64,
    },
    Control {
        enable: bool,
        function_mask: bool,
    },
    Decoding(bool),
    Power(u8),
    Move(u8),
    FunctionLevelReset,
    /// An access that exits, as a processor makes it that has not seen the mapping yet.
    Write {
        offset: u32,
        length: u8,
        data: u64,
    },
    Read {
        offset: u32,
        length: u8,
    },
    /// An access by whatever way the guest has.
    Store {
        word: u16,
        value: u32,
    },
    Mask {
        vector: u8,
        masked: bool,
    },
    Raise(u8),
    Run,
    Take,
    /// The n-th step from now that the kernel or the function could refuse is refused.
    Refuse(u8),
    /// Steps of these kinds are, from the n-th step on: to the end of the event in which the first
    /// one is refused, or until it ends.
    RefuseAll {
        kinds: u8,
        from: u8,
        lasting: bool,
    },
    RefuseNothing,
    MapFails(bool),
    Revoke,
    Allow,
    Reset,
    ResetMachine,
    /// The function has reported an error, or the host is about to sleep.
    Freeze,
    /// What others may have done to the table is put right.
    Repair,
}

#[derive(Arbitrary, Debug)]
struct Call {
    place: Place,
    room: Room,
    request: Request,
    harm: Harm,
    interference: Vec<Interference>,
}

/// What is wrong with the header. Nothing more often than not: only good calls come far.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Harm {
    Nothing,
    NothingAtAll,
    NotEvenThis,
    /// A field that is not what it should be.
    Field {
        number: u8,
        value: u32,
    },
    /// Bytes more or less than the body has.
    BodyLength(i8),
    Function(u32),
    /// Rings by SMCCC.
    Smccc,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Room {
    Page,
    Largest,
    Small(u8),
    Exactly(u16),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Count {
    Possible(u8),
    Any(u16),
}

#[derive(Arbitrary, Debug)]
enum Request {
    Negotiate {
        version: (u16, u16),
        features: u32,
    },
    QueryFunction,
    QueryVectors {
        first: u8,
        count: Count,
    },
    Configure {
        msi: bool,
        requested: Count,
        sequence: Continues,
        vectors: Vec<(Message, bool)>,
        many: u8,
    },
    Update {
        vectors: Vec<(u8, Message)>,
    },
    Release,
    Restore,
    Raw {
        call: u8,
        body: Vec<u8>,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Continues {
    Nothing,
    Last,
    Other(u32),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Message {
    None,
    Good(u8),
    Any(u64, u32),
}

impl From<Level> for Policy {
    fn from(level: Level) -> Self {
        match level {
            Level::Off => Self::Off,
            Level::Trapped => Self::Trapped,
            Level::Direct => Self::Direct,
        }
    }
}

struct Machine {
    guest: Guest,
    memory: HostileMemory,
    options: fixture::Options,
    sequence: Sequence,
    /// Whether a `configure` may be under way that was answered busy.
    unfinished: Cell<bool>,
    delivered: u64,
    /// Steps are to be refused.
    refuses: Refuses,
    /// Nothing reaches the function.
    frozen: bool,
}

/// For how long steps are to be refused.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Refuses {
    Nothing,
    Once,
    /// In one event.
    All,
    Lasting,
}

/// What a host can have too little of at a time.
const KINDS: [&[&str]; 10] = [
    &["routing update"],
    &["attach"],
    &["detach"],
    &["interrupt set-up"],
    &["take pages out"],
    &["put pages in"],
    &["attach", "detach"],
    &["detach", "routing update"],
    &["interrupt set-up", "routing update"],
    &["routing update", "attach", "detach", "interrupt set-up", "take pages out", "put pages in"],
];

fuzz_target!(|scenario: Scenario| {
    let mut machine = Machine::new(&scenario.machine);
    machine.check();
    for event in scenario.events.into_iter().take(48) {
        machine.event(event);
        if machine.refuses != Refuses::Lasting {
            machine.catch_up();
            faults::aside(|| machine.check());
        }
    }
    machine.end();
});

impl Machine {
    fn new(plan: &Plan) -> Self {
        let options = fixture::Options {
            vectors: [1, 2, 5, 8, 33, 64, 65, 80][usize::from(plan.vectors % 8)],
            isolated: plan.isolated,
            reachable: true,
            // The byte has more than the choice of a table.
            interrupts: if plan.vectors < 128 { 2048 } else { u16::from(plan.vectors / 8 % 8) },
            grows: plan.vectors & 64 == 0,
            guesses: plan.vectors & 32 == 0,
            policy: plan.policy.into(),
            function_policy: FunctionPolicy {
                policy: plan.function_policy.into(),
                allow_unisolated: plan.allow_unisolated,
                vectors: plan.quota.map(u16::from),
            },
            routes: ROUTES - u16::from(plan.routes) % (ROUTES + 1),
            vectors_per_call: if plan.vectors_per_call == 0 {
                2048
            } else {
                plan.vectors_per_call.into()
            },
            platform: if plan.arm64 {
                Platform::Aarch64 { its_doorbell: ITS }
            } else {
                Platform::X86_64 { extended_destination_ids: plan.vectors & 16 == 0 }
            },
            layout: Layout::clone,
        };
        let guest = Guest::new(options);
        let bar = plan.bar_is_memory.then(|| (BAR, Arc::clone(&guest.bar)));
        let memory = HostileMemory::new(bar);
        Self {
            guest,
            memory,
            options,
            sequence: Sequence::START,
            unfinished: Cell::new(false),
            delivered: 0,
            refuses: Refuses::Nothing,
            frozen: false,
        }
    }

    fn event(&mut self, event: Event) {
        let guest = &self.guest;
        let vectors = self.options.vectors;
        match event {
            Event::Call(call) => self.call(&call),
            Event::Start { vectors: count } => {
                let setups: Vec<_> = (0..=count % 16)
                    .map(|number| VectorSetup {
                        message: self.message(Message::Good(number)),
                        masked: false,
                    })
                    .collect();
                guest.control(fixture::ENABLE);
                let wanted = (setups.len() as u16).min(vectors);
                let setups = &setups[..wanted.into()];
                match bounded(|| guest.configure_with(wanted, Sequence::START, setups)) {
                    Ok(_) => self.unfinished.set(false),
                    Err(CallError::Busy(_)) => self.unfinished.set(true),
                    Err(_) => {}
                }
            }
            Event::Config { offset, length, data } => {
                let data = &data.to_le_bytes()[..usize::from(length % 9)];
                bounded(|| guest.config_write((offset % 0x1008).into(), data));
            }
            Event::Control { enable, function_mask } => {
                let control = u16::from(enable) << 15 | u16::from(function_mask) << 14;
                bounded(|| guest.control(control));
            }
            Event::Decoding(on) => bounded(|| guest.config_write(4, &[if on { 6 } else { 4 }, 0])),
            Event::Power(state) => bounded(|| guest.config_write(fixture::POWER, &[state & 3])),
            Event::Move(place) => {
                // Also into the guest's RAM, where the call buffers are.
                let base = [0xc000_0000_u32, 0xd000_0000, 0, 0x2_0000][usize::from(place % 4)];
                bounded(|| guest.config_write(0x10, &base.to_le_bytes()));
            }
            Event::FunctionLevelReset => {
                bounded(|| guest.config_write(fixture::DEVICE_CONTROL + 1, &[0x80]));
            }
            Event::Write { offset, length, data } => {
                let at = self.base() + u64::from(offset % 0x2_0100);
                let data = &data.to_le_bytes()[..usize::from(length % 9)];
                bounded(|| guest.router.mmio_write(at, data));
            }
            Event::Read { offset, length } => {
                let at = self.base() + u64::from(offset % 0x2_0100);
                let mut data = [0; 8];
                bounded(|| guest.router.mmio_read(at, &mut data[..usize::from(length % 9)]));
            }
            Event::Store { word, value } => {
                if !guest.view().bars.iter().all(Option::is_none) {
                    guest.store(u64::from(word) % 0x8000 * 4, value);
                }
            }
            Event::Mask { vector, masked } => {
                if !guest.view().bars.iter().all(Option::is_none) {
                    let vector = u16::from(vector) % vectors;
                    guest.store(Guest::entry(vector, 3), masked.into());
                }
            }
            Event::Raise(vector) => guest.raise(u16::from(vector) % vectors),
            Event::Run => {
                for _ in 0..8 {
                    if !guest.device.run() {
                        break;
                    }
                }
            }
            Event::Take => self.delivered += guest.routes.delivered().len() as u64,
            Event::Refuse(step) => {
                self.stop_refusing();
                self.refuses = Refuses::Once;
                faults::plan(faults::Plan::Nth(usize::from(step) + 1));
            }
            Event::RefuseAll { kinds, from, lasting } => {
                self.stop_refusing();
                self.refuses = if lasting { Refuses::Lasting } else { Refuses::All };
                let kinds = KINDS[usize::from(kinds) % KINDS.len()];
                faults::plan(faults::Plan::Only(usize::from(from) + 1, kinds));
            }
            Event::RefuseNothing => self.stop_refusing(),
            Event::MapFails(fails) => guest.window.fails.store(fails, Ordering::SeqCst),
            Event::Revoke => drop(bounded(|| guest.function.revoke())),
            Event::Allow => drop(bounded(|| guest.function.allow())),
            Event::Reset => drop(bounded(|| guest.function.reset())),
            Event::ResetMachine => bounded(|| guest.service.reset().unwrap()),
            Event::Freeze => {
                bounded(|| guest.function.freeze().unwrap());
                self.frozen = true;
            }
            Event::Repair => {
                let repaired = bounded(|| guest.function.repair().unwrap());
                self.frozen = !repaired;
                // It answers, unless its register could not be read.
                assert!(repaired || self.refuses != Refuses::Nothing, "taken for silent");
            }
        }
    }

    fn base(&self) -> u64 {
        u64::from(self.guest.config_read(0x10) & !0xf)
    }

    fn message(&self, message: Message) -> Option<GuestMessage> {
        match (message, self.options.platform) {
            (Message::None, _) => None,
            (Message::Good(number), Platform::X86_64 { .. }) => {
                Some(fixture::message(number.into()))
            }
            (Message::Good(number), Platform::Aarch64 { its_doorbell }) => {
                Some(GuestMessage { address: its_doorbell, data: number.into() })
            }
            (Message::Any(address, data), _) => Some(GuestMessage { address, data }),
        }
    }

    fn count(&self, count: Count) -> u16 {
        match count {
            Count::Possible(count) => 1 + u16::from(count) % self.options.vectors,
            Count::Any(count) => count,
        }
    }

    /// Number and body of a request.
    fn body(&self, request: &Request) -> (u32, Vec<u8>) {
        let mut buffer = vec![0; 8192];
        let used = |result: Result<usize, EncodeError>| result.unwrap_or(0);
        let (call, used) = match request {
            Request::Negotiate { version: (major, minor), features } => {
                let request = NegotiateRequest {
                    version: Version { major: *major, minor: *minor },
                    features: Features::from_bits_retain(*features),
                };
                (CallId::Negotiate, used(request.encode(&mut buffer)))
            }
            Request::QueryFunction => (CallId::QueryFunction, 0),
            Request::QueryVectors { first, count } => {
                let request =
                    QueryVectorsRequest { first: (*first).into(), count: self.count(*count) };
                (CallId::QueryVectors, used(request.encode(&mut buffer)))
            }
            Request::Configure { msi, requested, sequence, vectors, many } => {
                let requested = self.count(*requested);
                let kind = if *msi { Kind::Msi } else { Kind::MsiX };
                let sequence = match sequence {
                    Continues::Nothing => Sequence::START,
                    Continues::Last => self.sequence,
                    Continues::Other(number) => Sequence(*number),
                };
                let listed = vectors.iter().map(|&(message, masked)| VectorSetup {
                    message: self.message(message),
                    masked,
                });
                let more = (0..*many).map(|number| VectorSetup {
                    message: self.message(Message::Good(number)),
                    masked: false,
                });
                let setups: Vec<_> = listed.chain(more).take(300).collect();
                let setups = setups.into_iter();
                let used =
                    used(ConfigureRequest::encode(kind, requested, sequence, setups, &mut buffer));
                (CallId::Configure, used)
            }
            Request::Update { vectors } => {
                let updates: Vec<_> = vectors
                    .iter()
                    .take(300)
                    .map(|&(vector, of)| VectorUpdate {
                        vector: VectorIndex(vector.into()),
                        message: self.message(of).unwrap_or(message(0)),
                    })
                    .collect();
                (CallId::Update, used(UpdateRequest::encode(updates.into_iter(), &mut buffer)))
            }
            Request::Release => (CallId::Release, 0),
            Request::Restore => (CallId::Restore, 0),
            Request::Raw { call, body } => return ((*call).into(), body.clone()),
        };
        buffer.truncate(used);
        (call.number(), buffer)
    }

    fn call(&mut self, call: &Call) {
        let page = call.place.page(BAR);
        let address = u64::from(page) << 12;
        let (number, body) = self.body(&call.request);
        let length = match call.room {
            Room::Page => 4096,
            Room::Largest => 65536,
            Room::Small(length) => 32 + u32::from(length),
            Room::Exactly(length) => u32::from(length),
        };
        let mut header = Header {
            call: number,
            buffer_length: length,
            body_length: body.len() as u32,
            ..Header::request(CallId::Release, FUNCTION, 4096, 0).expect("a good header")
        };
        match call.harm {
            Harm::BodyLength(more) => {
                header.body_length = header.body_length.saturating_add_signed(more.into());
            }
            Harm::Function(function) => header.function = FunctionId(function),
            _ => {}
        }
        let mut bytes = header.to_bytes();
        if let Harm::Field { number, value } = call.harm {
            let at = usize::from(number % 8) * 4;
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        self.memory.write(address, &bytes);
        self.memory.write(address + 32, &body);
        let before = faults::aside(|| self.guest.snapshot());
        let counters = faults::aside(|| self.guest.status().counters);
        if let Harm::Smccc = call.harm {
            self.smccc(page);
            return;
        }
        let interference = &call.interference[..call.interference.len().min(8)];
        let Rung { result, buffer, disturbed } =
            self.memory.ring(&self.guest.service, page, interference);
        let mut after = faults::aside(|| self.guest.snapshot());
        // Each vector bound anew, and back where the call fails.
        let spent = faults::aside(|| self.guest.status().counters.since(&counters));
        let most = 2 * u64::from(self.options.vectors);
        assert!(spent.attaches <= most && spent.detaches <= most, "{spent:?}");
        if result.is_err() {
            assert_eq!(after, before, "nobody was answered, and something changed");
            return;
        }
        let buffer = buffer.expect("an answer is in memory");
        let header = Header::from_bytes(buffer.first_chunk().expect("the header was in memory"));
        if disturbed || self.in_bar(address) {
            // Whatever the buffer holds now, the other processor may have written it.
            self.unfinished.set(true);
            return;
        }
        assert!(header.body_length <= header.buffer_length - 32, "the answer is too long");
        let answer = buffer.get(32..32 + header.body_length as usize).expect("all of it in memory");
        let known = [0, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70];
        assert!(known.contains(&header.status.0), "{:?}", header.status);
        match CallError::decode(header.status, answer) {
            None => {
                if matches!(
                    CallId::from_number(header.call),
                    Some(CallId::Configure | CallId::Release)
                ) {
                    self.unfinished.set(false);
                }
                faults::aside(|| self.success(&header, answer));
            }
            Some(error) => {
                if let CallError::Busy(busy) = error {
                    self.sequence = busy.sequence;
                    self.unfinished.set(true);
                }
                // An error whose details have no room comes without them.
                let terse = answer.is_empty() && header.buffer_length < 32 + 10;
                let hardware = error == CallError::Hardware && !terse;
                assert!(self.refuses != Refuses::Nothing || !hardware, "nothing was refused");
                if matches!(self.refuses, Refuses::All | Refuses::Lasting) {
                    // Rolling back was refused as well, or an older debt is paid.
                    return;
                }
                if self.refuses == Refuses::Once {
                    // An event may have been handed on, and the call failed later.
                    for (after, before) in after.5.iter_mut().zip(&before.5) {
                        after.pending = before.pending;
                    }
                }
                if matches!(error, CallError::Busy(_)) {
                    // What is prepared may be attached, and its mask bit holds it back.
                    (after.3, after.4) = (before.3, before.4.clone());
                }
                assert_eq!(after, before, "{error:?} has changed something");
            }
        }
    }

    /// The answer to a call that succeeded is one, and says what is.
    fn success(&self, header: &Header, answer: &[u8]) {
        assert_eq!(header.status, Status::SUCCESS);
        let status = self.guest.status();
        let whole = "an answer that can be read";
        match CallId::from_number(header.call) {
            Some(CallId::Negotiate) => {
                let answer = NegotiateAnswer::decode(answer).expect(whole);
                assert_eq!(answer.version, Version::CURRENT);
                return;
            }
            Some(CallId::QueryFunction) => {
                let answer = QueryFunctionAnswer::decode(answer).expect(whole);
                assert_eq!((answer.assigned, answer.mode), (status.assigned, status.mode));
                assert_eq!(
                    (answer.reasons, answer.generation),
                    (status.reasons, status.generation)
                );
            }
            Some(CallId::QueryVectors) => {
                let answer = QueryVectorsAnswer::decode(answer).expect(whole);
                assert!(answer.vectors.check().is_ok() && !answer.vectors.is_empty());
            }
            Some(CallId::Configure) => {
                let answer = ConfigureAnswer::decode(answer).expect(whole);
                answer.vectors.check().expect(whole);
                assert_eq!((answer.granted, answer.mode), (status.assigned, status.mode));
                assert_eq!(
                    (answer.reasons, answer.generation),
                    (status.reasons, status.generation)
                );
            }
            Some(CallId::Update) => {
                let answer = UpdateAnswer::decode(answer).expect(whole);
                assert_eq!(answer.generation, status.generation);
            }
            Some(CallId::Release) => {
                let answer = ReleaseAnswer::decode(answer).expect(whole);
                assert_eq!(answer.generation, status.generation);
                assert_eq!((status.assigned, status.mode), (0, TableMode::Trapped));
            }
            Some(CallId::Restore) => {
                let answer = RestoreAnswer::decode(answer).expect(whole);
                assert_eq!((answer.mode, answer.reasons), (status.mode, status.reasons));
            }
            None => panic!("call {} does not exist", header.call),
        }
        assert_eq!(header.function, FUNCTION, "another function's call has succeeded");
    }

    fn smccc(&self, page: u32) {
        let Some(offer) = self.guest.service.offer(None, None) else { return };
        let memory = &self.guest.memory;
        let answer =
            bounded(|| self.guest.service.smccc(memory, &offer, SMCCC_CALL, [page.into(), 0, 0]));
        assert!(answer.is_some());
    }

    fn in_bar(&self, address: u64) -> bool {
        (BAR.saturating_sub(0x1_0000)..BAR + 0x2_0000).contains(&address)
    }

    /// After a step was refused, the next operation puts all in order; not even until then is anything shown that would not answer.
    fn catch_up(&mut self) {
        if !faults::failed().is_empty() {
            self.stop_refusing();
        }
    }

    fn stop_refusing(&mut self) {
        faults::end();
        self.refuses = Refuses::Nothing;
        if !self.answers() {
            assert_eq!(self.guest.window.now(), View::NOTHING, "shown, and would not answer");
        }
        self.guest.config_write(fixture::READ_ONLY, &[0]);
        // Pages of a frozen function that the kernel has not taken out are tried again.
        assert!(!self.frozen || self.guest.window.now() == View::NOTHING, "frozen, and shown");
    }

    /// Whether the function answers accesses to its memory, by what configuration space says.
    fn answers(&self) -> bool {
        let guest = &self.guest;
        guest.config_read(4) & 2 != 0 && guest.config_read(fixture::POWER) & 3 == 0
    }

    /// What always holds.
    fn check(&self) {
        let guest = &self.guest;
        let options = &self.options;
        let status = guest.status();
        let direct = status.mode == TableMode::Direct;
        assert_eq!(direct, status.reasons.is_empty(), "{:?}", status.reasons);
        assert!(!self.frozen || status.reasons.contains(Reasons::HOST_REVOKED));
        // What configuration space says, as the guest reads it.
        let decoding = self.answers() && !self.frozen;
        let enable = guest.config_read(0x90) >> 31 != 0;
        if direct {
            assert!(options.policy == Policy::Direct);
            assert!(options.function_policy.policy == Policy::Direct);
            assert!(options.isolated || options.function_policy.allow_unisolated);
            assert!(decoding && enable && status.assigned > 0);
        }
        let policy = options.policy.min(options.function_policy.policy);
        if policy == Policy::Off {
            assert_eq!(status.assigned, 0);
        }
        assert!(status.assigned <= options.vectors);
        assert!(status.assigned <= options.function_policy.vectors.unwrap_or(u16::MAX));
        // The memory map.
        let view = guest.window.now();
        if decoding {
            assert_eq!(view.table, status.mode);
            let base = self.base();
            assert_eq!(view.bars[0].map_or(0, |bar| bar.0), base & !0x1_ffff);
        } else {
            assert!(view.bars.iter().all(Option::is_none), "mapped, and would not answer");
        }
        // Routes.
        let taken = usize::from(options.routes - guest.routes.left.load(Ordering::SeqCst));
        assert!(guest.routes.attached() <= guest.routes.routed());
        assert!(guest.routes.routed() <= taken, "{} routes of {taken}", guest.routes.routed());
        let assigned = usize::from(status.assigned);
        if !enable {
            self.unfinished.set(false);
        }
        // A `configure` that was answered busy may have taken all that it wants, ahead.
        let most = match (assigned, enable) {
            (0, true) => usize::from(options.vectors),
            (_, true) if self.unfinished.get() => usize::from(options.vectors),
            (assigned, _) => assigned,
        };
        assert!(taken >= assigned && taken <= most, "{taken} routes, {most} needed");
    }

    /// Nothing stays when the service goes; and there were no more interrupts than events.
    fn end(mut self) {
        self.stop_refusing();
        self.check();
        let Self { guest, options, mut delivered, .. } = self;
        delivered += guest.routes.delivered().len() as u64;
        drop(guest.service);
        delivered += guest.routes.delivered().len() as u64;
        assert!(delivered <= guest.device.raised(), "{delivered} of {}", guest.device.raised());
        assert_eq!((guest.routes.attached(), guest.routes.routed()), (0, 0));
        assert_eq!(guest.routes.left.load(Ordering::SeqCst), options.routes);
    }
}
