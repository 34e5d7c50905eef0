//! A running guest is moved to a second VM in this process, again and again: nothing is lost, doubled or let through while masked.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pvmsi::{FunctionConfig, Machine, MachineConfig};
use pvmsi_hypervisor::Policy;
use pvmsi_kvm_tests::*;
use pvmsi_protocol::{CallId, Reasons, TableMode, VectorIndex};
use pvmsi_software::SoftwareDevice;
use vm_memory::GuestMemoryMmap;

const VECTORS: u16 = 4;

fn three_cpus(policy: Policy) -> MachineConfig {
    let mut config = config(VECTORS, policy);
    config.cpus = 3;
    config
}

/// Raises events on all vectors, the next one of a vector when vCPU 0 has taken the last one: each event is one interrupt, however often its vector is masked meanwhile.
struct Load {
    /// The device of the machine that the guest is in; locked while it has none.
    device: Mutex<Arc<SoftwareDevice>>,
    raised: [AtomicU32; VECTORS as usize],
    stop: AtomicBool,
}

impl Load {
    fn new(bench: &Bench) -> Self {
        Self {
            device: Mutex::new(Arc::clone(bench.machine.software_device(0).unwrap())),
            raised: Default::default(),
            stop: AtomicBool::new(false),
        }
    }

    fn run(&self, puppet: &Puppet<GuestMemoryMmap>) {
        while !self.stop.load(Ordering::Relaxed) {
            for (vector, raised) in (0..).zip(&self.raised) {
                let taken = puppet.count(0, interrupt(vector)).unwrap();
                if taken == raised.load(Ordering::Relaxed) {
                    let device = self.device.lock().unwrap();
                    assert!(device.raise(VectorIndex(vector)));
                    raised.fetch_add(1, Ordering::Relaxed);
                }
            }
            // On a small host the vCPUs may wait for this processor.
            std::thread::sleep(Duration::from_micros(20));
        }
    }

    fn total(&self) -> u32 {
        self.raised.iter().map(|raised| raised.load(Ordering::Relaxed)).sum()
    }

    /// Waits until there were so many more events: on each vector but a few of them.
    fn wait(&self, more: u32) {
        let (end, start) = (self.total() + more, Instant::now());
        while self.total() < end {
            assert!(start.elapsed() < PATIENCE, "the load stands still: {:?}", self.raised);
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Moves the guest while it goes on; in between its device is nobody's.
    fn moved(&self, bench: Bench, config: MachineConfig) -> Bench {
        let mut device = self.device.lock().unwrap();
        bench.moved(config, |machine| {
            *device = Arc::clone(machine.software_device(0).unwrap());
        })
    }

    /// Every event has been one interrupt.
    fn check(&self, bench: &Bench) {
        self.stop.store(true, Ordering::Relaxed);
        for (vector, raised) in (0..).zip(&self.raised) {
            bench.wait_taken(vector, raised.load(Ordering::Relaxed));
        }
        std::thread::sleep(Duration::from_millis(20));
        for (vector, raised) in (0..).zip(&self.raised) {
            assert_eq!(bench.taken(vector), raised.load(Ordering::Relaxed), "vector {vector}");
        }
    }
}

/// An event may be held for a vector that is masked at the moment; it passes with the next unmask.
fn wait_direct(bench: &Bench) {
    let start = Instant::now();
    while bench.status().mode != TableMode::Direct {
        assert!(start.elapsed() < PATIENCE, "{:?}", bench.status());
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// A failure of a test must not leave its load running for ever.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// `PVMSI_MOVES` makes longer runs.
fn moves(usual: u32) -> u32 {
    std::env::var("PVMSI_MOVES").map_or(usual, |text| text.parse().unwrap())
}

/// Moves the guest so often, with events on all vectors, vCPU 2 masking vector 2, and vCPU 1 masking and watching vector 1. `look` is called after each move.
fn move_under_load(bench: Bench, policy: Policy, moves: u32, look: impl Fn(&Bench, &Load)) {
    let puppet = bench.puppet.clone();
    let load = Load::new(&bench);
    let sending = bench.bar + of_vector(SENDING, 1);
    let control = |vector| bench.entry(vector, 3);
    let watcher = puppet.start_watched_mask_loop(1, control(1), sending, interrupt(1)).unwrap();
    let masker = puppet.start_mask_loop(2, control(2)).unwrap();
    let [masked, watched, came] = std::thread::scope(|scope| {
        let _stop = StopAtEnd(&load.stop);
        scope.spawn(|| load.run(&puppet));
        let mut bench = bench;
        for _ in 0..moves {
            load.wait(40);
            let generation = bench.status().generation;
            bench = load.moved(bench, three_cpus(policy));
            assert_ne!(bench.status().generation, generation);
            load.wait(40);
            look(&bench, &load);
        }
        load.wait(40);
        let masked = masker.stop().unwrap();
        let [watched, came] = watcher.stop_watching().unwrap();
        load.check(&bench);
        let device = bench.machine.software_device(0).unwrap();
        assert_eq!((device.raised(), device.blocked()), (load.total().into(), 0));
        [masked, watched, came]
    });
    println!("{moves} moves, {} events, {masked} and {watched} times masked", load.total());
    assert_eq!(came, 0, "interrupts while masked");
    assert!(masked >= u64::from(moves) && watched > 0);
}

#[test]
fn a_direct_table_under_load() {
    let bench = Bench::start(three_cpus(Policy::Direct));
    bench.control(ENABLE);
    assert_eq!(bench.configure(VECTORS).mode, TableMode::Direct);
    move_under_load(bench, Policy::Direct, moves(20), |bench, load| {
        let status = bench.status();
        assert_eq!((status.assigned, status.mode), (VECTORS, TableMode::Trapped));
        assert!(status.reasons.contains(Reasons::MIGRATED), "nobody has asked: {status:?}");
        bench.call(CallId::Restore, &[]).unwrap();
        assert!(!bench.status().reasons.contains(Reasons::MIGRATED));
        wait_direct(bench);
        load.wait(40);
    });
}

#[test]
fn a_trapped_table_under_load() {
    let bench = Bench::start(three_cpus(Policy::Trapped));
    bench.control(ENABLE);
    assert_eq!(bench.configure(VECTORS).mode, TableMode::Trapped);
    move_under_load(bench, Policy::Trapped, moves(5), |bench, _| {
        assert_eq!(bench.status().assigned, VECTORS);
    });
}

#[test]
fn a_guest_that_never_calls_under_load() {
    let bench = Bench::start(three_cpus(Policy::Direct));
    bench.control(ENABLE);
    (0..VECTORS).for_each(|vector| bench.program(vector, message(vector)));
    move_under_load(bench, Policy::Direct, moves(5), |bench, _| {
        assert_eq!(bench.status().reasons, Reasons::NOT_ASSIGNED);
    });
}

#[test]
fn an_interrupt_that_kvm_has_taken_over_and_the_guest_has_not() {
    let bench = Bench::direct(VECTORS);
    bench.puppet.interrupts(0, false).unwrap();
    bench.raise(2);
    std::thread::sleep(QUIET);
    let bench = bench.moved(config(VECTORS, Policy::Direct), |_| {});
    assert_eq!(bench.taken(2), 0);
    bench.puppet.interrupts(0, true).unwrap();
    bench.wait_taken(2, 1);
    bench.quiet(|| {});
    assert_eq!(bench.taken(2), 1);
}

#[test]
fn a_held_event_is_reported_by_configure_after_the_move() {
    let bench = Bench::direct(VECTORS);
    bench.mask(1);
    bench.raise(1);
    let bench = bench.moved(config(VECTORS, Policy::Direct), |_| {});
    bench.quiet(|| {});
    assert!(bench.masked(1) && bench.pending(1));
    let setups = [(0, false), (1, true), (2, false), (3, false)];
    let setups = setups.map(|(vector, masked)| pvmsi_protocol::VectorSetup {
        message: Some(message(vector)),
        masked,
    });
    let answer = bench.configure_with(&setups).unwrap();
    assert_eq!((answer.mode, answer.pending.as_slice()), (TableMode::Direct, &[1][..]));
    bench.quiet(|| bench.unmask(1));
    bench.raise_and_take(1);
}

#[test]
fn the_second_machine_is_a_machine() {
    let bench = Bench::direct(VECTORS);
    let mut bench = bench.moved(config(VECTORS, Policy::Trapped), |_| {});
    assert_eq!(bench.status().reasons, Reasons::POLICY | Reasons::MIGRATED, "its own policy");
    bench.raise_and_take(3);
    bench.update(3, message_to(1, 3)).unwrap();
    bench.raise(3);
    bench.puppet.wait_count(1, interrupt(3), 1, PATIENCE).unwrap();
    bench.reset();
    assert_eq!(bench.status().assigned, 0);
    bench.control(ENABLE);
    bench.configure(VECTORS);
    bench.raise_and_take(3);
}

#[test]
fn another_machine_is_refused() {
    let bench = Bench::direct(VECTORS);
    let saved = bench.machine.save().unwrap();
    let refused = |change: fn(&mut MachineConfig)| {
        let mut config = config(VECTORS, Policy::Direct);
        change(&mut config);
        Machine::restore(config, &saved).err().unwrap().to_string()
    };
    let text = refused(|config| config.cpus = 1);
    assert!(text.contains("other memory, vCPUs or functions"), "{text}");
    let text = refused(|config| config.functions = vec![FunctionConfig::software(VECTORS + 1)]);
    assert!(text.contains("saved with 4 vectors, and has 5 here"), "{text}");
    let text = refused(|config| config.policy = Policy::Off);
    assert!(text.contains("the policy here allows 0"), "{text}");
}
