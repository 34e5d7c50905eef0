//! Interrupts of a function that the host moves between its processors, while the function's table is direct.
//!
//! A drive with one command outstanding raises exactly one event for it. The program is guest and
//! KVM in one: it masks and unmasks vectors through the table's mapping, as a vCPU would, takes the
//! events from the eventfds, and knows of each whether it was due. Meanwhile a thread writes
//! `smp_affinity` back to back and takes a processor off and on, and the host takes the table back
//! and gives it again. Prints one JSON object.

mod account;
mod bar;
mod events;
mod mover;
mod nvme;

use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pvmsi_hypervisor::vfio_ioctls::VfioContainer;
use pvmsi_hypervisor::{
    FunctionHandle, PciFunction, PinnedInterrupts, Service, ServiceConfig, VfioFunction, VfioHost,
    host_page_size,
};
use pvmsi_protocol::{Sequence, VectorIndex, VectorUpdate};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::json;

use self::account::Account;
use self::bar::{Bar, Map};
use self::events::Events;
use self::mover::Mover;
use self::nvme::Nvme;
use crate::guest::{Answer, Guest, PLATFORM, message};
use crate::interrupts;

/// The drive's I/O queues, and their vectors.
const QUEUES: RangeInclusive<u16> = 1..=4;
/// With that of the admin queue.
const VECTORS: u16 = 5;

/// How long an event that is due may take: a processor that goes off holds all others up.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often the console hears of it.
const PROGRESS: Duration = Duration::from_secs(30);

/// Whose interrupts are moved.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The function's, back to back.
    Moved,
    /// All others: the service pins the function's before the table is direct.
    Pinned,
}

/// Moves for so many seconds.
///
/// # Errors
/// Where the drive does not work.
pub(crate) fn run(function: &str, seconds: u64, mode: Mode) -> Result<()> {
    let mut bench = Bench::new(function, mode)?;
    let mover = Mover::start(function, mode)?;
    let result = bench.work(Duration::from_secs(seconds));
    let (moves, processors_off) = mover.stop()?;
    result?;
    let status = bench.function()?.status()?;
    let counters = status.counters;
    let account = Account {
        host_kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        page_size: host_page_size(),
        mode: match mode {
            Mode::Moved => "moved",
            Mode::Pinned => "pinned",
        },
        seconds,
        moves,
        processors_off,
        switches: counters.switches_to_direct.saturating_add(counters.switches_to_trapped),
        pinned: bench.pinned.as_ref().map_or(0, PinnedInterrupts::pinned),
        not_pinned: bench.pinned.as_ref().map_or(0, PinnedInterrupts::not_pinned),
        doubled: bench.account.doubled.saturating_add(bench.events.astray()),
        ..bench.account
    };
    println!("{}", serde_json::to_string(&account)?);
    Ok(())
}

/// Moves the interrupts of a function that somebody else serves, and prints what was done.
///
/// # Errors
/// Where it has none, or a processor cannot be taken off or on.
pub(crate) fn only_move(function: &str, seconds: u64) -> Result<()> {
    let mover = Mover::start(function, Mode::Moved)?;
    thread::sleep(Duration::from_secs(seconds));
    let (moves, processors_off) = mover.stop()?;
    println!("{}", json!({ "moves": moves, "processors_off": processors_off }));
    Ok(())
}

/// A guest with a drive.
struct Bench {
    guest: Guest,
    events: Arc<Events>,
    bar: Bar,
    drive: Nvme,
    random: Random,
    account: Account,
    /// What the service has pinned, where it shall.
    pinned: Option<PinnedInterrupts>,
    /// Goes last: the function is attached to it.
    _vfio: VfioHost,
}

impl Bench {
    fn new(function: &str, mode: Mode) -> Result<Self> {
        let events = Arc::new(Events::default());
        let service = Service::new(ServiceConfig::new(PLATFORM), Arc::<Events>::clone(&events));
        let mut guest = Guest::new(service)?;
        let container = VfioContainer::new(None).context("VFIO cannot be used")?;
        let vfio = VfioHost::from_container(Arc::new(container));
        let sysfs = Path::new("/sys/bus/pci/devices").join(function);
        let mut real = VfioFunction::open(&vfio, &sysfs)?;
        let pinned = (mode == Mode::Pinned).then(|| real.pin_interrupts());
        // SAFETY: the guest's memory lives as long as the guest, which is dropped before `vfio` and,
        // as it owns the service, with the function; it is accessed by `Bytes` alone, which is volatile.
        unsafe { vfio.map_memory(guest.memory()) }?;
        let (layout, mappings) = (real.layout().clone(), real.mappings()?);
        let map = Map::new();
        guest.plug(real, map.clone())?;
        guest.start()?;
        // The service leaves interrupts where the kernel has put them: not where the mover takes the processor off.
        if mode == Mode::Pinned {
            interrupts::set_online(mover::VOLATILE, false)?;
        }
        match guest.configure(VECTORS, Sequence::START)? {
            Answer::Granted(VECTORS) => {}
            Answer::Granted(granted) => bail!("{granted} vectors were granted, of {VECTORS}"),
            Answer::Busy(_) => bail!("nothing bounds a call here"),
        }
        if mode == Mode::Pinned {
            interrupts::set_online(mover::VOLATILE, true)?;
        }
        let bar = Bar::new(map, mappings, layout, guest.function()?.clone())?;
        ensure!(bar.is_direct(), "the table is not direct: {:?}", guest.function()?.status()?);
        let drive = Nvme::start(&bar, guest.memory(), *QUEUES.end())?;
        arrive()?;
        // Of the commands that have started it.
        events.take(message(0));
        Ok(Self {
            guest,
            events,
            bar,
            drive,
            random: Random(0x9e37_79b9_7f4a_7c15),
            account: Account::default(),
            pinned,
            _vfio: vfio,
        })
    }

    fn function(&self) -> Result<&FunctionHandle> {
        self.guest.function()
    }

    fn work(&mut self, time: Duration) -> Result<()> {
        let start = Instant::now();
        let mut spoken = start;
        while start.elapsed() < time {
            let vector = QUEUES.start().saturating_add(self.random.below(*QUEUES.end()));
            self.strays();
            match self.random.below(40) {
                0..6 => {
                    self.during(|it| Ok(it.function()?.revoke()?))?;
                    self.during(|it| Ok(it.function()?.allow()?))?;
                }
                6 => self.during(|it| it.name_messages_again())?,
                7..20 => self.unmasked(vector)?,
                20..30 => self.masked(vector)?,
                _ => self.crossed(vector)?,
            }
            if spoken.elapsed() > PROGRESS {
                let Account { events, lost, doubled, while_masked, .. } = self.account;
                let Account { masks, masks_cleared, masks_set, .. } = self.account;
                eprintln!(
                    "### {} s: {events} events, {lost} lost, {doubled} doubled, {while_masked} \
                     while masked; {masks} mask bits, {masks_cleared} cleared, {masks_set} set",
                    start.elapsed().as_secs()
                );
                spoken = Instant::now();
            }
        }
        Ok(())
    }

    /// Events of commands that are done with.
    fn strays(&mut self) {
        for vector in QUEUES {
            let strays = self.events.take(message(vector));
            self.account.doubled = self.account.doubled.saturating_add(strays);
        }
    }

    /// A command of a vector that is not masked.
    fn unmasked(&mut self, vector: u16) -> Result<()> {
        self.submit(vector)?;
        if self.bar.is_direct() && self.bar.is_masked(vector)? {
            count(&mut self.account.masks_set);
        }
        self.complete(vector)?;
        self.due(vector, 1..=1, 0)
    }

    /// A command of a vector that is masked and quiet.
    fn masked(&mut self, vector: u16) -> Result<()> {
        self.mask(vector)?;
        arrive()?;
        self.strays();
        self.submit(vector)?;
        self.complete(vector)?;
        let early = self.watch(vector)?;
        self.bar.set_masked(vector, false)?;
        self.due(vector, 1..=1, early)
    }

    /// A vector that is masked while its event is under way, and has another while it is masked.
    fn crossed(&mut self, vector: u16) -> Result<()> {
        self.submit(vector)?;
        self.pause();
        self.mask(vector)?;
        self.complete(vector)?;
        arrive()?;
        // Rightly, if it was sent before.
        let crossed = self.events.take(message(vector));
        self.submit(vector)?;
        self.complete(vector)?;
        let early = self.watch(vector)?;
        self.bar.set_masked(vector, false)?;
        // A function that is masked remembers that there is an event, not how many.
        let before = crossed.saturating_add(early);
        let most = if before == 0 { 1 } else { 2 };
        self.due(vector, crossed.min(1).saturating_add(1)..=most, before)
    }

    /// A command of each vector is under way while the host does something; some vectors are masked.
    fn during(&mut self, act: impl Fn(&Self) -> Result<()>) -> Result<()> {
        let masked = QUEUES.map(|vector| (vector, self.random.below(4) == 0)).collect::<Vec<_>>();
        for &(vector, _) in masked.iter().filter(|(_, masked)| *masked) {
            self.mask(vector)?;
        }
        arrive()?;
        for vector in QUEUES {
            self.submit(vector)?;
        }
        self.pause();
        act(self)?;
        for (vector, masked) in masked {
            self.complete(vector)?;
            let mut early = 0;
            if masked {
                early = self.watch(vector)?;
                self.bar.set_masked(vector, false)?;
            }
            self.due(vector, 1..=1, early)?;
        }
        Ok(())
    }

    /// An `update` that changes nothing.
    fn name_messages_again(&self) -> Result<()> {
        let update =
            |vector| VectorUpdate { vector: VectorIndex(vector), message: message(vector) };
        self.guest.update(&QUEUES.map(update).collect::<Vec<_>>())
    }

    /// Some time, shorter than a command takes.
    fn pause(&mut self) {
        for _ in 0..self.random.below(4000) {
            std::hint::spin_loop();
        }
    }

    fn mask(&mut self, vector: u16) -> Result<()> {
        self.bar.set_masked(vector, true)?;
        if self.bar.is_direct() {
            count(&mut self.account.masks);
        }
        Ok(())
    }

    /// Looks at a vector that is masked, for some time: at its mask bit, and at events that come all the same.
    fn watch(&mut self, vector: u16) -> Result<u64> {
        let time = Duration::from_micros(u64::from(self.random.below(8000)));
        let start = Instant::now();
        let mut cleared = false;
        loop {
            cleared |= self.bar.is_direct() && !self.bar.is_masked(vector)?;
            if start.elapsed() > time {
                break;
            }
            thread::yield_now();
        }
        if cleared {
            count(&mut self.account.masks_cleared);
        }
        arrive()?;
        let early = self.events.take(message(vector));
        self.account.while_masked = self.account.while_masked.saturating_add(early);
        Ok(early)
    }

    /// The vector is not masked and its commands are complete: so many events are due in all, of which some
    /// came before.
    fn due(&mut self, vector: u16, due: RangeInclusive<u64>, before: u64) -> Result<()> {
        let mut came = before;
        let start = Instant::now();
        while came < *due.start() && start.elapsed() < PATIENCE {
            came = came.saturating_add(self.events.take(message(vector)));
            if came < *due.start() {
                thread::yield_now();
            }
        }
        if came < *due.start() {
            count(&mut self.account.lost);
            self.bar.set_masked(vector, true)?;
            self.bar.set_masked(vector, false)?;
            arrive()?;
            if self.events.take(message(vector)) > 0 {
                count(&mut self.account.held);
            }
        }
        self.account.doubled = self.account.doubled.saturating_add(came.saturating_sub(*due.end()));
        Ok(())
    }

    fn submit(&mut self, vector: u16) -> Result<()> {
        count(&mut self.account.events);
        self.drive.submit(&self.bar, self.guest.memory(), vector)
    }

    fn complete(&mut self, vector: u16) -> Result<()> {
        self.drive.complete(&self.bar, self.guest.memory(), vector)
    }
}

/// Returns when what the function has sent by now has arrived. This thread runs on each processor for a
/// moment: who comes back from there has taken the interrupts that waited for it. To wait for some time is not
/// enough, since processors of an emulated host stand still when its own host is busy. Nor to find that a processor
/// is off: one that is about to go takes nobody any more, and gives what waits for it to another when it is gone.
fn arrive() -> Result<()> {
    let _steady = mover::steady();
    let mut all = CpuSet::new();
    for processor in 0..mover::PROCESSORS {
        let mut one = CpuSet::new();
        one.set(processor);
        all.set(processor);
        // It may be off.
        let _ = sched_setaffinity(None, &one);
    }
    Ok(sched_setaffinity(None, &all)?)
}

fn count(counter: &mut u64) {
    *counter = counter.saturating_add(1);
}

/// Which operation comes next: xorshift, as G. Marsaglia has it. The same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u16) -> u16 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let [low, high, ..] = self.0.to_le_bytes();
        u16::from_le_bytes([low, high]).checked_rem(bound).unwrap_or(0)
    }
}
