//! Running, pausing, resetting and ending: what all vCPU threads agree on.
//!
//! A vCPU thread looks at `attention` before it enters the guest. Whoever wants
//! something sets it and kicks: sets `immediate_exit` of each vCPU, so that one
//! that is about to enter comes back at once, and sends its thread a signal, so
//! that one inside comes out. A thread that comes out *parks*; when all are
//! parked the machine is at rest.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest has sent the last event of its report.
    Finished,
    /// The guest has written this status to the exit port.
    Exited(u8),
    /// The host has stopped the machine.
    Stopped,
    /// A vCPU cannot go on; with the reason and its registers.
    Failed(String),
}

/// What a parked thread shall do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Run,
    Leave,
}

#[derive(Debug)]
pub(crate) struct Control {
    attention: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    paused: bool,
    reset: bool,
    /// Resets that have been done.
    resets: u64,
    end: Option<End>,
    parked: usize,
    threads: usize,
}

impl Control {
    /// For this many vCPU threads; paused.
    pub(crate) fn new(threads: usize) -> Self {
        let state = State { paused: true, reset: false, resets: 0, end: None, parked: 0, threads };
        Self { attention: AtomicBool::new(true), state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Whether threads shall park.
    pub(crate) fn attention(&self) -> bool {
        self.attention.load(Ordering::SeqCst)
    }

    /// Asks for a pause and waits until all threads are parked, or the run has ended.
    pub(crate) fn pause(&self, kick: impl FnOnce()) {
        let mut state = self.change(|state| state.paused = true);
        drop(state);
        kick();
        state = self.lock();
        while state.parked < state.threads {
            state = self.wait(state);
        }
    }

    /// Lets the threads run.
    pub(crate) fn resume(&self) {
        drop(self.change(|state| state.paused = false));
    }

    /// Asks for a reset, from any thread. It is done when all threads are parked.
    pub(crate) fn ask_for_reset(&self, kick: impl FnOnce()) {
        drop(self.change(|state| state.reset = true));
        kick();
    }

    /// Waits until no reset is asked for any more.
    pub(crate) fn wait_for_reset(&self) {
        let mut state = self.lock();
        while state.reset && state.end.is_none() {
            state = self.wait(state);
        }
    }

    /// How many resets have been done.
    pub(crate) fn resets(&self) -> u64 {
        self.lock().resets
    }

    /// Ends the run; the first reason counts.
    pub(crate) fn end(&self, end: End, kick: impl FnOnce()) {
        drop(self.change(|state| {
            state.end.get_or_insert(end);
        }));
        kick();
    }

    /// How the run ended, if it has.
    pub(crate) fn ended(&self) -> Option<End> {
        self.lock().end.clone()
    }

    /// Waits for the end of the run, and for the threads to come to rest, until `deadline`.
    pub(crate) fn wait_for_end(&self, deadline: Option<Instant>) -> Option<End> {
        let mut state = self.lock();
        loop {
            if state.end.is_some() && state.threads == 0 {
                return state.end.clone();
            }
            let left = match deadline {
                None => Duration::from_secs(3600),
                Some(deadline) => deadline.checked_duration_since(Instant::now())?,
            };
            let result = self.changed.wait_timeout(state, left);
            state = result.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A vCPU thread is out of the guest. Returns when it shall go on. The last one to park does the reset that was asked for, while all others are at rest.
    pub(crate) fn park(&self, reset: impl Fn() -> Result<(), String>) -> Next {
        let mut state = self.lock();
        state.parked = state.parked.saturating_add(1);
        self.changed.notify_all();
        let next = loop {
            if state.end.is_some() {
                break Next::Leave;
            }
            if state.reset && state.parked == state.threads {
                let result = reset();
                state.reset = false;
                state.resets = state.resets.saturating_add(1);
                if let Err(error) = result {
                    state.end = Some(End::Failed(error));
                }
                self.publish(&state);
                continue;
            }
            if !state.paused && !state.reset {
                break Next::Run;
            }
            state = self.wait(state);
        };
        state.parked = state.parked.saturating_sub(1);
        next
    }

    /// A vCPU thread is about to end.
    pub(crate) fn leave(&self) {
        let mut state = self.lock();
        state.threads = state.threads.saturating_sub(1);
        self.changed.notify_all();
    }

    fn change(&self, act: impl FnOnce(&mut State)) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        act(&mut state);
        self.publish(&state);
        state
    }

    fn publish(&self, state: &State) {
        let attention = state.paused || state.reset || state.end.is_some();
        self.attention.store(attention, Ordering::SeqCst);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;
    use std::thread;

    use super::*;

    /// Threads that count rounds while they may run.
    fn spin(control: &Arc<Control>, rounds: &Arc<AtomicU64>, resets: &Arc<AtomicU64>) {
        for _ in 0..2 {
            let (control, rounds, resets) =
                (Arc::clone(control), Arc::clone(rounds), Arc::clone(resets));
            thread::spawn(move || {
                let reset = || {
                    resets.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                };
                while control.park(reset) == Next::Run {
                    while !control.attention() {
                        rounds.fetch_add(1, Ordering::SeqCst);
                        thread::yield_now();
                    }
                }
                control.leave();
            });
        }
    }

    #[test]
    fn a_paused_machine_is_at_rest_and_a_reset_happens_once() {
        let control = Arc::new(Control::new(2));
        let (rounds, resets) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        spin(&control, &rounds, &resets);
        for round in 1..=50 {
            control.resume();
            control.pause(|| {});
            let then = rounds.load(Ordering::SeqCst);
            thread::yield_now();
            assert_eq!(rounds.load(Ordering::SeqCst), then);
            control.ask_for_reset(|| {});
            control.wait_for_reset();
            assert_eq!(resets.load(Ordering::SeqCst), round);
        }
        control.end(End::Exited(3), || {});
        control.end(End::Stopped, || {});
        assert_eq!(control.wait_for_end(None), Some(End::Exited(3)), "the first reason");
        control.pause(|| {});
        assert_eq!(control.resets(), 50);
    }

    #[test]
    fn waiting_ends_at_the_deadline() {
        let control = Control::new(1);
        assert_eq!(control.wait_for_end(Some(Instant::now())), None);
    }
}
