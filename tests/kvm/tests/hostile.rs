//! Hostile guests: what one does to its own machine never hurts the host, nor the machine's other functions.
//!
//! Each test is a scenario of the table in the specification's chapter on
//! security, and prints what was seen. The second function raises events meanwhile, the first one
//! as well where its table is hammered on, and all of them are accounted for. After each scenario the host has the threads and files that
//! it had before, has logged at a bounded rate, and both functions work.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use pvmsi::{Doorbell, FunctionConfig};
use pvmsi_hypervisor::{FunctionStatus, Policy};
use pvmsi_kvm_tests::*;
use pvmsi_protocol::{
    CallId, Header, Reasons, TableMode, UpdateRequest, VectorIndex, VectorUpdate,
};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use vm_memory::{Bytes, GuestAddress};

/// The interrupt of the second function, which the guest uses in the standard way: beyond those of the first.
const NEIGHBOUR_VECTOR: u16 = 100;
/// Rounds of a scenario in which another vCPU hammers on the table.
const ROUNDS: u64 = 20;
/// Stores of a round that hammers by stores.
const STORES: u64 = 300;
/// The vector whose mask bit is hammered on, and the one whose message is.
const MASKED: u16 = 3;
const OVERWRITTEN: u16 = 1;
/// Vectors of the first function whose events are counted meanwhile.
const COUNTED: [u16; 2] = [2, MASKED];
/// Stores into a call buffer while calls are made from it.
const REWRITES: u64 = 20_000;
/// Lines that one function may log in a period, and the period in seconds.
const LOG_BURST: u64 = 8;
const LOG_PERIOD: u64 = 5;
/// What a run may take of memory for good.
const MEMORY: u64 = 32 << 20;

/// Lines at level INFO and above.
static LINES: AtomicU64 = AtomicU64::new(0);

struct Lines;

impl<S: tracing::Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() <= tracing::Level::INFO {
            LINES.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What a scenario may do to an event that has not left the function.
#[derive(Clone, Copy, PartialEq)]
enum Events {
    /// It comes.
    Kept,
    /// It comes or is dropped, as by a reset.
    MayDrop,
}

/// A machine with two functions under attack, and the host as it was before.
struct Attack {
    bench: Bench,
    neighbour: u64,
    /// Events of each [`COUNTED`] vector: raised, and reported as pending by `configure`.
    raised: [Cell<u32>; 2],
    reported: [Cell<u32>; 2],
    /// Events of the neighbour.
    served: Cell<u32>,
    threads: usize,
    files: usize,
    memory: u64,
    lines: u64,
    start: Instant,
}

impl Attack {
    /// The first function has 4 vectors and may be direct.
    fn start(doorbell: Doorbell) -> Self {
        static COUNT_LINES: Once = Once::new();
        COUNT_LINES.call_once(|| tracing_subscriber::registry().with(Lines).init());
        let mut config = config(4, Policy::Direct);
        config.functions.push(FunctionConfig::software(4));
        config.doorbell = doorbell;
        let mut attack = Self {
            bench: Bench::start(config),
            neighbour: 0,
            raised: Default::default(),
            reported: Default::default(),
            served: Cell::new(0),
            threads: entries("/proc/self/task"),
            files: 0,
            memory: resident(),
            lines: LINES.load(Ordering::Relaxed),
            start: Instant::now(),
        };
        attack.begin();
        attack.files = entries("/proc/self/fd");
        attack
    }

    /// What both drivers do first: the one makes its table direct, the other programs its own.
    fn begin(&mut self) {
        let bench = &self.bench;
        let puppet = &bench.puppet;
        bench.control(ENABLE);
        assert_eq!(bench.configure(4).mode, TableMode::Direct);
        let config = |offset: u64, width, value| {
            let select = 0x8000_1000 | u32::try_from(offset & 0xfc).unwrap();
            puppet.port_out(0, 0xcf8, Width::Double, select).unwrap();
            let port = 0xcfc + u16::try_from(offset & 2).unwrap();
            puppet.port_out(0, port, width, value).unwrap();
        };
        config(0x04, Width::Word, 0x0006);
        config(MSIX_CONTROL, Width::Word, ENABLE.into());
        puppet.port_out(0, 0xcf8, Width::Double, 0x8000_1010).unwrap();
        let bar = puppet.port_in(0, 0xcfc, Width::Double).unwrap();
        self.neighbour = u64::from(bar & !0xf);
        self.served.set(0);
        let message = message(NEIGHBOUR_VECTOR);
        let entry = [0xfee0_0000, 0, message.data, 0];
        for (word, value) in (0..).zip(entry) {
            puppet.store_u32(0, self.neighbour + entry_word(0, word), value).unwrap();
        }
    }

    /// The other function's interrupt comes, once for each event so far, whatever happens beside it.
    fn neighbour_is_served(&self) {
        let device = self.bench.machine.software_device(1).unwrap();
        self.served.set(self.served.get() + 1);
        assert!(device.raise(VectorIndex(0)));
        self.bench.wait_taken(NEIGHBOUR_VECTOR, self.served.get());
        assert_eq!(self.bench.taken(NEIGHBOUR_VECTOR), self.served.get());
    }

    /// `configure` of all vectors. The guest delivers what the host hands over.
    fn configure(&self) {
        let answer = self.bench.configure(4);
        assert_eq!(answer.mode, TableMode::Direct);
        for (vector, reported) in COUNTED.iter().zip(&self.reported) {
            reported.set(reported.get() + u32::from(answer.pending.contains(vector)));
        }
    }

    /// Raises an event of each counted vector.
    fn raise(&self) {
        for (&vector, raised) in COUNTED.iter().zip(&self.raised) {
            self.bench.raise(vector);
            raised.set(raised.get() + 1);
        }
    }

    /// All events that were raised so far have come, once each; or that none has come twice.
    fn settle(&self, events: Events) {
        for ((&vector, raised), reported) in COUNTED.iter().zip(&self.raised).zip(&self.reported) {
            let wanted = raised.get() - reported.get();
            if events == Events::Kept {
                self.bench.wait_taken(vector, wanted);
                assert_eq!(self.bench.taken(vector), wanted, "vector {vector}");
            }
            assert!(self.bench.taken(vector) <= wanted, "vector {vector} came more than once");
        }
    }

    /// One vCPU hammers on the table of the first function while events come and `act` happens.
    fn hammer(&mut self, events: Events, mut act: impl FnMut(&mut Self, u64)) {
        for round in 0..ROUNDS {
            let puppet = self.bench.puppet.clone();
            let masks = round % 2 == 0;
            let hammer = if masks {
                puppet.start_mask_loop(1, self.bench.entry(MASKED, 3)).unwrap()
            } else {
                // A message of the guest's own choice, at its own processor.
                let target = self.bench.entry(OVERWRITTEN, 0);
                puppet.start_store_loop(1, target, Width::Quad, 0xfee0_0000, STORES).unwrap()
            };
            if masks {
                hammer.wait_rounds(1).unwrap();
            }
            self.raise();
            act(self, round);
            self.neighbour_is_served();
            if masks {
                hammer.stop().unwrap();
                // The loop may have ended where the table no longer is.
                self.bench.unmask(MASKED);
            } else {
                hammer.finish().unwrap();
            }
            self.settle(events);
            if events == Events::Kept {
                assert_eq!(self.bench.status().mode, TableMode::Direct, "round {round}");
            }
        }
        std::thread::sleep(QUIET);
        self.settle(events);
    }

    /// The host is as it was, and the function works after a `release`, as a driver would start it.
    fn end(self, scenario: &str) {
        let Self { bench, .. } = &self;
        assert_eq!(bench.machine.ended(), None);
        bench.control(ENABLE);
        bench.call(CallId::Release, &[]).unwrap();
        assert_eq!(bench.configure(4).mode, TableMode::Direct);
        // What was pending comes now.
        std::thread::sleep(QUIET);
        (0..4).for_each(|vector| bench.raise_and_take(vector));
        self.neighbour_is_served();

        let threads = entries("/proc/self/task");
        let files = entries("/proc/self/fd");
        let memory = resident().saturating_sub(self.memory);
        let lines = LINES.load(Ordering::Relaxed) - self.lines;
        let periods = self.start.elapsed().as_secs() / LOG_PERIOD + 2;
        assert_eq!(threads, self.threads, "threads");
        assert_eq!(files, self.files, "open files");
        assert!(memory < MEMORY, "{memory} bytes more than before");
        // Two functions, and what the machine itself may say.
        assert!(lines <= 3 * LOG_BURST * periods, "{lines} lines in {periods} periods");
        let (counters, exits) = (bench.status().counters, bench.machine.exits());
        println!(
            "{scenario}: {} exits ({} doorbell, {} on functions), {} calls ({} failed), {} + {} switches, {} blocked messages, {lines} log lines, {} KiB more memory",
            exits.total(),
            exits.doorbell,
            exits.function_mmio,
            counters.calls,
            counters.failed_calls,
            counters.switches_to_direct,
            counters.switches_to_trapped,
            bench.machine.software_device(0).unwrap().blocked(),
            memory >> 10,
        );
    }
}

/// Entries of a folder.
fn entries(folder: &str) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

/// Resident memory of this process in bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * pvmsi_hypervisor::host_page_size()
}

#[test]
fn table_hammered_while_it_is_configured() {
    let mut attack = Attack::start(Doorbell::Port);
    attack.hammer(Events::Kept, |attack, _| attack.configure());
    attack.end("configure");
}

#[test]
fn table_hammered_while_it_is_released() {
    let mut attack = Attack::start(Doorbell::Port);
    attack.hammer(Events::MayDrop, |attack, _| {
        attack.bench.call(CallId::Release, &[]).unwrap();
        assert_eq!(attack.bench.status().mode, TableMode::Trapped);
        attack.configure();
    });
    attack.end("release");
}

#[test]
fn table_hammered_while_memory_decoding_is_toggled() {
    let mut attack = Attack::start(Doorbell::Port);
    attack.hammer(Events::Kept, |Attack { bench, .. }, _| {
        bench.config_write_u16(0x04, 0x0004);
        assert_eq!(bench.status().reasons, Reasons::DECODING_OFF);
        bench.config_write_u16(0x04, 0x0006);
    });
    attack.end("decoding");
}

#[test]
fn table_hammered_while_its_bar_moves() {
    let mut attack = Attack::start(Doorbell::Port);
    attack.hammer(Events::Kept, |Attack { bench, .. }, _| {
        let old = bench.entry(0, 3);
        bench.bar ^= 0x100_0000;
        bench.config_write_u32(0x10, u32::try_from(bench.bar).unwrap());
        // An event of the masked vector may have come meanwhile.
        let FunctionStatus { mode, reasons, .. } = bench.status();
        assert!(mode == TableMode::Direct || reasons == Reasons::HELD_EVENT, "{reasons:?}");
        assert_eq!(bench.puppet.load_u32(0, old).unwrap(), u32::MAX, "nobody is at the old place");
    });
    attack.end("BAR moves");
}

/// Over the neighbour's BAR, which is mapped into the guest as well.
#[test]
fn a_direct_table_is_moved_over_another_function() {
    let attack = Attack::start(Doorbell::Port);
    let home = attack.bench.bar;
    for _ in 0..ROUNDS {
        for place in [attack.neighbour, 0, 0xfee0_0000, 0x40_0000, home] {
            attack.bench.config_write_u32(0x10, u32::try_from(place).unwrap());
            attack.neighbour_is_served();
            attack.raise();
            attack.settle(Events::Kept);
        }
        assert_eq!(attack.bench.status().mode, TableMode::Direct);
    }
    attack.end("BAR over others");
}

#[test]
fn table_hammered_while_the_power_state_changes() {
    let mut attack = Attack::start(Doorbell::Port);
    attack.hammer(Events::Kept, |Attack { bench, .. }, _| {
        bench.config_write_u16(POWER, 3);
        assert_eq!(bench.status().reasons, Reasons::POWER_STATE);
        bench.config_write_u16(POWER, 0);
    });
    attack.end("D3hot");
}

#[test]
fn table_hammered_while_the_function_is_reset() {
    let mut attack = Attack::start(Doorbell::Port);
    attack.hammer(Events::MayDrop, |Attack { bench, .. }, round| {
        bench.config_write_u16(DEVICE_CONTROL, 0x8000);
        assert_eq!(bench.status().assigned, 4);
        // And by the back door.
        bench.puppet.store_u32(0, bench.bar + 0x18, 1).unwrap();
        if round % 4 < 2 {
            bench.call(CallId::Restore, &[]).unwrap();
        }
    });
    attack.end("FLR");
}

#[test]
fn table_hammered_while_the_machine_is_reset() {
    let mut attack = Attack::start(Doorbell::Port);
    for round in 0..ROUNDS / 2 {
        let puppet = attack.bench.puppet.clone();
        let masks = puppet.start_mask_loop(1, attack.bench.entry(MASKED, 3)).unwrap();
        masks.wait_rounds(1).unwrap();
        // It is in the middle of its loop when the machine stops under it.
        drop(masks);
        attack.bench.reset();
        assert_eq!(attack.bench.machine.resets(), round + 1);
        assert_eq!(attack.bench.status().assigned, 0);
        attack.begin();
        attack.neighbour_is_served();
    }
    attack.end("machine reset");
}

#[test]
fn the_buffer_is_rewritten_during_the_call() {
    let attack = Attack::start(Doorbell::Port);
    let bench = &attack.bench;
    let memory = bench.machine.memory();
    let page = u32::try_from(BUFFER >> 12).unwrap();
    // A good `configure` of four vectors without messages, and what is written over it: magic,
    // buffer length, body length, call, function, and the body's first words.
    let body = [1_u8, 4, 0, 4, 0, 1, 0, 1, 0, 1, 0, 1];
    let mut calls = 0;
    for (at, value) in [
        (0, 0),
        (4, u64::MAX),
        (8, u64::MAX),
        (12, u64::MAX),
        (16, 0xffff_ffff_0000_0010),
        (24, u64::MAX),
        (32, u64::MAX),
        (34, 0x7f7f_7f7f_7f7f_7f7f),
        (36, 0),
    ] {
        let writer =
            bench.puppet.start_store_loop(1, BUFFER + at, Width::Quad, value, REWRITES).unwrap();
        while !writer.is_done().unwrap() {
            let header = Header::request(CallId::Configure, FUNCTION, 65536, body.len()).unwrap();
            memory.write_slice(&header.to_bytes(), GuestAddress(BUFFER)).unwrap();
            memory.write_slice(&body, GuestAddress(BUFFER + 32)).unwrap();
            bench.puppet.port_out(0, DOORBELL, Width::Double, page).unwrap();
            calls += 1;
        }
        writer.finish().unwrap();
        assert!(bench.status().assigned <= 4);
        attack.neighbour_is_served();
    }
    let counters = bench.status().counters;
    // Without the ones before and after: some calls met each state of the buffer.
    assert!(counters.calls > 10, "{counters:?}");
    assert!(calls > counters.calls, "some buffers were none when the host looked");
    println!("{calls} times rung while the buffer was rewritten");

    // Two good calls in turn, of four vectors and of two: each grants what one of them asks for.
    let writer = bench
        .puppet
        .start_store_loop(1, BUFFER + 32, Width::Double, 0x0000_0201, REWRITES)
        .unwrap();
    let mut granted = BTreeSet::new();
    while !writer.is_done().unwrap() {
        bench.ring(Header::request(CallId::Configure, FUNCTION, 65536, 4).unwrap(), &[1, 4, 0, 0]);
        granted.insert(bench.status().assigned);
    }
    writer.finish().unwrap();
    println!("granted: {granted:?}");
    assert!(!granted.is_empty() && granted.is_subset(&BTreeSet::from([2, 4])), "{granted:?}");
    attack.end("buffer");
}

#[test]
fn a_flood_of_calls() {
    let attack = Attack::start(Doorbell::Mmio);
    let bench = &attack.bench;
    let header = |call, length| Header::request(call, FUNCTION, 65536, length).unwrap();
    let unknown = Header { call: 77, ..header(CallId::Release, 0) };
    // Four vectors that are masked and have no message; a message for the first one.
    let configure = [1, 4, 0, 0];
    let mut update = [0; 64];
    let first = VectorUpdate { vector: VectorIndex(0), message: message(0) };
    let used = UpdateRequest::encode([first].into_iter(), &mut update).unwrap();
    let update = &update[..used];
    let floods: [(&str, u64, Header, &[u8]); 5] = [
        ("garbage", 3000, Header::from_bytes(&[0; Header::SIZE]), &[]),
        ("release", 3000, header(CallId::Release, 0), &[]),
        ("unknown call", 3000, unknown, &[]),
        // KVM waits for all vCPUs at each change of memory slots.
        ("configure", 50, header(CallId::Configure, configure.len()), &configure),
        ("update", 3000, header(CallId::Update, update.len()), update),
    ];
    let (memory, puppet) = (bench.machine.memory(), &bench.puppet);
    let (exits, counters) = (bench.machine.exits(), bench.status().counters);
    let flood = |name, running: Running<'_, _>| {
        let mut served = 0;
        while !running.is_done().unwrap() {
            attack.neighbour_is_served();
            served += 1;
        }
        running.finish().unwrap();
        println!("{name}: {served} interrupts of the other function meanwhile");
        assert!(served > 0, "the other function is served meanwhile");
    };
    let stores = puppet.start_store_loop(1, MMIO_DOORBELL, Width::Double, u32::MAX.into(), 3000);
    flood("no buffer", stores.unwrap());
    for (name, rings, header, body) in floods {
        let bytes = BUFFER + 4096;
        memory.write_slice(&header.to_bytes(), GuestAddress(bytes)).unwrap();
        memory.write_slice(body, GuestAddress(bytes + 32)).unwrap();
        flood(name, puppet.start_call_loop(1, bytes, BUFFER, MMIO_DOORBELL, rings).unwrap());
    }
    assert_eq!(bench.machine.exits().doorbell - exits.doorbell, 15_050, "an exit each");
    let after = bench.status().counters;
    assert_eq!(after.calls - counters.calls, 3000 + 50 + 3000, "of those that name the function");
    assert_eq!(after.interrupt_setups - counters.interrupt_setups, 2, "release and configure");
    assert_eq!(after.routing_updates - counters.routing_updates, 1, "configure alone");
    attack.end("flood");
}

#[test]
fn enabled_twice_released_without_need_restored_too_early() {
    let attack = Attack::start(Doorbell::Port);
    let bench = &attack.bench;
    for _ in 0..ROUNDS {
        bench.control(ENABLE);
        assert_eq!(bench.configure(4).mode, TableMode::Direct, "and once more");
        bench.raise_and_take(1);
        bench.call(CallId::Release, &[]).unwrap();
        bench.call(CallId::Release, &[]).unwrap();
        bench.call(CallId::Restore, &[]).unwrap();
        assert!(bench.status().reasons.contains(Reasons::NOT_ASSIGNED));
        bench.quiet(|| bench.raise(2));
        assert!(bench.update(0, message(0)).is_err(), "nothing is assigned");
        assert_eq!(bench.configure(4).mode, TableMode::Direct);
        bench.wait_taken(2, 1);
        bench.puppet.clear_counters(0).unwrap();
    }
    attack.end("out of turn");
}

/// As after kexec: MSI-X Enable is cleared during enumeration, then the table is programmed in the standard way.
#[test]
fn a_second_kernel_that_knows_nothing_of_us() {
    let attack = Attack::start(Doorbell::Port);
    let bench = &attack.bench;
    for _ in 0..ROUNDS {
        // The first kernel leaves in the middle of everything.
        bench.control(ENABLE);
        assert_eq!(bench.configure(4).mode, TableMode::Direct);
        bench.mask(3);
        bench.raise(3);
        // The second one enumerates.
        bench.control(0);
        assert_eq!(bench.status().assigned, 0);
        bench.quiet(|| bench.raise(0));
        bench.control(ENABLE | FUNCTION_MASK);
        for vector in 0..4 {
            bench.mask(vector);
        }
        bench.control(ENABLE);
        bench.quiet(|| {});
        let calls = bench.status().counters.calls;
        let taken = bench.taken(1);
        bench.program(1, message(1));
        bench.raise_and_take(1);
        assert_eq!(bench.taken(1), taken + 1);
        assert_eq!(bench.status().counters.calls, calls, "it never called");
    }
    // What was raised for vectors that nobody has programmed since is still pending.
    for vector in [0, 3] {
        assert!(bench.pending(vector), "vector {vector}");
    }
    bench.program(3, message(3));
    bench.wait_taken(3, 1);
    bench.program(0, message(0));
    bench.wait_taken(0, 1);
    attack.end("kexec");
}

/// One that does not even clear MSI-X Enable writes its messages into the direct table: they go nowhere.
#[test]
fn a_second_kernel_that_writes_into_a_direct_table() {
    let attack = Attack::start(Doorbell::Port);
    let bench = &attack.bench;
    for vector in 0..4 {
        bench.program(vector, message(vector));
    }
    bench.quiet(|| (0..4).for_each(|vector| bench.raise(vector)));
    assert_eq!(bench.machine.software_device(0).unwrap().blocked(), 4);
    attack.end("overwritten table");
}
