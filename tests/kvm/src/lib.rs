//! Tests of PV-MSI on real KVM: machines in this process, whose guest is a puppet on the test's strings.
//!
//! They need `/dev/kvm` and the guests that `cargo xtask guests` builds.

mod puppet;

use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use puppet::{Puppet, PuppetError, Running, Width};
use pvmsi::{Doorbell, End, FunctionConfig, Machine, MachineConfig};
use pvmsi_hypervisor::{FunctionHandle, FunctionStatus, Policy};
use pvmsi_protocol::{
    CallError, CallId, ConfigureAnswer, ConfigureRequest, Encode, FunctionId, GuestMessage, Header,
    Kind, QueryVectorsAnswer, QueryVectorsRequest, Reasons, Sequence, Status, TableMode,
    UpdateRequest, VectorIndex, VectorSetup, VectorState, VectorUpdate,
};
pub use pvmsi_software::config::{DEVICE_CONTROL, MSIX_CONTROL, POWER_CONTROL as POWER};
pub use pvmsi_software::registers::{SENDING, TABLE, entry_word, of_vector, pending_word};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// The first function of the machine, 00:01.0.
pub const FUNCTION: FunctionId = FunctionId(8);
/// MSI-X Enable.
pub const ENABLE: u16 = 0x8000;
/// Function Mask.
pub const FUNCTION_MASK: u16 = 0x4000;
/// The doorbell's port.
pub const DOORBELL: u16 = 0x5650;
/// The doorbell as a register, for machines that have it so.
pub const MMIO_DOORBELL: u64 = 0xfebf_f000;
/// Where tests keep their call buffer.
pub const BUFFER: u64 = 0x400_0000;
/// How long an interrupt may take, on a machine that has other things to do.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long a test looks for an interrupt that must not come.
pub const QUIET: Duration = Duration::from_millis(30);

/// A machine with a puppet, and what a kernel would do in it.
pub struct Bench {
    /// The machine; its software functions run by themselves.
    pub machine: Machine,
    /// The guest.
    pub puppet: Puppet<GuestMemoryMmap>,
    /// Guest physical address of BAR 0 of the first function.
    pub bar: u64,
    vcpus: u8,
    doorbell: Doorbell,
}

/// What a `configure` has answered.
#[derive(Debug)]
pub struct Configured {
    /// Vectors that are assigned.
    pub granted: u16,
    /// Who answers the table.
    pub mode: TableMode,
    /// Why it is not direct.
    pub reasons: Reasons,
    /// Vectors with an event that the guest has to deliver.
    pub pending: Vec<u16>,
}

/// A guest program that `cargo xtask guests` has built.
pub fn guest(name: &str) -> Vec<u8> {
    let beside = std::env::current_exe().unwrap();
    let candidates: Vec<PathBuf> = std::env::var_os("PVMSI_GUESTS")
        .map(PathBuf::from)
        .into_iter()
        .chain(beside.ancestors().skip(1).take(3).map(PathBuf::from))
        .chain(beside.ancestors().skip(3).take(1).map(|target| target.join("release")))
        .map(|folder| folder.join(name))
        .collect();
    let found = candidates.iter().find_map(|path| std::fs::read(path).ok());
    found.unwrap_or_else(|| {
        panic!("the guest {name} is missing; build it with: cargo xtask guests (looked at {candidates:?})")
    })
}

/// Runs a guest that tests itself on a software function of 16 vectors; it must end with exit status 0. Returns what it has written to the serial port.
pub fn run_to_its_end(name: &str, policy: Policy, doorbell: Doorbell) -> String {
    let mut config = MachineConfig::new(guest(name));
    config.functions.push(FunctionConfig::software(16));
    config.policy = policy;
    config.doorbell = doorbell;
    let machine = Machine::new(config).unwrap();
    machine.resume();
    let end = machine.wait(Some(PATIENCE));
    let output = String::from_utf8_lossy(&machine.serial_output()).into_owned();
    assert_eq!(end, Some(End::Exited(0)), "{policy:?} {doorbell:?}: {output}");
    output
}

/// A machine with one software function, and a policy.
pub fn config(vectors: u16, policy: Policy) -> MachineConfig {
    let mut config = MachineConfig::new(guest("pvmsi-puppet"));
    config.functions.push(FunctionConfig::software(vectors));
    config.policy = policy;
    config.cpus = 2;
    config
}

/// Where the tests send a vector: vCPU 0, interrupt vectors from 0x40 on.
pub fn message(vector: u16) -> GuestMessage {
    message_to(0, vector)
}

/// The same for another vCPU.
pub fn message_to(vcpu: u64, vector: u16) -> GuestMessage {
    GuestMessage { address: 0xfee0_0000 | vcpu << 12, data: u32::from(interrupt(vector)) }
}

/// The interrupt vector of an MSI-X vector.
pub fn interrupt(vector: u16) -> u8 {
    0x40 + u8::try_from(vector).expect("tests use vectors below 190")
}

impl Bench {
    /// Starts a machine; interrupts are on, decoding is on, MSI-X is off.
    pub fn start(config: MachineConfig) -> Self {
        let (vcpus, doorbell) = (config.cpus, config.doorbell);
        let machine = Machine::new(config).unwrap();
        let memory = machine.memory().clone();
        Puppet::prepare(&memory).unwrap();
        machine.resume();
        let puppet = Puppet::attach(memory, u64::from(vcpus)).unwrap();
        let mut bench = Self { machine, puppet, bar: 0, vcpus, doorbell };
        bench.boot();
        bench
    }

    /// A machine with this many vectors, policy direct.
    pub fn with_vectors(vectors: u16) -> Self {
        Self::start(config(vectors, Policy::Direct))
    }

    /// What a kernel does first.
    fn boot(&mut self) {
        for vcpu in 0..u64::from(self.vcpus) {
            self.puppet.interrupts(vcpu, true).unwrap();
        }
        self.config_write_u16(0x04, 0x0006);
        self.bar = u64::from(self.config_read_u32(0x10) & !0xf);
        assert_ne!(self.bar, 0, "BAR 0 was placed");
    }

    /// Resets the machine and boots again.
    pub fn reset(&mut self) {
        Puppet::prepare(self.machine.memory()).unwrap();
        self.machine.reset();
        self.puppet = Puppet::attach(self.machine.memory().clone(), u64::from(self.vcpus)).unwrap();
        self.boot();
    }

    /// Moves the guest to a second machine with this configuration, whatever it does at the moment. `at_rest` is called when the first machine is no more, with the second, which does not run yet.
    pub fn moved(self, config: MachineConfig, at_rest: impl FnOnce(&Machine)) -> Self {
        let Self { machine, puppet, bar, vcpus, doorbell } = self;
        let saved = machine.save().unwrap();
        let machine = Machine::restore(config, &saved).unwrap();
        at_rest(&machine);
        machine.resume();
        Self { machine, puppet, bar, vcpus, doorbell }
    }

    /// Reads configuration space of the first function.
    pub fn config_read_u32(&self, offset: u64) -> u32 {
        self.select(offset);
        self.puppet.port_in(0, 0xcfc, Width::Double).unwrap()
    }

    /// Writes configuration space of the first function.
    pub fn config_write_u16(&self, offset: u64, value: u16) {
        self.select(offset);
        let port = 0xcfc + u16::try_from(offset & 2).unwrap();
        self.puppet.port_out(0, port, Width::Word, value.into()).unwrap();
    }

    /// Writes configuration space of the first function.
    pub fn config_write_u32(&self, offset: u64, value: u32) {
        self.select(offset);
        self.puppet.port_out(0, 0xcfc, Width::Double, value).unwrap();
    }

    fn select(&self, offset: u64) {
        let address = 0x8000_0800 | u32::try_from(offset & 0xfc).unwrap();
        self.puppet.port_out(0, 0xcf8, Width::Double, address).unwrap();
    }

    /// Writes MSI-X Message Control.
    pub fn control(&self, value: u16) {
        self.config_write_u16(MSIX_CONTROL, value);
    }

    /// Guest physical address of a 32-bit word of a table entry.
    pub fn entry(&self, vector: u16, word: u64) -> u64 {
        self.bar + entry_word(vector, word)
    }

    /// Sets the mask bit.
    pub fn mask(&self, vector: u16) {
        self.puppet.store_u32(0, self.entry(vector, 3), 1).unwrap();
    }

    /// Clears the mask bit.
    pub fn unmask(&self, vector: u16) {
        self.puppet.store_u32(0, self.entry(vector, 3), 0).unwrap();
    }

    /// The mask bit.
    pub fn masked(&self, vector: u16) -> bool {
        self.puppet.load_u32(0, self.entry(vector, 3)).unwrap() & 1 != 0
    }

    /// The pending bit.
    pub fn pending(&self, vector: u16) -> bool {
        let word = self.bar + pending_word(vector);
        self.puppet.load_u32(0, word).unwrap() & 1 << (vector % 32) != 0
    }

    /// Programs an entry in the standard way.
    pub fn program(&self, vector: u16, GuestMessage { address, data }: GuestMessage) {
        self.mask(vector);
        let word = |shift: u32| u32::try_from(address >> shift & 0xffff_ffff).unwrap();
        self.puppet.store_u32(0, self.entry(vector, 0), word(0)).unwrap();
        self.puppet.store_u32(0, self.entry(vector, 1), word(32)).unwrap();
        self.puppet.store_u32(0, self.entry(vector, 2), data).unwrap();
        self.unmask(vector);
    }

    /// Lets the device raise an event.
    pub fn raise(&self, vector: u16) {
        assert!(self.machine.software_device(0).unwrap().raise(VectorIndex(vector)));
    }

    /// Raises an event and waits for exactly one interrupt on vCPU 0.
    pub fn raise_and_take(&self, vector: u16) {
        let before = self.taken(vector);
        self.raise(vector);
        self.wait_taken(vector, before + 1);
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(self.taken(vector), before + 1, "vector {vector} came more than once");
    }

    /// Interrupts of a vector that vCPU 0 has taken.
    pub fn taken(&self, vector: u16) -> u32 {
        self.puppet.count(0, interrupt(vector)).unwrap()
    }

    /// Waits for the n-th interrupt of a vector on vCPU 0.
    pub fn wait_taken(&self, vector: u16, count: u32) {
        self.puppet.wait_count(0, interrupt(vector), count, PATIENCE).unwrap();
    }

    /// Looks for a while that no interrupt comes on any vCPU, whatever `act` does before.
    pub fn quiet(&self, act: impl FnOnce()) {
        let all = || -> u64 {
            (0..u64::from(self.vcpus)).map(|vcpu| self.puppet.count_all(vcpu).unwrap()).sum()
        };
        let before = all();
        act();
        let end = Instant::now() + QUIET;
        while Instant::now() < end {
            assert_eq!(all(), before, "an interrupt that must not come");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Raises an event and waits for an interrupt of its vector on vCPU 0.
    pub fn raise_and_wait(&self, vector: u16) {
        let before = self.taken(vector);
        self.raise(vector);
        self.wait_taken(vector, before + 1);
    }

    /// No interrupt of any device comes to vCPU 0 during `act`.
    pub fn quiet_on_vcpu0_while(&self, act: impl FnOnce()) {
        let before = self.puppet.count_all(0).unwrap();
        act();
        assert_eq!(self.puppet.count_all(0).unwrap(), before, "an interrupt on vCPU 0");
    }

    /// The first function, from the host's side.
    pub fn function(&self) -> &FunctionHandle {
        &self.machine.functions()[0].handle
    }

    /// How it stands.
    pub fn status(&self) -> FunctionStatus {
        self.function().status().unwrap()
    }

    /// Writes a call buffer at [`BUFFER`], lets the guest ring, and reads the answer.
    pub fn ring(&self, header: Header, body: &[u8]) -> (Header, Vec<u8>) {
        let memory = self.machine.memory();
        memory.write_slice(&header.to_bytes(), GuestAddress(BUFFER)).unwrap();
        memory.write_slice(body, GuestAddress(BUFFER + 32)).unwrap();
        let page = u32::try_from(BUFFER >> 12).unwrap();
        match self.doorbell {
            Doorbell::Mmio => self.puppet.store_u32(0, MMIO_DOORBELL, page).unwrap(),
            _ => self.puppet.port_out(0, DOORBELL, Width::Double, page).unwrap(),
        }
        self.answer()
    }

    /// What stands in the call buffer.
    pub fn answer(&self) -> (Header, Vec<u8>) {
        let memory = self.machine.memory();
        let mut bytes = [0; Header::SIZE];
        memory.read_slice(&mut bytes, GuestAddress(BUFFER)).unwrap();
        let header = Header::from_bytes(&bytes);
        let length = if header.status == Status::SENTINEL { 0 } else { header.body_length };
        let mut body = vec![0; usize::try_from(length).unwrap()];
        memory.read_slice(&mut body, GuestAddress(BUFFER + 32)).unwrap();
        (header, body)
    }

    /// A call on the first function.
    pub fn call(&self, call: CallId, body: &[u8]) -> Result<Vec<u8>, CallError> {
        let header = Header::request(call, FUNCTION, 65536, body.len()).unwrap();
        let (header, body) = self.ring(header, body);
        CallError::decode(header.status, &body).map_or(Ok(body), Err)
    }

    /// `configure` with these vectors.
    pub fn configure_with(&self, vectors: &[VectorSetup]) -> Result<Configured, CallError> {
        let count = u16::try_from(vectors.len()).unwrap();
        let mut body = vec![0; 65536];
        let items = vectors.iter().copied();
        let used = ConfigureRequest::encode(Kind::MsiX, count, Sequence::START, items, &mut body);
        let answer = self.call(CallId::Configure, &body[..used.unwrap()])?;
        let answer = ConfigureAnswer::decode(&answer).unwrap();
        let pending = (0..).zip(answer.vectors.iter()).filter(|(_, item)| item.unwrap().pending);
        Ok(Configured {
            granted: answer.granted,
            mode: answer.mode,
            reasons: answer.reasons,
            pending: pending.map(|(vector, _)| vector).collect(),
        })
    }

    /// `configure` with messages to vCPU 0, unmasked.
    pub fn configure(&self, count: u16) -> Configured {
        let vectors: Vec<_> = (0..count)
            .map(|vector| VectorSetup { message: Some(message(vector % 190)), masked: false })
            .collect();
        self.configure_with(&vectors).unwrap()
    }

    /// `update` of one vector.
    pub fn update(&self, vector: u16, message: GuestMessage) -> Result<(), CallError> {
        let mut body = [0; 64];
        let update = VectorUpdate { vector: VectorIndex(vector), message };
        let used = UpdateRequest::encode([update].into_iter(), &mut body).unwrap();
        self.call(CallId::Update, &body[..used]).map(drop)
    }

    /// `query-vectors` of all vectors.
    pub fn query_vectors(&self) -> Vec<VectorState> {
        let mut body = [0; 16];
        let request = QueryVectorsRequest { first: 0, count: self.status().vectors };
        let used = request.encode(&mut body).unwrap();
        let answer = self.call(CallId::QueryVectors, &body[..used]).unwrap();
        let answer = QueryVectorsAnswer::decode(&answer).unwrap();
        answer.vectors.iter().map(Result::unwrap).collect()
    }

    /// MSI-X on, all vectors assigned and unmasked, the table direct.
    pub fn direct(vectors: u16) -> Self {
        let bench = Self::with_vectors(vectors);
        bench.control(ENABLE);
        let answer = bench.configure(vectors);
        assert_eq!((answer.granted, answer.mode), (vectors, TableMode::Direct));
        bench
    }
}
