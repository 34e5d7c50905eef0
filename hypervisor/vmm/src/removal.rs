//! The host wants a function back: somebody unbinds its driver while the guest has it.
//!
//! The table is revoked at once, so that the guest finds out with its next call
//! and can stop using the function. It has a little time for that; then the
//! function is taken out of the machine, as if it had been unplugged.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pvmsi_hypervisor::{FunctionHandle, FunctionStatus};
use pvmsi_protocol::FunctionId;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

/// How long a guest may keep a function that the host wants back. The kernel asks every ten seconds.
const GRACE: Duration = Duration::from_secs(3);
/// How often is looked whether it has let go, or the machine has ended.
const LOOK: Duration = Duration::from_millis(50);

/// How the functions stood that were removed, for the report.
#[derive(Clone, Default)]
pub(crate) struct Removed(Arc<Mutex<Vec<(FunctionId, FunctionStatus)>>>);

impl Removed {
    /// How a function stood when it was removed; `None`: it was not.
    pub(crate) fn status(&self, id: FunctionId) -> Option<FunctionStatus> {
        let removed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        removed.iter().find(|(removed, _)| *removed == id).map(|(_, status)| status.clone())
    }

    fn add(&self, id: FunctionId, status: FunctionStatus) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((id, status));
    }
}

/// One thread for all functions; it ends when this is dropped.
pub(crate) struct RequestThread {
    stop: Arc<AtomicBool>,
    /// Wakes the thread to see that.
    wake: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl RequestThread {
    /// Starts it, where a function can be asked for at all.
    ///
    /// # Errors
    /// When the system has no more threads or descriptors.
    pub(crate) fn start(
        requests: Vec<(FunctionHandle, EventFd)>,
        removed: Removed,
    ) -> io::Result<Option<Self>> {
        if requests.is_empty() {
            return Ok(None);
        }
        let epoll = Epoll::new()?;
        let wake = EventFd::new(EFD_CLOEXEC)?;
        let watched = requests.iter().map(|(_, event)| event).chain([&wake]);
        for (number, event) in (0..).zip(watched) {
            let wanted = EpollEvent::new(EventSet::IN, number);
            epoll.ctl(ControlOperation::Add, event.as_raw_fd(), wanted)?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("pvmsi-removal".into())
            .spawn(move || watch(&epoll, &requests, &removed, &stopped))?;
        Ok(Some(Self { stop, wake, thread: Some(thread) }))
    }
}

impl Drop for RequestThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

fn watch(
    epoll: &Epoll,
    requests: &[(FunctionHandle, EventFd)],
    removed: &Removed,
    stop: &AtomicBool,
) {
    let mut ready = [EpollEvent::default()];
    loop {
        match epoll.wait(-1, &mut ready) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                tracing::error!(%error, "requests of the host for a function are not seen");
                return;
            }
            Ok(_) => {}
        }
        let [event] = &ready;
        let number = usize::try_from(event.data()).unwrap_or(usize::MAX);
        // Behind the functions comes the end.
        let Some((function, request)) = requests.get(number) else { return };
        let _ = request.read();
        if function.revoke().is_err() {
            // It is gone already.
            continue;
        }
        tracing::warn!(function = %function.id(), "the host wants the function back");
        if let_go(function, stop) {
            if let Ok(status) = function.status() {
                removed.add(function.id(), status);
            }
            // The machine that ends removes it as well.
            let _ = function.remove();
            tracing::warn!(function = %function.id(), "removed");
        }
    }
}

/// Waits until the guest has released the function, at most [`GRACE`]; false when the machine ends.
fn let_go(function: &FunctionHandle, stop: &AtomicBool) -> bool {
    let start = Instant::now();
    while start.elapsed() < GRACE {
        if stop.load(Ordering::Relaxed) {
            return false;
        }
        if function.status().map_or(true, |status| status.assigned == 0) {
            return true;
        }
        thread::sleep(LOOK);
    }
    true
}
