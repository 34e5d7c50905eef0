//! A function has failed, or the host has slept.
//!
//! The kernel signals an error before it tries to recover, and does not say when that has ended: it may reset
//! the link, and the driver of a physical function may restore its virtual ones. So the function is frozen at once, and
//! repaired when no more has come for a while. That the host has slept is found out afterwards: the kernel
//! has restored the tables then, but for the mask bits that guests have set in them.

use std::io;
use std::os::fd::AsRawFd;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pvmsi_hypervisor::{FunctionHandle, SleepWatch};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

/// How long after its last error a function is frozen. A link that was reset is up after a second or less.
const CALM: Duration = Duration::from_secs(3);
/// How often is looked whether the host has slept, in milliseconds.
const LOOK_MS: i32 = 500;

/// A real function, and the event of its errors if it has one.
pub(crate) type Watched = (FunctionHandle, Option<EventFd>);

/// One thread for all functions; it ends when this is dropped.
pub(crate) struct RecoveryThread {
    /// Signalled when it shall end.
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl RecoveryThread {
    /// Starts it, where there is a real function.
    ///
    /// # Errors
    /// When the system has no more threads or descriptors.
    pub(crate) fn start(functions: Vec<Watched>) -> io::Result<Option<Self>> {
        if functions.is_empty() {
            return Ok(None);
        }
        Self::with_calm(functions, CALM).map(Some)
    }

    fn with_calm(functions: Vec<Watched>, calm: Duration) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let stop = EventFd::new(EFD_CLOEXEC)?;
        let errors = functions.iter().map(|(_, errors)| errors.as_ref());
        for (number, event) in (0..).zip(errors.chain([Some(&stop)])) {
            let Some(event) = event else { continue };
            let wanted = EpollEvent::new(EventSet::IN, number);
            epoll.ctl(ControlOperation::Add, event.as_raw_fd(), wanted)?;
        }
        let recovery = Recovery::new(functions, calm);
        let thread = thread::Builder::new()
            .name("pvmsi-recovery".into())
            .spawn(move || watch(&epoll, recovery))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for RecoveryThread {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

fn watch(epoll: &Epoll, mut recovery: Recovery) {
    let mut sleep = SleepWatch::new();
    let mut ready = [EpollEvent::default()];
    loop {
        match epoll.wait(LOOK_MS, &mut ready) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                tracing::error!(%error, "errors of functions are not seen");
                return;
            }
            Ok(0) => {}
            Ok(_) => {
                let [event] = &ready;
                let number = usize::try_from(event.data()).unwrap_or(usize::MAX);
                if !recovery.failed(number, Instant::now()) {
                    return;
                }
            }
        }
        if sleep.has_slept() {
            recovery.slept(Instant::now());
        }
        recovery.look(Instant::now());
    }
}

/// What is to be repaired, and when.
struct Recovery {
    functions: Vec<(Watched, Option<Instant>)>,
    calm: Duration,
}

impl Recovery {
    fn new(functions: Vec<Watched>, calm: Duration) -> Self {
        Self { functions: functions.into_iter().map(|function| (function, None)).collect(), calm }
    }

    /// The n-th function has signalled an error. `false` where there is none: behind the functions comes the end.
    fn failed(&mut self, number: usize, now: Instant) -> bool {
        let Some(((function, errors), due)) = self.functions.get_mut(number) else { return false };
        // First of all: its pages may lead nowhere in a moment.
        let frozen = function.freeze();
        if let Some(errors) = errors {
            let _ = errors.read();
        }
        if frozen.is_err() {
            // It is gone already.
            *due = None;
            return true;
        }
        // A function that fails without end is said to once.
        if due.is_none() {
            tracing::warn!(function = %function.id(), "the function has reported an error: it is frozen");
        }
        *due = now.checked_add(self.calm);
        true
    }

    /// The host has slept. What is frozen is repaired in its time.
    fn slept(&mut self, now: Instant) {
        tracing::warn!(
            "the host has slept: mask bits that guests have set in a direct table are lost"
        );
        for (_, due) in &mut self.functions {
            due.get_or_insert(now);
        }
    }

    /// Repairs what is due.
    fn look(&mut self, now: Instant) {
        for ((function, _), due) in &mut self.functions {
            if due.is_none_or(|due| now < due) {
                continue;
            }
            *due = match function.repair() {
                Ok(true) => {
                    tracing::warn!(function = %function.id(), "the function is repaired");
                    None
                }
                // It may come back yet.
                Ok(false) => now.checked_add(self.calm),
                Err(_) => None,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pvmsi_hypervisor::{FunctionPolicy, Service, ServiceConfig};
    use pvmsi_protocol::{Generation, Reasons};
    use pvmsi_software::{SoftwareFunction, SoftwareOptions};
    use pvmsi_test_doubles::{IdleRoutes, IdleWindow};

    use super::*;
    use crate::test_machine::PLATFORM;
    use crate::{host, pci};

    fn functions(count: usize) -> (Service, Vec<(FunctionHandle, EventFd)>) {
        let routes = Arc::new(IdleRoutes::default());
        let service = Service::new(ServiceConfig::new(PLATFORM), routes);
        let add = |n| {
            let function =
                SoftwareFunction::new(SoftwareOptions::default(), host::page_size()).unwrap();
            let window = Box::new(IdleWindow::new(true));
            let policy = FunctionPolicy::default();
            let id = pci::address(n).unwrap();
            let function = service.add_function(id, Box::new(function), window, policy).unwrap();
            (function, EventFd::new(EFD_CLOEXEC).unwrap())
        };
        let functions = (0..count).map(add).collect();
        (service, functions)
    }

    fn watched(functions: &[(FunctionHandle, EventFd)]) -> Vec<Watched> {
        let watched = functions.iter();
        watched
            .map(|(function, errors)| (function.clone(), Some(errors.try_clone().unwrap())))
            .collect()
    }

    fn is_frozen((function, _): &(FunctionHandle, EventFd)) -> bool {
        function.status().unwrap().reasons.contains(Reasons::HOST_REVOKED)
    }

    fn generation((function, _): &(FunctionHandle, EventFd)) -> Generation {
        function.status().unwrap().generation
    }

    #[test]
    fn a_function_is_frozen_until_it_has_been_calm_for_a_while() {
        let (_service, functions) = functions(2);
        let mut recovery = Recovery::new(watched(&functions), CALM);
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let fail = |recovery: &mut Recovery, at| {
            functions[1].1.write(1).unwrap();
            assert!(recovery.failed(1, start + second * at));
        };
        fail(&mut recovery, 0);
        fail(&mut recovery, 2);
        for seconds in 0..5 {
            recovery.look(start + second * seconds);
            assert!(!is_frozen(&functions[0]) && is_frozen(&functions[1]), "{seconds}");
        }
        recovery.look(start + second * 5);
        assert!(!is_frozen(&functions[1]));
        let repaired = generation(&functions[1]);
        recovery.look(start + second * 9);
        assert_eq!(generation(&functions[1]), repaired, "once");
        fail(&mut recovery, 10);
        assert!(is_frozen(&functions[1]), "and again");
    }

    #[test]
    fn all_functions_are_repaired_when_the_host_has_slept_and_what_is_frozen_in_its_time() {
        let (_service, functions) = functions(3);
        let mut recovery = Recovery::new(watched(&functions), CALM);
        let now = Instant::now();
        let before = functions.iter().map(generation).collect::<Vec<_>>();
        functions[2].0.remove().unwrap();
        functions[0].1.write(1).unwrap();
        assert!(recovery.failed(0, now));
        assert!(!recovery.failed(3, now), "the end");
        recovery.slept(now);
        recovery.look(now);
        assert!(is_frozen(&functions[0]));
        assert_ne!(generation(&functions[1]), before[1]);
        recovery.look(now + CALM);
        assert!(!is_frozen(&functions[0]));
        assert!(recovery.functions.iter().all(|(_, due)| due.is_none()));
    }

    #[test]
    fn the_thread_sees_errors_and_ends() {
        let (_service, functions) = functions(2);
        assert!(RecoveryThread::start(Vec::new()).unwrap().is_none());
        let calm = Duration::from_millis(50);
        let before = generation(&functions[1]);
        let thread = RecoveryThread::with_calm(watched(&functions), calm).unwrap();
        functions[1].1.write(1).unwrap();
        // Repaired, so it was frozen before.
        while generation(&functions[1]) == before || is_frozen(&functions[1]) {
            thread::sleep(Duration::from_millis(5));
        }
        drop(thread);
        functions[0].1.write(1).unwrap();
        assert!(!is_frozen(&functions[0]));
    }
}
