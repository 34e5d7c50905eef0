//! Moving a guest from one machine to another, in the order that the service asks for.
//!
//! For tests, and as an example: RAM is handed over, not copied. Functions
//! behind VFIO stay where they are, since their device state is the business of
//! their vendor's migration driver.

use std::sync::Arc;

use kvm_ioctls::Kvm;
use pvmsi_hypervisor::ServiceState;
use pvmsi_software::SoftwareDeviceState;
use vm_memory::GuestMemoryMmap;
use vm_superio::serial::SerialState;

use super::{Machine, Parts};
use crate::arch::{SavedInterrupts, SavedVcpu};
use crate::config::MachineConfig;
use crate::error::MachineError;
use crate::vcpu::Vcpu;

/// Bytes of a function's configuration space that are carried over: the software function has nothing beyond.
const CONFIG_BYTES: usize = 256;

/// A guest without a machine. What it has written to the serial port, its report and all counters stay behind.
pub struct SavedMachine {
    service: ServiceState,
    functions: Vec<SavedFunction>,
    vcpus: Vec<SavedVcpu>,
    interrupts: SavedInterrupts,
    config_address: u32,
    serial: SerialState,
    memory: Arc<GuestMemoryMmap>,
    memory_bytes: u64,
}

struct SavedFunction {
    config: [u8; CONFIG_BYTES],
    device: SoftwareDeviceState,
}

impl Machine {
    /// Takes the guest out of the machine, which ends. Implemented on x86_64, for software functions.
    ///
    /// # Errors
    /// When something of the guest cannot be moved, and KVM's. The guest is gone then.
    pub fn save(self) -> Result<SavedMachine, MachineError> {
        let Self {
            _threads: threads,
            _devices: devices,
            _requests: requests,
            _recovery: recovery,
            removed: _,
            parts,
        } = self;
        parts.control.pause(|| parts.kick());
        drop((devices, requests, recovery));
        let saved = parts.save();
        drop(threads);
        saved
    }

    /// A machine in which a guest goes on that [`save`](Self::save) has taken out of another one; paused. The configuration must be the other one's, except for policies.
    ///
    /// # Errors
    /// See [`MachineError`].
    pub fn restore(config: MachineConfig, saved: &SavedMachine) -> Result<Self, MachineError> {
        let same = (config.memory_bytes, usize::from(config.cpus), config.functions.len())
            == (saved.memory_bytes, saved.vcpus.len(), saved.functions.len());
        if !same {
            return Err(MachineError::Config(
                "the guest was saved with other memory, vCPUs or functions".to_owned(),
            ));
        }
        Self::build(config, Arc::clone(&saved.memory), |parts| parts.restore(saved))
    }
}

impl Parts {
    /// All vCPUs and devices are at rest.
    fn save(&self) -> Result<SavedMachine, MachineError> {
        let kvm = Kvm::new().map_err(MachineError::kvm_unavailable)?;
        // Before all that KVM keeps: it ends what is under way to there.
        let service = self.bus.service.save()?;
        let functions = self.functions.iter().map(|function| {
            let device = function.device.as_ref().ok_or_else(|| MachineError::Function {
                function: function.backend.to_string(),
                message: "its device state cannot be moved".to_owned(),
            })?;
            let mut config = [0; CONFIG_BYTES];
            function.handle.config_read(0, &mut config)?;
            Ok(SavedFunction { config, device: device.save() })
        });
        Ok(SavedMachine {
            functions: functions.collect::<Result<_, MachineError>>()?,
            vcpus: self.vcpus.iter().map(|vcpu| vcpu.save(&kvm)).collect::<Result<_, _>>()?,
            interrupts: self.interrupts.save(&self.vm)?,
            config_address: self.bus.pci.address(),
            serial: self.bus.serial.save(),
            memory: Arc::clone(&self.memory),
            memory_bytes: self.guest.memory_bytes,
            service,
        })
    }

    /// In the place of power-on.
    fn restore(&self, saved: &SavedMachine) -> Result<(), MachineError> {
        for (function, saved) in self.functions.iter().zip(&saved.functions) {
            let failed = |message: String| MachineError::Function {
                function: function.backend.to_string(),
                message,
            };
            for (offset, word) in (0..).step_by(4).zip(saved.config.chunks(4)) {
                function.handle.config_write(offset, word)?;
            }
            let device = function.device.as_ref();
            let device = device.ok_or_else(|| failed("it is no software function".to_owned()))?;
            device.restore(&saved.device).map_err(|error| failed(error.to_string()))?;
        }
        self.bus
            .service
            .restore(&saved.service)
            .map_err(|error| MachineError::Config(error.to_string()))?;
        self.vcpus
            .iter()
            .zip(&saved.vcpus)
            .try_for_each(|(vcpu, saved): (&Vcpu, _)| vcpu.restore(saved))?;
        self.interrupts.restore(&self.vm, &saved.interrupts)?;
        self.bus.pci.set_address(saved.config_address);
        self.bus.serial.restore(&saved.serial).map_err(super::eventfd)
    }
}
