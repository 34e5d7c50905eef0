//! What moves interrupts between the host's processors, and takes processors off and on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::Mode;
use crate::interrupts;

/// Processors of the host.
pub(super) const PROCESSORS: usize = 2;
/// The processor that comes and goes: nothing is pinned to it.
pub(super) const VOLATILE: u32 = 1;
/// How often it does.
const OFF_AND_ON: Duration = Duration::from_millis(700);
/// The masks of the two processors.
const MASKS: [u32; 2] = [1 << VOLATILE, 1];

/// Held while a processor goes or comes.
static COMES_OR_GOES: Mutex<()> = Mutex::new(());

/// As long as it is held, processors stay as they are, and what waited for one that is off is with another.
pub(super) fn steady() -> MutexGuard<'static, ()> {
    COMES_OR_GOES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was done.
#[derive(Default)]
pub(crate) struct Done {
    /// Interrupts moved.
    pub(crate) moves: AtomicU64,
    /// Times a processor was taken off.
    pub(crate) processors_off: AtomicU64,
}

/// A thread that moves.
pub(crate) struct Mover {
    stop: Arc<AtomicBool>,
    done: Arc<Done>,
    thread: JoinHandle<Result<()>>,
}

impl Mover {
    /// Starts to move the interrupts of a function, or all others.
    ///
    /// # Errors
    /// Where they are not known.
    pub(crate) fn start(function: &str, mode: Mode) -> Result<Self> {
        let targets = match mode {
            Mode::Moved => interrupts::of(function)?,
            Mode::Pinned => interrupts::others(function)?,
        };
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(Done::default());
        let thread = {
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            thread::spawn(move || work(&targets, &stop, &done))
        };
        Ok(Self { stop, done, thread })
    }

    /// Ends it: interrupts moved, and times a processor was taken off.
    ///
    /// # Errors
    /// Where a processor could not be taken off or on.
    pub(crate) fn stop(self) -> Result<(u64, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the mover has panicked"))??;
        let Done { moves, processors_off } = self.done.as_ref();
        Ok((moves.load(Ordering::Relaxed), processors_off.load(Ordering::Relaxed)))
    }
}

fn work(targets: &[u32], stop: &AtomicBool, done: &Done) -> Result<()> {
    let mut online = true;
    let mut changed = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        for &target in targets {
            for mask in MASKS {
                // Some cannot be moved, and none can to a processor that is off.
                if interrupts::allow(target, mask).is_ok() {
                    done.moves.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        if changed.elapsed() > OFF_AND_ON {
            online = !online;
            let steady = steady();
            interrupts::set_online(VOLATILE, online)?;
            drop(steady);
            if !online {
                done.processors_off.fetch_add(1, Ordering::Relaxed);
            }
            changed = Instant::now();
        }
        if targets.is_empty() {
            thread::sleep(Duration::from_millis(10));
        }
    }
    interrupts::set_online(VOLATILE, true)
}
