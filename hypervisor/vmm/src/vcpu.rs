//! A vCPU: its thread, its exits, and how it is called out of the guest.

use std::io;
use std::os::raw::{c_int, c_void};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kvm_ioctls::{Kvm, VcpuFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::access::Exit;
use crate::arch::{self, PowerOnState, SavedVcpu, Start};
use crate::bus::{Action, Bus};
use crate::control::{Control, End};
use crate::error::MachineError;
use crate::internal_error::InternalError;
use crate::measurements::ExitKind;

/// How often a vCPU that was refused memory tries again before the run fails.
const FAULTS_MAX: u32 = 100;
/// How long it waits in between.
const FAULT_PAUSE: Duration = Duration::from_millis(1);

/// One vCPU of a machine.
pub(crate) struct Vcpu {
    index: u8,
    fd: Mutex<VcpuFd>,
    immediate_exit: ImmediateExit,
    /// Set while the thread runs, so that nobody signals one that has ended.
    thread: Mutex<Option<libc::pthread_t>>,
    power_on: PowerOnState,
}

impl Vcpu {
    /// Takes a vCPU that has not run.
    pub(crate) fn new(index: u8, mut fd: VcpuFd, power_on: PowerOnState) -> Self {
        let immediate_exit = ImmediateExit::of(&mut fd);
        Self { index, fd: Mutex::new(fd), immediate_exit, thread: Mutex::new(None), power_on }
    }

    /// Brings a vCPU that is at rest to power-on, and to where the program wants it to start.
    ///
    /// # Errors
    /// When the program cannot run on this processor, and KVM's.
    pub(crate) fn reset(&self, start: &Start) -> Result<(), MachineError> {
        let vcpu = self.fd();
        start.check(&vcpu)?;
        self.power_on.restore(&vcpu, start).map_err(MachineError::kvm("setting a vCPU's registers"))
    }

    /// Reads all registers of a vCPU that is at rest.
    ///
    /// # Errors
    /// KVM's.
    pub(crate) fn save(&self, kvm: &Kvm) -> Result<SavedVcpu, MachineError> {
        SavedVcpu::read(kvm, &self.fd())
    }

    /// Puts the registers of another vCPU into this one, which has not run.
    ///
    /// # Errors
    /// KVM's.
    pub(crate) fn restore(&self, saved: &SavedVcpu) -> Result<(), MachineError> {
        saved.write(&self.fd())
    }

    /// The registers of a vCPU that is at rest.
    pub(crate) fn describe(&self) -> String {
        format!("vCPU {}: {}", self.index, arch::describe(&self.fd()))
    }

    /// Calls the vCPU out of the guest, or back before it has entered.
    pub(crate) fn kick(&self) {
        self.immediate_exit.set(1);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = *thread {
            // SAFETY: the thread has not ended: it takes its number out, under this lock, before
            // it does.
            let result = unsafe { libc::pthread_kill(thread, SIGRTMIN()) };
            if result != 0 {
                tracing::error!(vcpu = self.index, result, "a vCPU thread cannot be signalled");
            }
        }
    }

    /// From now on this thread is the vCPU's.
    pub(crate) fn enter_thread(&self) {
        // SAFETY: no preconditions.
        let this = unsafe { libc::pthread_self() };
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(this);
    }

    /// The thread is about to end.
    pub(crate) fn leave_thread(&self) {
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Runs the guest until `control` wants attention. `Some` when this vCPU ends the run. On return no access of the guest is half done.
    pub(crate) fn run(
        &self,
        bus: &Bus,
        control: &Control,
        ask_for_reset: impl Fn(),
    ) -> Option<End> {
        let mut vcpu = self.fd();
        let mut faults = 0_u32;
        let mut end = None;
        self.immediate_exit.set(0);
        if control.attention() {
            return None;
        }
        loop {
            let action = match arch::run(&mut vcpu, bus) {
                Ok(Exit::Served(action)) => action,
                Ok(Exit::MemoryFault(address)) => {
                    if let Some(end) = self.fault(&vcpu, &mut faults, Some(address)) {
                        return Some(end);
                    }
                    continue;
                }
                Ok(Exit::InternalError) => {
                    bus.exits.count(ExitKind::Other);
                    let what = InternalError::of(&mut vcpu).to_string();
                    return Some(self.failed(&vcpu, &what));
                }
                Ok(Exit::Stuck(what)) => {
                    bus.exits.count(ExitKind::Other);
                    return Some(self.failed(&vcpu, &what));
                }
                Err(error) => match error.errno() {
                    libc::EINTR => {
                        self.immediate_exit.set(0);
                        if control.attention() || end.is_some() {
                            return end;
                        }
                        continue;
                    }
                    libc::EAGAIN => {
                        std::thread::yield_now();
                        continue;
                    }
                    libc::EFAULT => {
                        if let Some(end) = self.fault(&vcpu, &mut faults, None) {
                            return Some(end);
                        }
                        continue;
                    }
                    _ => return Some(self.failed(&vcpu, &format!("KVM_RUN: {error}"))),
                },
            };
            faults = 0;
            match action {
                Action::Continue => continue,
                Action::Reset => ask_for_reset(),
                Action::Exit(status) => end = Some(End::Exited(status)),
                Action::Finish => end = Some(End::Finished),
            }
            // The next entry only completes the access and comes back.
            self.immediate_exit.set(1);
        }
    }

    /// KVM could not reach a page that the guest used. A page that the service has just taken out is answered by an exit the next time.
    fn fault(&self, vcpu: &VcpuFd, faults: &mut u32, address: Option<u64>) -> Option<End> {
        *faults = faults.saturating_add(1);
        if *faults <= FAULTS_MAX {
            std::thread::sleep(FAULT_PAUSE);
            return None;
        }
        let at = address.map_or_else(String::new, |address| format!(" at {address:#x}"));
        Some(End::Failed(format!(
            "vCPU {}: KVM cannot reach guest memory{at} (EFAULT, {FAULTS_MAX} times in a row): a page is mapped into the \
             guest that does not answer; {}",
            self.index,
            arch::describe(vcpu)
        )))
    }

    fn failed(&self, vcpu: &VcpuFd, what: &str) -> End {
        End::Failed(format!("vCPU {}: {what}; {}", self.index, arch::describe(vcpu)))
    }

    fn fd(&self) -> MutexGuard<'_, VcpuFd> {
        self.fd.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The `immediate_exit` byte of a vCPU's `kvm_run`.
struct ImmediateExit(NonNull<AtomicU8>);

// SAFETY: the byte is accessed atomically, and it stays mapped as long as the vCPU's descriptor,
// which lies beside this value in `Vcpu`.
unsafe impl Send for ImmediateExit {}
// SAFETY: as above.
unsafe impl Sync for ImmediateExit {}

impl ImmediateExit {
    fn of(vcpu: &mut VcpuFd) -> Self {
        Self(NonNull::from(&mut vcpu.get_kvm_run().immediate_exit).cast())
    }

    fn set(&self, value: u8) {
        // SAFETY: mapped (see above), aligned as every byte is; the kernel and this process use
        // it as a flag.
        unsafe { self.0.as_ref() }.store(value, Ordering::SeqCst);
    }
}

/// Makes the signal that calls vCPU threads out of the guest do nothing else.
///
/// # Errors
/// The system's.
pub(crate) fn install_kick_signal() -> Result<(), MachineError> {
    extern "C" fn nothing(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {}
    register_signal_handler(SIGRTMIN(), nothing).map_err(|error| MachineError::Kvm {
        operation: "installing a signal handler",
        source: io::Error::from_raw_os_error(error.errno()),
    })
}
