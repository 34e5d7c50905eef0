//! The host wants a function back: somebody unbinds its driver while the guest has it.
//!
//! The table is revoked at once, so that the guest finds out with its next call
//! and can stop using the function. It has a little time for that; then the
//! function is taken out of the machine, as if it had been unplugged. Functions
//! that are wanted together have that time together.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pvmsi_hypervisor::{FunctionHandle, FunctionStatus};
use pvmsi_protocol::FunctionId;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

/// How long a guest may keep a function that the host wants back. The kernel asks every ten seconds.
pub(crate) const GRACE: Duration = Duration::from_secs(3);
/// How often is looked whether it has let go, in milliseconds.
const LOOK: i32 = 50;
/// Until somebody asks.
const FOR_EVER: i32 = -1;

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
    /// Ends the thread.
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl RequestThread {
    /// Starts it, where a function can be asked for at all. A guest has `grace` to let go of a function.
    ///
    /// # Errors
    /// When the system has no more threads or descriptors.
    pub(crate) fn start(
        requests: Vec<(FunctionHandle, EventFd)>,
        removed: Removed,
        grace: Duration,
    ) -> io::Result<Option<Self>> {
        if requests.is_empty() {
            return Ok(None);
        }
        let epoll = Epoll::new()?;
        let stop = EventFd::new(EFD_CLOEXEC)?;
        let watched = requests.iter().map(|(_, event)| event).chain([&stop]);
        for (number, event) in (0..).zip(watched) {
            let wanted = EpollEvent::new(EventSet::IN, number);
            epoll.ctl(ControlOperation::Add, event.as_raw_fd(), wanted)?;
        }
        let thread = thread::Builder::new()
            .name("pvmsi-removal".into())
            .spawn(move || watch(&epoll, &requests, &removed, grace))?;
        Ok(Some(Self { stop, thread: Some(thread) }))
    }
}

impl Drop for RequestThread {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
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
    grace: Duration,
) {
    // All that are asked for at the same time are seen, and revoked, at once.
    let mut ready = vec![EpollEvent::default(); requests.len().saturating_add(1)];
    let mut wanted: Vec<(&FunctionHandle, Instant)> = Vec::new();
    loop {
        let timeout = if wanted.is_empty() { FOR_EVER } else { LOOK };
        let count = match epoll.wait(timeout, &mut ready) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => {
                tracing::error!(%error, "requests of the host for a function are not seen");
                return;
            }
        };
        for event in ready.iter().take(count) {
            let number = usize::try_from(event.data()).unwrap_or(usize::MAX);
            // Behind the functions comes the end: the machine removes them as well.
            let Some((function, request)) = requests.get(number) else { return };
            let _ = request.read();
            let again = wanted.iter().any(|(other, _)| other.id() == function.id());
            // It is gone already where it cannot be revoked.
            if !again && function.revoke().is_ok() {
                tracing::warn!(function = %function.id(), "the host wants the function back");
                wanted.push((function, Instant::now()));
            }
        }
        wanted.retain(|(function, since)| {
            let status = function.status();
            let kept = status.as_ref().is_ok_and(|status| status.assigned > 0);
            if kept && since.elapsed() < grace {
                return true;
            }
            if let Ok(status) = status {
                removed.add(function.id(), status);
            }
            let _ = function.remove();
            tracing::warn!(function = %function.id(), "removed");
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use pvmsi_hypervisor::Service;
    use pvmsi_protocol::{BUFFER_MAX, CallId, ConfigureRequest, Header, Kind, Reasons, Sequence};
    use pvmsi_software::config::MSIX_CONTROL;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::test_machine;

    const FUNCTIONS: usize = 16;
    const BUFFER: u64 = 0x1_0000;

    fn call(service: &Service, function: &FunctionHandle, call: CallId, body: &[u8]) {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let header = Header::request(call, function.id(), BUFFER_MAX, body.len()).unwrap();
        memory.write_slice(&header.to_bytes(), GuestAddress(BUFFER)).unwrap();
        memory.write_slice(body, GuestAddress(BUFFER + 32)).unwrap();
        service.doorbell(&memory, 0x10).unwrap();
    }

    /// A vector of each is assigned; the host wants all of them back.
    fn wanted(service: &Service) -> Vec<(FunctionHandle, EventFd)> {
        let mut body = [0; 32];
        let used =
            ConfigureRequest::encode(Kind::MsiX, 1, Sequence::START, [].into_iter(), &mut body);
        let used = used.unwrap();
        let functions = service.functions().into_iter();
        let asked = functions.map(|function| {
            function.config_write(MSIX_CONTROL, &[0, 0x80]).unwrap();
            call(service, &function, CallId::Configure, &body[..used]);
            assert_eq!(function.status().unwrap().assigned, 1);
            let request = EventFd::new(0).unwrap();
            request.write(1).unwrap();
            (function, request)
        });
        asked.collect()
    }

    fn gone(function: &FunctionHandle) -> bool {
        function.status().is_err()
    }

    #[test]
    fn functions_that_are_wanted_together_have_their_time_together() {
        const TIME: Duration = Duration::from_millis(250);
        let service = test_machine::service(FUNCTIONS);
        let (removed, start) = (Removed::default(), Instant::now());
        let requests = wanted(&service);
        let functions = service.functions();
        let thread = RequestThread::start(requests, removed.clone(), TIME).unwrap();
        while !functions.iter().any(gone) {
            thread::yield_now();
        }
        for status in functions.iter().filter_map(|function| function.status().ok()) {
            assert!(status.reasons.contains(Reasons::HOST_REVOKED), "asked before one has gone");
        }
        while !functions.iter().all(gone) {
            thread::yield_now();
        }
        let each = TIME * u32::try_from(FUNCTIONS).unwrap();
        assert!(start.elapsed() < each / 2, "{:?}, and {each:?} one by one", start.elapsed());
        drop(thread);
        assert!(functions.iter().all(|function| removed.status(function.id()).is_some()));
    }

    #[test]
    fn a_function_that_the_guest_lets_go_is_removed_at_once_and_the_end_waits_for_none() {
        let service = test_machine::service(2);
        let requests = wanted(&service);
        let functions = service.functions();
        let for_ever = Duration::MAX;
        let thread = RequestThread::start(requests, Removed::default(), for_ever).unwrap();
        call(&service, &functions[1], CallId::Release, &[]);
        while !gone(&functions[1]) {
            thread::yield_now();
        }
        drop(thread);
        assert!(!gone(&functions[0]), "it has its time");
    }

    #[test]
    fn a_program_that_is_started_cannot_end_the_thread() {
        let service = test_machine::service(1);
        let thread = RequestThread::start(wanted(&service), Removed::default(), GRACE);
        let thread = thread.unwrap().unwrap();
        let stop = thread.stop.as_raw_fd();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{stop}")).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
        assert_eq!(flags & libc::O_CLOEXEC, libc::O_CLOEXEC, "{info}");
    }
}
