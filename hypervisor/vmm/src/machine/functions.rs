//! The functions of a machine: opened, added to the service, and reached for the placement of their BARs.

use std::sync::Arc;

use kvm_ioctls::{Kvm, VmFd};
use pvmsi_hypervisor::{
    FunctionHandle, FunctionPolicy, FunctionStatus, HostPaths, Irqbalance, Isolation, KvmWindow,
    MOVES_WRITE_MASKS, MemorySlots, NotMappable, PciFunction, PinnedInterrupts, Policy, Service,
    VfioFunction, VfioHost,
};
use pvmsi_software::{SoftwareDevice, SoftwareFunction};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::vm::first_free_slot;
use crate::bars::ConfigAccess;
use crate::config::{Backend, FunctionConfig, MachineConfig};
use crate::error::MachineError;
use crate::measurements::FunctionReport;
use crate::measurements::RecordedFunction;
use crate::recovery::Watched;
use crate::{file_limit, host, pci};

/// A function of a machine.
#[derive(Clone)]
pub struct MachineFunction {
    /// Its handle, which knows its address in the guest.
    pub handle: FunctionHandle,
    /// What serves it.
    pub backend: Backend,
    /// The device side of a software function.
    pub device: Option<Arc<SoftwareDevice>>,
    /// What became of its interrupts, where it is a function of the host and they are pinned.
    pub pinned: Option<PinnedInterrupts>,
}

/// What serves a function, and the device behind it when that is in software.
struct Opened {
    function: Box<dyn PciFunction>,
    device: Option<Arc<SoftwareDevice>>,
    signals: Option<Signals>,
    pinned: Option<PinnedInterrupts>,
}

/// What the host's kernel signals of a real function.
struct Signals {
    /// It wants the function back.
    request: EventFd,
    /// The function has reported an error, where it can.
    errors: Option<EventFd>,
}

/// The functions of a machine while it is built.
pub(super) struct Functions {
    pub(super) all: Vec<MachineFunction>,
    pub(super) recorded: Vec<RecordedFunction>,
    pub(super) vfio: Option<VfioHost>,
    pub(super) notes: Vec<String>,
    /// Signalled when the host wants a function back.
    pub(super) requests: Vec<(FunctionHandle, EventFd)>,
    /// Real functions, which fail and sleep with the host.
    pub(super) watched: Vec<Watched>,
}

impl Functions {
    /// Opens all functions of a configuration and adds them to the service.
    ///
    /// # Errors
    /// Names the function that cannot be had.
    pub(super) fn add(
        config: &MachineConfig,
        kvm: &Kvm,
        vm: &Arc<VmFd>,
        memory: &Arc<GuestMemoryMmap>,
        service: &Service,
    ) -> Result<Self, MachineError> {
        let first = first_free_slot(memory);
        let count = u32::try_from(kvm.get_nr_memslots()).unwrap_or(0);
        let slots = Arc::new(MemorySlots::new(Arc::clone(vm), first..count.max(first)));
        let mut functions = Self {
            all: Vec::new(),
            recorded: Vec::new(),
            vfio: None,
            notes: Vec::new(),
            requests: Vec::new(),
            watched: Vec::new(),
        };
        let mut files = 0_u64;
        let limit = file_limit::raise();
        for (n, function) in config.functions.iter().enumerate() {
            let failed = |message: String| MachineError::Function {
                function: function.backend.to_string(),
                message,
            };
            let id = pci::address(n).ok_or_else(|| failed("the bus is full".to_owned()))?;
            let Opened { function: implementation, device, signals, pinned } =
                functions.open(function, vm, config.pin_interrupts).map_err(failed)?;
            let mappings = implementation.mappings().map_err(|error| failed(error.to_string()))?;
            let layout = implementation.layout();
            let vectors = layout.vectors();
            files = files.saturating_add(file_limit::needed_by(function.backend, vectors));
            let window = KvmWindow::new(Arc::clone(&slots), layout, mappings);
            let policy = FunctionPolicy {
                policy: function.policy.unwrap_or(config.policy),
                allow_unisolated: function.allow_unisolated,
                vectors: function.most_vectors,
            };
            let handle = service
                .add_function(id, implementation, Box::new(window), policy)
                .map_err(|error| failed(error.to_string()))?;
            let status = handle.status().map_err(|error| failed(error.to_string()))?;
            let FunctionStatus { isolation, not_mappable, .. } = status;
            let backend = function.backend;
            functions.notes.extend(stays_trapped(backend, isolation, not_mappable, policy));
            if let Some(Signals { request, errors }) = signals {
                functions.requests.push((handle.clone(), request));
                functions.watched.push((handle.clone(), errors));
            }
            functions.recorded.push(RecordedFunction {
                handle: handle.clone(),
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
                    service: None,
                    pinning: None,
                },
                device: device.clone(),
            });
            functions.all.push(MachineFunction { handle, backend, device, pinned });
        }
        functions.notes.extend(file_limit::too_small(files, limit));
        let balancer = Irqbalance::find(&HostPaths::default()).filter(|_| MOVES_WRITE_MASKS);
        functions.notes.extend(balancer.and_then(|balancer| moves_interrupts(config, &balancer)));
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
    fn open(
        &mut self,
        function: &FunctionConfig,
        vm: &VmFd,
        pin_interrupts: bool,
    ) -> Result<Opened, String> {
        match function.backend {
            Backend::Software(options) => {
                let function = SoftwareFunction::new(options, host::page_size())
                    .map_err(|error| error.to_string())?;
                let device = function.device();
                let function = Box::new(function);
                Ok(Opened { function, device: Some(device), signals: None, pinned: None })
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
                let mut function =
                    VfioFunction::open(host, &sysfs).map_err(|error| remedy(error.to_string()))?;
                let request =
                    function.watch_requests().map_err(|error| remedy(error.to_string()))?;
                let errors = function.watch_errors().map_err(|error| remedy(error.to_string()))?;
                let pinned =
                    (pin_interrupts && MOVES_WRITE_MASKS).then(|| function.pin_interrupts());
                let (function, signals) = (Box::new(function), Some(Signals { request, errors }));
                Ok(Opened { function, device: None, signals, pinned })
            }
        }
    }
}

/// Why a function of this host will stay trapped although the operator wants it direct, as far as that is known now.
fn stays_trapped(
    backend: Backend,
    isolation: Isolation,
    not_mappable: Option<NotMappable>,
    policy: FunctionPolicy,
) -> Vec<String> {
    let Backend::Vfio(address) = backend else { return Vec::new() };
    if policy.policy != Policy::Direct {
        return Vec::new();
    }
    let not_isolated = match isolation {
        Isolation::NotIsolated(why) if !policy.allow_unisolated => Some(why),
        _ => None,
    };
    let not_mappable = not_mappable.map(|why| format!("{why}; {}", why.remedy(address)));
    let stays = |why| format!("the vector table of {backend} stays trapped: {why}");
    not_isolated.into_iter().chain(not_mappable).map(stays).collect()
}

/// Who moves the interrupts of a table that may be direct.
fn moves_interrupts(config: &MachineConfig, balancer: &Irqbalance) -> Option<String> {
    let may_be_direct = config.functions.iter().any(|function| {
        let policy = function.policy.unwrap_or(Policy::Direct).min(config.policy);
        matches!(function.backend, Backend::Vfio(_)) && policy == Policy::Direct
    });
    (may_be_direct && !balancer.spares_driver("vfio-pci")).then(|| {
        format!(
            "irqbalance (process {}) moves the interrupts of functions, pinned or not; `pvmsi probe` says how to keep \
             them still",
            balancer.process
        )
    })
}

/// Configuration space of one function, for the placement of its BARs. One that the host has taken back answers as nobody does.
pub(super) struct Access<'a>(&'a FunctionHandle);

impl ConfigAccess for Access<'_> {
    fn read(&self, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        let _ = self.0.config_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, offset: u64, value: u32) {
        let _ = self.0.config_write(offset, &value.to_le_bytes());
    }
}

/// Access to all functions, each with decoding and bus mastering off.
pub(super) fn function_access(functions: &[MachineFunction]) -> Vec<Access<'_>> {
    const COMMAND: u64 = 4;
    functions
        .iter()
        .map(|function| {
            let _ = function.handle.config_write(COMMAND, &[0, 0]);
            Access(&function.handle)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use pvmsi_hypervisor::BarIndex;
    use pvmsi_software::SoftwareOptions;

    use super::*;

    #[test]
    fn a_run_says_why_a_table_stays_trapped() {
        let vfio = Backend::Vfio("0000:01:00.0".parse().unwrap());
        let note = |backend, isolation: &Isolation, policy| {
            let mut notes = stays_trapped(backend, isolation.clone(), None, policy);
            assert!(notes.len() <= 1);
            notes.pop()
        };
        let direct = FunctionPolicy::default();
        let open = Isolation::NotIsolated("the chips say so; switch it on".to_owned());
        let said = note(vfio, &open, direct).unwrap();
        assert!(said.contains("0000:01:00.0") && said.contains("the chips say so"), "{said}");
        assert_eq!(note(vfio, &Isolation::Isolated, direct), None);
        let trapped = FunctionPolicy { policy: Policy::Trapped, ..direct };
        assert_eq!(note(vfio, &open, trapped), None, "it was told to");
        let allowed = FunctionPolicy { allow_unisolated: true, ..direct };
        assert_eq!(note(vfio, &open, allowed), None);
        let software = Backend::Software(SoftwareOptions::default());
        assert_eq!(note(software, &open, direct), None, "its own option says so");
        let (bar, page_size) = (BarIndex(0), 0x1_0000);
        let small = Some(NotMappable::SmallBar { bar, size: 0x4000, page_size });
        let said = stays_trapped(vfio, Isolation::Isolated, small, direct).pop().unwrap();
        assert!(said.contains("BAR 0 of 16384 bytes"), "{said}");
        assert!(said.contains("pci=resource_alignment=16@0000:01:00.0"), "{said}");
        assert_eq!(stays_trapped(vfio, open, small, direct).len(), 2);
        assert!(stays_trapped(vfio, Isolation::Isolated, small, trapped).is_empty());
    }

    #[test]
    fn a_run_says_who_moves_the_interrupts_of_direct_tables() {
        let root = std::env::temp_dir().join(format!("pvmsi-balancer-{}", std::process::id()));
        let paths = HostPaths { procfs: root.clone(), ..HostPaths::default() };
        let balancer = |arguments: &[u8]| {
            std::fs::create_dir_all(root.join("812")).unwrap();
            std::fs::write(root.join("812/comm"), "irqbalance\n").unwrap();
            std::fs::write(root.join("812/cmdline"), arguments).unwrap();
            Irqbalance::find(&paths).unwrap()
        };
        let (free, told) = (balancer(b"irqbalance\0"), balancer(b"irqbalance\0--banmod=vfio\0"));
        std::fs::remove_dir_all(&root).unwrap();
        let config = |function: &str| {
            let functions = vec![function.parse().unwrap()];
            MachineConfig { functions, ..MachineConfig::new(Vec::new()) }
        };
        let said = moves_interrupts(&config("vfio:0000:01:00.0"), &free).unwrap();
        assert!(said.contains("process 812") && said.contains("pvmsi probe"), "{said}");
        assert_eq!(moves_interrupts(&config("vfio:0000:01:00.0"), &told), None);
        assert_eq!(moves_interrupts(&config("vfio:0000:01:00.0,pv-msi=trapped"), &free), None);
        assert_eq!(moves_interrupts(&config("software"), &free), None);
    }
}
