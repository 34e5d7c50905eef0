//! The reference machine: built from a configuration, run, paused, reset, and asked.

mod functions;
mod saved;
#[cfg(test)]
mod tests;
mod vm;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_ioctls::{Kvm, VmFd};
use pvmsi_hypervisor::{Policy, Service, ServiceConfig, VfioHost};
use pvmsi_software::SoftwareDevice;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use crate::arch::{self, CPUS_MAX, InterruptController, PciConfig, SERIAL_GSI};
use crate::bars::Placement;
use crate::boot::Boot;
use crate::bus::Bus;
use crate::config::{MachineConfig, Program};
use crate::control::{Control, End, Next};
use crate::device_threads::DeviceThreads;
use crate::error::MachineError;
use crate::measurements::{
    ExitCounters, ExitCounts, FunctionService, Host, LongestCall, Pinning, REPORT_SCHEMA, Recorder,
    Report,
};
use crate::recovery::RecoveryThread;
use crate::removal::{GRACE, Removed, RequestThread};
use crate::serial::SerialPort;
use crate::vcpu::{self, Vcpu};
use crate::{host, memory, pci};
pub use functions::MachineFunction;
use functions::{Functions, function_access};
pub use saved::SavedMachine;

/// A machine. It is created paused; [`resume`](Self::resume) starts it, dropping it ends it.
///
/// The real-time signal `SIGRTMIN` is used to call vCPU threads out of the guest.
pub struct Machine {
    // Dropped in this order: no thread is left when the parts go.
    _threads: Threads,
    _devices: Option<DeviceThreads>,
    _requests: Option<RequestThread>,
    _recovery: Option<RecoveryThread>,
    removed: Removed,
    parts: Arc<Parts>,
}

/// What the threads of a machine share.
struct Parts {
    control: Control,
    // The vCPUs and the service's routes and windows go before the VM, the VM and the functions
    // before the memory that they use.
    vcpus: Vec<Vcpu>,
    bus: Bus,
    functions: Vec<MachineFunction>,
    placement: Placement,
    interrupts: InterruptController,
    guest: Guest,
    vm: Arc<VmFd>,
    /// Keeps the DMA mappings.
    _vfio: Option<VfioHost>,
    memory: Arc<GuestMemoryMmap>,
    notes: Vec<String>,
    policy: Policy,
}

/// What a reset needs of the configuration.
struct Guest {
    program: Program,
    command_line: String,
    memory_bytes: u64,
    cpus: u8,
}

/// The vCPU threads; dropping them ends the run.
struct Threads {
    parts: Arc<Parts>,
    handles: Vec<JoinHandle<()>>,
}

impl Machine {
    /// Builds a machine, paused before the first instruction.
    ///
    /// # Errors
    /// See [`MachineError`].
    pub fn new(config: MachineConfig) -> Result<Self, MachineError> {
        check(&config)?;
        let memory = Arc::new(memory::create(config.memory_bytes)?);
        Self::build(config, memory, Parts::power_on)
    }

    /// Builds a machine on this RAM; `start` brings it to where the first instruction will be.
    fn build(
        config: MachineConfig,
        memory: Arc<GuestMemoryMmap>,
        start: impl FnOnce(&Parts) -> Result<(), MachineError>,
    ) -> Result<Self, MachineError> {
        let kvm = Kvm::new().map_err(MachineError::kvm_unavailable)?;
        let vm = Arc::new(vm::create(&kvm)?);
        let mut interrupts = InterruptController::create(&vm)?;
        vm::map_ram(&vm, &memory)?;

        let routes = Arc::new(vm::routes(&vm)?);
        let service_config =
            ServiceConfig { policy: config.policy, ..ServiceConfig::new(interrupts.platform()) };
        let service_config = match config.vectors_per_call {
            Some(vectors_per_call) => ServiceConfig { vectors_per_call, ..service_config },
            None => service_config,
        };
        let service = Arc::new(Service::new(service_config, routes));
        let functions = Functions::add(&config, &kvm, &vm, &memory, &service)?;

        let interrupt = EventFd::new(EFD_CLOEXEC).map_err(eventfd)?;
        let serial = SerialPort::new(interrupt.try_clone().map_err(eventfd)?, config.console)
            .map_err(eventfd)?;
        let doorbell = (config.policy != Policy::Off).then_some(config.doorbell);
        let offer = arch::open_doorbell(&vm, &service, doorbell)?;
        let exits = Arc::new(ExitCounters::default());
        let recorder = Recorder::new(Arc::clone(&exits), functions.recorded);
        let bus = Bus {
            memory: Arc::clone(&memory),
            pci: PciConfig::new(Arc::clone(&service)),
            router: service.router(),
            service,
            exits,
            serial,
            doorbell,
            offer,
            recorder: Mutex::new(recorder),
        };
        let vcpus = vm::create_vcpus(&kvm, &vm, config.cpus, &bus)?;

        interrupts.finish(config.cpus)?;
        // KVM takes irqfds only once its interrupt controllers are complete.
        vm.register_irqfd(&interrupt, SERIAL_GSI).map_err(MachineError::kvm("KVM_IRQFD"))?;

        let access = function_access(&functions.all);
        let placement = Placement::find(&access, host::page_size())?;
        let parts = Arc::new(Parts {
            control: Control::new(vcpus.len()),
            vcpus,
            bus,
            functions: functions.all,
            placement,
            interrupts,
            guest: Guest {
                program: config.program,
                command_line: config.command_line,
                memory_bytes: config.memory_bytes,
                cpus: config.cpus,
            },
            vm,
            _vfio: functions.vfio,
            memory,
            notes: functions.notes,
            policy: config.policy,
        });
        start(&parts)?;
        vcpu::install_kick_signal()?;
        let devices = config.run_devices.then(|| {
            let devices = parts.functions.iter().filter_map(|function| function.device.clone());
            DeviceThreads::start(devices).map_err(thread)
        });
        let devices = devices.transpose()?;
        let removed = Removed::default();
        let requests = RequestThread::start(functions.requests, removed.clone(), GRACE);
        let requests = requests.map_err(thread)?;
        let recovery = RecoveryThread::start(functions.watched).map_err(thread)?;
        let threads = Threads::start(&parts)?;
        Ok(Self {
            _threads: threads,
            _devices: devices,
            _requests: requests,
            _recovery: recovery,
            removed,
            parts,
        })
    }

    /// Lets the vCPUs run: the start, and the end of a pause.
    pub fn resume(&self) {
        // Fails only for a seam that asks for its own function; the machine has none.
        let _ = self.parts.bus.service.resume();
        self.parts.control.resume();
    }

    /// Takes all vCPUs out of the guest; returns when the last one is out. No access is half done then. The software functions go on.
    pub fn pause(&self) {
        self.parts.control.pause(|| self.kick());
    }

    /// Calls all vCPUs out of the guest once; they go back at once.
    pub fn kick(&self) {
        self.parts.kick();
    }

    /// Resets the machine as the guest can (port 0xCF9, PSCI), and waits until that is done: RAM outside the program keeps its content. A paused machine stays paused.
    pub fn reset(&self) {
        self.parts.ask_for_reset();
        self.parts.control.wait_for_reset();
    }

    /// How many resets there have been, by either side.
    pub fn resets(&self) -> u64 {
        self.parts.control.resets()
    }

    /// Ends the run.
    pub fn stop(&self) {
        self.parts.end(End::Stopped);
    }

    /// Waits for the end of the run, at most this long; `None` when it has not ended.
    pub fn wait(&self, timeout: Option<Duration>) -> Option<End> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        self.parts.control.wait_for_end(deadline)
    }

    /// How the run ended, if it has.
    pub fn ended(&self) -> Option<End> {
        self.parts.control.ended()
    }

    /// The guest's RAM.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.parts.memory
    }

    /// The PV-MSI service of the machine.
    pub fn service(&self) -> &Arc<Service> {
        &self.parts.bus.service
    }

    /// The functions, in the order of the configuration.
    pub fn functions(&self) -> &[MachineFunction] {
        &self.parts.functions
    }

    /// The device side of the n-th function, when it is a software function.
    pub fn software_device(&self, n: usize) -> Option<&Arc<SoftwareDevice>> {
        self.parts.functions.get(n)?.device.as_ref()
    }

    /// Exits so far.
    pub fn exits(&self) -> ExitCounts {
        self.parts.bus.exits.read()
    }

    /// What the guest has written to the serial port, at most the first MiB.
    pub fn serial_output(&self) -> Vec<u8> {
        self.parts.bus.serial.output()
    }

    /// Sends bytes to the serial port; returns how many of the first ones it has taken. It keeps 64 until the guest reads them.
    pub fn serial_input(&self, bytes: &[u8]) -> usize {
        self.parts.bus.serial.receive(bytes)
    }

    /// What the user should know about this host, such as a limit that is too low.
    pub fn notes(&self) -> &[String] {
        &self.parts.notes
    }

    /// Where each vCPU stands, a line for each. The machine should be paused or ended.
    pub fn describe_vcpus(&self) -> Vec<String> {
        self.parts.vcpus.iter().map(Vcpu::describe).collect()
    }

    /// Adds a failure to the report.
    pub fn note_failure(&self, text: String) {
        self.parts.bus.recorder().fail(text);
    }

    /// The report so far. A run that has not ended well is a failure in it.
    pub fn report(&self) -> Report {
        let recorder = self.parts.bus.recorder();
        let (mut functions, mut failures) = recorder.results();
        let soak = recorder.soak_report();
        drop(recorder);
        let linux = matches!(self.parts.guest.program, Program::Linux { .. });
        let mut longest_call =
            LongestCall { ns: self.parts.bus.exits.longest_doorbell_ns(), vectors: 0 };
        for (function, report) in self.parts.functions.iter().zip(&mut functions) {
            report.pinning = function.pinned.as_ref().map(Pinning::from);
            let status = function.handle.status().ok();
            let Some(status) = status.or_else(|| self.removed.status(function.handle.id())) else {
                continue;
            };
            longest_call.vectors = longest_call.vectors.max(status.largest_call);
            if linux {
                report.service = Some(FunctionService::from(&status));
            }
        }
        match self.ended() {
            Some(End::Finished | End::Exited(0)) => {}
            Some(End::Exited(status)) => {
                failures.push(format!("the guest ended with status {status}"));
            }
            Some(End::Stopped) => failures.push("the run was stopped".to_owned()),
            Some(End::Failed(why)) => failures.push(why),
            None => failures.push("the run has not ended".to_owned()),
        }
        Report {
            schema: REPORT_SCHEMA,
            host: Host {
                kernel: host::kernel(),
                page_size: host::page_size(),
                kvm: host::kvm_module(Path::new("/sys")),
            },
            policy: self.parts.policy,
            functions,
            soak,
            failures,
            exits: self.exits(),
            longest_call,
        }
    }
}

impl Parts {
    /// Brings everything to the state at power-on. All vCPUs are at rest.
    fn power_on(&self) -> Result<(), MachineError> {
        let Guest { program, command_line, memory_bytes, cpus } = &self.guest;
        let boot = Boot {
            memory: &self.memory,
            memory_bytes: *memory_bytes,
            command_line,
            cpus: *cpus,
            doorbell: self.bus.doorbell,
        };
        let start = match program {
            Program::BareMetal(elf) => arch::load_bare_metal(&boot, elf)?,
            Program::Linux { kernel, initrd } => {
                arch::load_linux(&boot, kernel, initrd.as_deref())?
            }
        };
        self.bus.pci.reset();
        self.bus.serial.reset().map_err(eventfd)?;
        self.placement.write(&function_access(&self.functions));
        self.vcpus.iter().try_for_each(|vcpu| vcpu.reset(&start))
    }

    fn reset(&self) -> Result<(), MachineError> {
        // A guest can do it again and again.
        tracing::debug!("machine reset");
        self.bus.service.reset()?;
        self.interrupts.reset(&self.vm)?;
        self.power_on()
    }

    fn kick(&self) {
        self.vcpus.iter().for_each(Vcpu::kick);
    }

    fn ask_for_reset(&self) {
        self.control.ask_for_reset(|| self.kick());
    }

    fn end(&self, end: End) {
        self.control.end(end, || self.kick());
    }

    /// The life of a vCPU thread.
    fn run_vcpu(&self, vcpu: &Vcpu) {
        vcpu.enter_thread();
        let reset = || self.reset().map_err(|error| format!("machine reset: {error}"));
        while self.control.park(reset) == Next::Run {
            if let Some(end) = vcpu.run(&self.bus, &self.control, || self.ask_for_reset()) {
                self.end(end);
            }
        }
        vcpu.leave_thread();
        self.control.leave();
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        // Someone may still hold the service: no function may reach the memory from here on.
        for function in &self.functions {
            // The host may have taken it back already.
            let _ = function.handle.remove();
        }
    }
}

impl Threads {
    fn start(parts: &Arc<Parts>) -> Result<Self, MachineError> {
        let mut threads = Self { parts: Arc::clone(parts), handles: Vec::new() };
        for index in 0..parts.vcpus.len() {
            let shared = Arc::clone(parts);
            let handle = std::thread::Builder::new()
                .name(format!("pvmsi-vcpu{index}"))
                .spawn(move || {
                    if let Some(vcpu) = shared.vcpus.get(index) {
                        shared.run_vcpu(vcpu);
                    }
                })
                .map_err(thread)?;
            threads.handles.push(handle);
        }
        Ok(threads)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.parts.end(End::Stopped);
        for handle in self.handles.drain(..) {
            // A thread that panicked has said so already.
            let _ = handle.join();
        }
    }
}

fn check(config: &MachineConfig) -> Result<(), MachineError> {
    if !(1..=CPUS_MAX).contains(&config.cpus) {
        return Err(MachineError::Config(format!(
            "{} vCPUs are not possible; 1 to {CPUS_MAX} are",
            config.cpus
        )));
    }
    if config.functions.len() > pci::FUNCTIONS_MAX {
        return Err(MachineError::Config(format!(
            "{} functions do not fit the bus; {} do",
            config.functions.len(),
            pci::FUNCTIONS_MAX
        )));
    }
    Ok(())
}

fn eventfd(source: io::Error) -> MachineError {
    MachineError::Kvm { operation: "creating an eventfd", source }
}

fn thread(source: io::Error) -> MachineError {
    MachineError::Kvm { operation: "starting a thread", source }
}
