//! What was counted: the items of `linux[]` in a report of schema `pvmsi.report/1`.

use serde::{Deserialize, Serialize};

/// What an event has cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinuxEvent {
    /// Release of the guest's kernel.
    pub guest_kernel: String,
    /// Release of the host's kernel.
    pub host_kernel: String,
    /// `x86_64` or `aarch64`.
    pub architecture: String,
    /// Of the host's kernel, in bytes: what the trap around a table takes with it.
    pub page_size: u64,
    /// Who ran the guest.
    pub vmm: Vmm,
    /// How far PV-MSI went; null for others than `pvmsi`.
    pub policy: Option<Policy>,
    /// Whether the guest had loaded `pvmsi.ko`.
    pub module: bool,
    /// Whose driver it was.
    pub function: Function,
    /// What happened.
    pub event: Event,
    /// How many times, in these figures.
    pub count: u64,
    /// Exits for accesses on the pages of the vector table.
    pub table_exits: u64,
    /// Those of them that wrote a message: Linux writes an entry once or twice for a move, as it gets
    /// another vector number of the processor or the same.
    pub message_writes: u64,
    /// Exits for what the guest did: without the host's interrupts, waiting, and the console.
    pub exits: u64,
    /// Those of them that went to the VMM; the kernel served the others.
    pub vmm_exits: u64,
    /// `VFIO_DEVICE_SET_IRQS`.
    pub set_irqs: u64,
    /// `KVM_SET_GSI_ROUTING`.
    pub routing_updates: u64,
    /// `KVM_IRQFD`, attaching and detaching.
    pub irqfds: u64,
    /// Exits of the guest's calls of PV-MSI: rings of the doorbell.
    pub doorbells: u64,
    /// Calls of PV-MSI; null where they cannot be known.
    pub configures: Option<u64>,
    /// The same.
    pub updates: Option<u64>,
    /// Interrupts that did not arrive; null where they cannot be known.
    pub lost: Option<u64>,
    /// As the guest's clock has it; of `bind`: from loading the driver to the first verified block.
    pub seconds: f64,
}

/// A virtual machine monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vmm {
    /// This project's.
    Pvmsi,
    /// Debian's QEMU.
    Qemu,
}

/// How far PV-MSI goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// No service.
    Off,
    /// Calls, no mapping.
    Trapped,
    /// Calls and a mapped table.
    Direct,
}

/// A PCI function, by its driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Function {
    /// A disk.
    Nvme,
    /// A network function.
    Igb,
}

/// Something that a Linux guest does with a function, or that is done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// Its driver takes it.
    Bind,
    /// Its driver lets it go.
    Unbind,
    /// An interrupt moves to another processor.
    Affinity,
    /// A vector is masked and unmasked.
    MaskUnmask,
    /// The driver disables it, and enables it again.
    DisableEnable,
    /// Blocks are read and verified.
    Read,
    /// A reset through sysfs.
    Reset,
    /// Suspend to idle, woken through the console.
    Suspend,
    /// A processor goes and comes.
    CpuOffOn,
    /// The host takes it back.
    Unplug,
    /// The module is unloaded and loaded.
    ModuleReload,
    /// Another kernel, without the module, takes over.
    Kexec,
}

impl Vmm {
    /// As in a report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pvmsi => "pvmsi",
            Self::Qemu => "qemu",
        }
    }
}

impl Policy {
    /// As in a report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Trapped => "trapped",
            Self::Direct => "direct",
        }
    }
}

impl Function {
    /// As in a report; the driver's name as well.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nvme => "nvme",
            Self::Igb => "igb",
        }
    }
}

impl Event {
    /// As in a report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Unbind => "unbind",
            Self::Affinity => "affinity",
            Self::MaskUnmask => "mask_unmask",
            Self::DisableEnable => "disable_enable",
            Self::Read => "read",
            Self::Reset => "reset",
            Self::Suspend => "suspend",
            Self::CpuOffOn => "cpu_off_on",
            Self::Unplug => "unplug",
            Self::ModuleReload => "module_reload",
            Self::Kexec => "kexec",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn event() -> LinuxEvent {
        LinuxEvent {
            guest_kernel: "6.12.1".to_owned(),
            host_kernel: "6.12.2".to_owned(),
            architecture: "x86_64".to_owned(),
            page_size: 4096,
            vmm: Vmm::Qemu,
            policy: None,
            module: false,
            function: Function::Nvme,
            event: Event::Bind,
            count: 1,
            table_exits: 194,
            exits: 2000,
            message_writes: 40,
            vmm_exits: 700,
            set_irqs: 19,
            routing_updates: 4,
            irqfds: 8,
            doorbells: 0,
            configures: None,
            updates: None,
            lost: Some(0),
            seconds: 0.5,
        }
    }

    #[test]
    fn the_names_in_reports_are_kept() {
        assert_eq!(
            serde_json::to_value(event()).unwrap(),
            json!({
                "guest_kernel": "6.12.1", "host_kernel": "6.12.2", "architecture": "x86_64",
                "page_size": 4096, "vmm": "qemu", "policy": null, "module": false,
                "function": "nvme", "event": "bind", "count": 1, "table_exits": 194, "message_writes": 40,
                "exits": 2000, "vmm_exits": 700, "set_irqs": 19, "routing_updates": 4, "irqfds": 8, "doorbells": 0,
                "configures": null, "updates": null, "lost": 0, "seconds": 0.5,
            })
        );
    }

    #[test]
    fn names_and_what_is_written_agree() {
        let written = |value: Value| value.as_str().unwrap().to_owned();
        for event in [
            Event::Bind,
            Event::Unbind,
            Event::Affinity,
            Event::MaskUnmask,
            Event::DisableEnable,
            Event::Read,
            Event::Reset,
            Event::Suspend,
            Event::CpuOffOn,
            Event::Unplug,
            Event::ModuleReload,
            Event::Kexec,
        ] {
            assert_eq!(written(serde_json::to_value(event).unwrap()), event.name());
        }
        for vmm in [Vmm::Pvmsi, Vmm::Qemu] {
            assert_eq!(written(serde_json::to_value(vmm).unwrap()), vmm.name());
        }
        for policy in [Policy::Off, Policy::Trapped, Policy::Direct] {
            assert_eq!(written(serde_json::to_value(policy).unwrap()), policy.name());
        }
        for function in [Function::Nvme, Function::Igb] {
            assert_eq!(written(serde_json::to_value(function).unwrap()), function.name());
        }
    }

    #[test]
    fn unknown_fields_and_names_are_refused() {
        let good = serde_json::to_value(event()).unwrap();
        assert_eq!(serde_json::from_value::<LinuxEvent>(good.clone()).unwrap(), event());
        for (field, value) in [("more", json!(1)), ("event", json!("boot")), ("vmm", json!("x"))] {
            let mut bad = good.clone();
            *bad.as_object_mut().unwrap().entry(field).or_insert(Value::Null) = value;
            assert!(serde_json::from_value::<LinuxEvent>(bad).is_err(), "{field}");
        }
    }
}
