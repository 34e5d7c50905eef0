//! All that a VMM adds to offer PV-MSI: set-up, and five places from which it calls the service.
//!
//! Needs `/dev/kvm`. The guest here is missing on purpose: everything else is what a VMM has anyway.

use std::error::Error;
use std::sync::Arc;

use kvm_ioctls::{Kvm, VcpuExit, VmFd};
use pvmsi_hypervisor::{
    FunctionHandle, FunctionPolicy, KvmRoutes, KvmWindow, MemorySlots, PciFunction, Platform,
    Router, Service, ServiceConfig, host_page_size,
};
use pvmsi_protocol::FunctionId;
use pvmsi_software::{SoftwareFunction, SoftwareOptions};
use vm_memory::{ByteValued, GuestAddress, GuestMemoryMmap};

/// The guest physical address of a register that the VMM has free. A VMM may have an I/O port (x86_64) or an SMCCC call (arm64, `SmcccFilter`) ring instead.
const DOORBELL: u64 = 0xfeb0_0000;

/// Set-up, once for the VM and once for each function.
fn set_up(vm: Arc<VmFd>) -> Result<(Service, FunctionHandle), Box<dyn Error>> {
    // GSIs 24 and up are ours; the pins of KVM's interrupt controllers stay as they are.
    let routes = Arc::new(KvmRoutes::new(Arc::clone(&vm), KvmRoutes::default_pins(24), 24..)?);
    let service = Service::new(ServiceConfig::new(PLATFORM), routes)
        .on_change(|change| println!("{}: {:?}", change.function, change.mode));
    // Memory slots from 100 on are ours.
    let slots = Arc::new(MemorySlots::new(vm, 100..200));
    // Or VfioFunction::open(&host, sysfs)?, or VfioFunction::new(&host, sysfs, device)? of the VMM's own.
    let function = SoftwareFunction::new(SoftwareOptions::default(), host_page_size())?;
    let window = KvmWindow::new(slots, function.layout(), function.mappings()?);
    let id = FunctionId::new(0, 0, 1, 0).ok_or("no such address")?;
    let policy = FunctionPolicy::default();
    let function = service.add_function(id, Box::new(function), Box::new(window), policy)?;
    Ok((service, function))
}

/// The guest finds the service by CPUID.
#[cfg(target_arch = "x86_64")]
fn advertise(kvm: &Kvm, service: &Service) -> Result<(), Box<dyn Error>> {
    let mut cpuid = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)?;
    let offer = service.offer(None, Some(DOORBELL));
    for (function, leaf) in offer.into_iter().flat_map(|offer| offer.leaves(0x4000_0100)) {
        let (eax, ebx, ecx, edx) = (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx);
        let entry =
            kvm_bindings::kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() };
        cpuid.push(entry)?;
    }
    Ok(())
}

/// The guest finds the service in its device tree.
#[cfg(target_arch = "aarch64")]
fn advertise(_kvm: &Kvm, _service: &Service) -> Result<(), Box<dyn Error>> {
    println!("pv-msi {{ compatible = \"pv-msi,pv-msi-1\"; reg = <0 {DOORBELL:#x} 0 0x1000>; }};");
    Ok(())
}

/// This VMM has not enabled `KVM_CAP_X2APIC_API`.
#[cfg(target_arch = "x86_64")]
const PLATFORM: Platform = Platform::X86_64 { extended_destination_ids: false };
#[cfg(target_arch = "aarch64")]
const PLATFORM: Platform = Platform::Aarch64 { its_doorbell: 0x0809_0040 };

/// In the vCPU loop: the doorbell, and accesses to BARs that exit. `false` when the exit is somebody else's.
/// A VMM with buses of its own needs no router: they call each handle's `bar_read` and `bar_write`,
/// and after each write of configuration space `bars` says where the function is.
fn handle_exit(
    service: &Service,
    router: &Router,
    memory: &GuestMemoryMmap,
    exit: VcpuExit<'_>,
) -> bool {
    match exit {
        VcpuExit::MmioWrite(DOORBELL, data) => {
            if let Some(page) = u32::from_slice(data) {
                service.doorbell(memory, *page).ok();
            }
            true
        }
        VcpuExit::MmioRead(address, data) => router.mmio_read(address, data),
        VcpuExit::MmioWrite(address, data) => router.mmio_write(address, data),
        _ => false,
    }
}

// The VMM's PCI bus forwards configuration space to the handle's `config_read` and
// `config_write` (or the router's); its reset button calls `service.reset`, its own
// way of resetting a function the handle's `reset`, and unplugging its `remove`.

fn main() -> Result<(), Box<dyn Error>> {
    let kvm = Kvm::new()?;
    let vm = Arc::new(kvm.create_vm()?);
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
    let (service, function) = set_up(vm)?;
    advertise(&kvm, &service)?;
    let router = service.router();
    handle_exit(&service, &router, &memory, VcpuExit::MmioRead(0xc000_0000, &mut [0; 4]));
    println!("{}: {:?}", function.id(), function.status()?);
    Ok(())
}
