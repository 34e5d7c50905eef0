//! The reference machine: built from a configuration, run, paused, reset, and asked.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VmFd};
use pvmsi_hypervisor::{
    FunctionPolicy, KvmRoutes, KvmWindow, MemorySlots, PciFunction, Platform, Policy, Service,
    ServiceConfig, SoftwareDevice, SoftwareFunction, VfioFunction, VfioHost,
};
use pvmsi_protocol::FunctionId;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::bars::{ConfigAccess, Placement};
use crate::bus::{Bus, DOORBELL_PORT};
use crate::config::{Backend, CPUS_MAX, Doorbell, FunctionConfig, MachineConfig};
use crate::control::{Control, End, Next};
use crate::device_threads::DeviceThreads;
use crate::error::MachineError;
use crate::exits::{ExitCounters, ExitCounts};
use crate::recorder::{RecordedFunction, Recorder};
use crate::report::{FunctionReport, Host, REPORT_SCHEMA, Report};
use crate::serial::{self, Com1};
use crate::vcpu::{self, Vcpu};
use crate::x86_64::irqchip::{self, PINS};
use crate::x86_64::{boot, cpuid};
use crate::{file_limit, host, memory, pci};

/// The memory slot of the RAM; all others are for functions.
const RAM_SLOT: u32 = 0;

/// A machine. It is created paused; [`resume`](Self::resume) starts it, dropping it ends it.
///
/// The real-time signal `SIGRTMIN` is used to call vCPU threads out of the guest.
pub struct Machine {
    // Dropped in this order: no thread is left when the parts go.
    threads: Threads,
    devices: Option<DeviceThreads>,
    parts: Arc<Parts>,
}

/// A function of a machine.
#[derive(Clone)]
pub struct MachineFunction {
    /// Its address in the guest.
    pub id: FunctionId,
    /// What serves it.
    pub backend: Backend,
    /// The device side of a software function.
    pub device: Option<Arc<SoftwareDevice>>,
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
    irqchip: irqchip::PowerOnState,
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
    elf: Vec<u8>,
    command_line: String,
    memory_bytes: u64,
}

/// What serves a function, and the device behind it when that is in software.
type Opened = (Box<dyn PciFunction>, Option<Arc<SoftwareDevice>>);

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
        let kvm = Kvm::new().map_err(MachineError::kvm_unavailable)?;
        let vm = Arc::new(create_vm(&kvm)?);
        let memory = Arc::new(memory::create(config.memory_bytes)?);
        map_ram(&vm, &memory)?;

        let routes = Arc::new(routes(&vm));
        let service_config =
            ServiceConfig { policy: config.policy, ..ServiceConfig::new(Platform::X86_64) };
        let service_config = match config.vectors_per_call {
            Some(vectors_per_call) => ServiceConfig { vectors_per_call, ..service_config },
            None => service_config,
        };
        let service = Arc::new(Service::new(service_config, routes));
        let functions = Functions::add(&config, &kvm, &vm, &memory, &service)?;

        let interrupt = EventFd::new(0).map_err(eventfd)?;
        vm.register_irqfd(&interrupt, serial::GSI).map_err(MachineError::kvm("KVM_IRQFD"))?;
        let serial = Com1::new(interrupt, config.console).map_err(eventfd)?;
        let doorbell = (config.policy != Policy::Off).then_some(config.doorbell);
        let exits = Arc::new(ExitCounters::default());
        let recorder = Recorder::new(Arc::clone(&service), Arc::clone(&exits), functions.recorded);
        let bus = Bus {
            memory: Arc::clone(&memory),
            config: pci::ConfigMechanism::new(Arc::clone(&service)),
            service,
            exits,
            serial,
            doorbell,
            recorder: Mutex::new(recorder),
        };
        let vcpus = create_vcpus(&kvm, &vm, config.cpus, &bus)?;

        let access = function_access(&functions.all, &bus.service);
        let placement = Placement::find(&access, host::page_size())?;
        let irqchip =
            irqchip::PowerOnState::read(&vm).map_err(MachineError::kvm("KVM_GET_IRQCHIP"))?;
        let parts = Arc::new(Parts {
            control: Control::new(vcpus.len()),
            vcpus,
            bus,
            functions: functions.all,
            placement,
            irqchip,
            guest: Guest {
                elf: config.guest,
                command_line: config.command_line,
                memory_bytes: config.memory_bytes,
            },
            vm,
            _vfio: functions.vfio,
            memory,
            notes: functions.notes,
            policy: config.policy,
        });
        parts.power_on()?;
        vcpu::install_kick_signal()?;
        let devices = config.run_devices.then(|| {
            let devices = parts.functions.iter().filter_map(|function| function.device.clone());
            DeviceThreads::start(devices).map_err(thread)
        });
        let devices = devices.transpose()?;
        let threads = Threads::start(&parts)?;
        Ok(Self { threads, devices, parts })
    }

    /// Lets the vCPUs run: the start, and the end of a pause.
    pub fn resume(&self) {
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

    /// Resets the machine as the guest can by port 0xCF9, and waits until that is done: RAM outside the program keeps its content. A paused machine stays paused.
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

    /// The guest's RAM, from guest physical address 0 on.
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

    /// What the guest has written to COM1, at most the first MiB.
    pub fn serial_output(&self) -> Vec<u8> {
        self.parts.bus.serial.output()
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
        let (functions, mut failures) = self.parts.bus.recorder().results();
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
            failures,
            exits: self.exits(),
        }
    }

    /// Whether threads of the machine run its software functions.
    pub fn runs_devices(&self) -> bool {
        self.devices.is_some()
    }

    /// How many vCPU threads were started.
    pub fn cpus(&self) -> usize {
        self.threads.handles.len()
    }
}

impl Parts {
    /// Brings everything to the state at power-on. All vCPUs are at rest.
    fn power_on(&self) -> Result<(), MachineError> {
        let entry = memory::load(&self.memory, &self.guest.elf)?;
        boot::write(&self.memory, self.guest.memory_bytes, &self.guest.command_line)?;
        self.bus.config.reset();
        self.bus.serial.reset().map_err(eventfd)?;
        self.placement.write(&function_access(&self.functions, &self.bus.service));
        self.vcpus.iter().try_for_each(|vcpu| vcpu.reset(entry))
    }

    fn reset(&self) -> Result<(), MachineError> {
        tracing::info!("machine reset");
        self.bus.service.reset();
        self.irqchip.restore(&self.vm).map_err(MachineError::kvm("KVM_SET_IRQCHIP"))?;
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
            self.bus.service.remove_function(function.id);
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

/// The functions of a machine while it is built.
struct Functions {
    all: Vec<MachineFunction>,
    recorded: Vec<RecordedFunction>,
    vfio: Option<VfioHost>,
    notes: Vec<String>,
}

impl Functions {
    fn add(
        config: &MachineConfig,
        kvm: &Kvm,
        vm: &Arc<VmFd>,
        memory: &Arc<GuestMemoryMmap>,
        service: &Service,
    ) -> Result<Self, MachineError> {
        let first = RAM_SLOT.saturating_add(1);
        let count = u32::try_from(kvm.get_nr_memslots()).unwrap_or(0);
        let slots = Arc::new(MemorySlots::new(Arc::clone(vm), first..count.max(first)));
        let mut functions =
            Self { all: Vec::new(), recorded: Vec::new(), vfio: None, notes: Vec::new() };
        let mut files = 0_u64;
        let limit = file_limit::raise();
        for (n, function) in config.functions.iter().enumerate() {
            let failed = |message: String| MachineError::Function {
                function: function.backend.to_string(),
                message,
            };
            let id = pci::address(n).ok_or_else(|| failed("the bus is full".to_owned()))?;
            let (implementation, device) = functions.open(function, vm).map_err(failed)?;
            let mappings = implementation.mappings().map_err(|error| failed(error.to_string()))?;
            let layout = implementation.layout();
            let vectors = layout.vectors();
            files = files.saturating_add(file_limit::needed_by(function.backend, vectors));
            let window = KvmWindow::new(Arc::clone(&slots), layout, mappings);
            let policy = FunctionPolicy {
                policy: function.policy.unwrap_or(config.policy),
                allow_unisolated: function.allow_unisolated,
                vectors: None,
            };
            service
                .add_function(id, implementation, Box::new(window), policy)
                .map_err(|error| failed(error.to_string()))?;
            functions.recorded.push(RecordedFunction {
                id,
                report: FunctionReport {
                    id: match function.backend {
                        Backend::Software(_) => id.to_string(),
                        Backend::Vfio(address) => address.to_string(),
                    },
                    guest_address: id.to_string(),
                    backend: match function.backend {
                        Backend::Software(_) => "software",
                        Backend::Vfio(_) => "vfio",
                    },
                    vectors,
                    phases: Vec::new(),
                },
                device: device.clone(),
            });
            functions.all.push(MachineFunction { id, backend: function.backend, device });
        }
        functions.notes.extend(file_limit::too_small(files, limit));
        if let Some(vfio) = &functions.vfio {
            // SAFETY:
            // 1. The memory is kept by `Parts`, which drops it after the functions and `vfio`.
            // 2. Guest memory is accessed only through vm-memory, which takes no references.
            unsafe { vfio.map_memory(memory.as_ref()) }.map_err(|error| {
                MachineError::Function {
                    function: "vfio".to_owned(),
                    message: format!(
                        "{error}; the locked memory limit (ulimit -l) must be larger than the guest's memory"
                    ),
                }
            })?;
        }
        Ok(functions)
    }

    /// Opens what serves a function.
    fn open(&mut self, function: &FunctionConfig, vm: &VmFd) -> Result<Opened, String> {
        match function.backend {
            Backend::Software(options) => {
                let function = SoftwareFunction::new(options, host::page_size())
                    .map_err(|error| error.to_string())?;
                let device = function.device();
                Ok((Box::new(function), Some(device)))
            }
            Backend::Vfio(address) => {
                let remedy =
                    |error| format!("{error}\n`pvmsi probe {address}` says what to change");
                let sysfs = Backend::sysfs(address);
                if !sysfs.exists() {
                    return Err(remedy("this host has no such function".to_owned()));
                }
                let host = match self.vfio.take() {
                    Some(host) => host,
                    None => VfioHost::new(vm).map_err(|error| remedy(error.to_string()))?,
                };
                let host = self.vfio.insert(host);
                let function =
                    VfioFunction::open(host, &sysfs).map_err(|error| remedy(error.to_string()))?;
                Ok((Box::new(function), None))
            }
        }
    }
}

/// Configuration space of one function, for the placement of its BARs.
struct Access<'a> {
    service: &'a Service,
    id: FunctionId,
}

impl ConfigAccess for Access<'_> {
    fn read(&self, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        self.service.config_read(self.id, offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, offset: u64, value: u32) {
        self.service.config_write(self.id, offset, &value.to_le_bytes());
    }
}

/// Access to all functions, each with decoding and bus mastering off.
fn function_access<'a>(functions: &[MachineFunction], service: &'a Service) -> Vec<Access<'a>> {
    const COMMAND: u64 = 4;
    functions
        .iter()
        .map(|function| {
            service.config_write(function.id, COMMAND, &[0, 0]);
            Access { service, id: function.id }
        })
        .collect()
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

fn create_vm(kvm: &Kvm) -> Result<VmFd, MachineError> {
    for (capability, name) in [
        (Cap::Irqchip, "an interrupt controller in the kernel"),
        (Cap::Irqfd, "irqfds"),
        (Cap::IrqRouting, "interrupt routing"),
        (Cap::ImmediateExit, "immediate_exit (Linux 4.13)"),
    ] {
        if !kvm.check_extension(capability) {
            return Err(MachineError::Kvm {
                operation: "looking for what the machine needs of KVM",
                source: io::Error::other(format!("this KVM lacks {name}")),
            });
        }
    }
    let vm = loop {
        match kvm.create_vm() {
            // The kernel waits for others here and may be interrupted.
            Err(error) if error.errno() == libc::EINTR => {}
            other => break other.map_err(MachineError::kvm("KVM_CREATE_VM"))?,
        }
    };
    vm.set_tss_address(memory::KVM_TSS).map_err(MachineError::kvm("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip().map_err(MachineError::kvm("KVM_CREATE_IRQCHIP"))?;
    Ok(vm)
}

fn map_ram(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), MachineError> {
    for (slot, region) in (RAM_SLOT..).zip(memory.iter()) {
        let host = region
            .get_host_address(vm_memory::MemoryRegionAddress(0))
            .map_err(|error| MachineError::Memory(error.to_string()))?;
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: u64::try_from(host.addr())
                .map_err(|error| MachineError::Memory(error.to_string()))?,
        };
        // SAFETY: the region stays mapped as long as the VM's vCPUs exist: `Parts` drops the
        // memory last.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(MachineError::kvm("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

fn routes(vm: &Arc<VmFd>) -> KvmRoutes {
    let base = irqchip::base_routes();
    let entries = u32::try_from(vm.check_extension_int(Cap::IrqRouting)).unwrap_or(0);
    let taken = u32::try_from(base.len()).unwrap_or(0);
    let end = entries.saturating_sub(taken).saturating_add(PINS).max(PINS);
    KvmRoutes::new(Arc::clone(vm), base, PINS..end)
}

fn create_vcpus(kvm: &Kvm, vm: &VmFd, cpus: u8, bus: &Bus) -> Result<Vec<Vcpu>, MachineError> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(MachineError::kvm("KVM_GET_SUPPORTED_CPUID"))?;
    let (port, mmio) = match bus.doorbell {
        Some(Doorbell::Port) => (Some(DOORBELL_PORT), None),
        Some(Doorbell::Mmio) => (None, Some(memory::DOORBELL_PAGE)),
        None => (None, None),
    };
    let block = bus.service.cpuid_block(port, mmio);
    (0..cpus)
        .map(|index| {
            let vcpu =
                vm.create_vcpu(u64::from(index)).map_err(MachineError::kvm("KVM_CREATE_VCPU"))?;
            let cpuid =
                cpuid::for_vcpu(&supported, index, cpus, block.as_ref()).map_err(|error| {
                    MachineError::Kvm {
                        operation: "building CPUID",
                        source: io::Error::other(format!("{error:?}")),
                    }
                })?;
            vcpu.set_cpuid2(&cpuid).map_err(MachineError::kvm("KVM_SET_CPUID2"))?;
            Vcpu::new(index, vcpu)
        })
        .collect()
}

fn eventfd(source: io::Error) -> MachineError {
    MachineError::Kvm { operation: "creating an eventfd", source }
}

fn thread(source: io::Error) -> MachineError {
    MachineError::Kvm { operation: "starting a thread", source }
}

#[cfg(test)]
mod tests;
