//! Where messages go whose destination ids have more than 8 bits.
//!
//! The first VMs have processors that never run: where a message has gone is read in their local APICs.

#![cfg(target_arch = "x86_64")]

use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_X2APIC_API, KVM_MAX_CPUID_ENTRIES, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
    KVM_X2APIC_API_USE_32BIT_IDS, kvm_enable_cap, kvm_lapic_state, kvm_msi,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use pvmsi::MachineConfig;
use pvmsi_hypervisor::vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use pvmsi_hypervisor::{
    BarIndex, FunctionHandle, FunctionPolicy, KvmRoutes, Platform, Policy, Route, RouteChange,
    Routes, Service, ServiceConfig,
};
use pvmsi_kvm_tests::{
    Bench, ENABLE, FUNCTION, MSIX_CONTROL, PATIENCE, TABLE, config, interrupt, message_to,
};
use pvmsi_protocol::{
    BUFFER_MAX, CallId, ConfigureRequest, Features, GuestMessage, Header, Kind, Leaf, Sequence,
    ServiceBlock, Status, VectorIndex, VectorSetup,
};
use pvmsi_software::{SoftwareDevice, SoftwareFunction, SoftwareOptions};
use pvmsi_test_doubles::IdleWindow;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Local APIC ids. Those above 255 have the low 8 bits of one that is not.
const IDS: [u32; 7] = [0x00, 0x01, 0x09, 0xa1, 0xff, 0x101, 0x2a1];
const ALL: &[u32] = &IDS;
const PINS: u32 = 24;
/// What a VMM enables of `KVM_CAP_X2APIC_API`.
const BOTH: u32 = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;

/// What a guest says, and whom it means.
const MESSAGES: [(u64, &[u32], &str); 15] = [
    (0xfee0_1000, &[0x01], "8 bits"),
    (0xfeea_1000, &[0xa1], "8 bits"),
    (0xfee0_1020, &[0x101], "bit 8, extended destination id"),
    (0xfeea_1040, &[0x2a1], "bit 9, extended destination id"),
    (0xfeea_1fe0, &[], "nobody, though 8 bits are somebody's"),
    (0x0000_0100_fee0_1000, &[0x101], "bit 8, x2APIC format"),
    (0x0000_0200_feea_1000, &[0x2a1], "bit 9, x2APIC format"),
    (0x8000_0000_fee0_1000, &[], "nobody, x2APIC format"),
    (0xfee0_1028, &[0x101], "with redirection hint"),
    (0xfee0_2004, &[0x01], "logical: bit 1 of cluster 0"),
    (0xfee0_0044, &[0x09], "logical: bit 9 of cluster 0, extended destination id"),
    (0x0010_0000_fee0_2004, &[0x101], "logical: bit 1 of cluster 16, x2APIC format"),
    (0xfeef_f000, &[0xff], "255 is one of many"),
    (0xfeef_f004, &[0x00, 0x01], "logical: bits 0 to 7 of cluster 0"),
    (0xffff_ff00_feef_f000, ALL, "all"),
];

/// A VM whose processors are in x2APIC mode and switched on.
struct Processors {
    vm: Arc<VmFd>,
    vcpus: Vec<VcpuFd>,
}

impl Processors {
    fn new(x2apic_api: u32) -> Self {
        let kvm = Kvm::new().unwrap();
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let args = [u64::from(x2apic_api), 0, 0, 0];
        let enable = kvm_enable_cap { cap: KVM_CAP_X2APIC_API, args, ..Default::default() };
        vm.enable_cap(&enable).unwrap();
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        let vcpus = IDS.map(|id| {
            let vcpu = vm.create_vcpu(id.into()).unwrap();
            vcpu.set_cpuid2(&cpuid).unwrap();
            let mut sregs = vcpu.get_sregs().unwrap();
            // Enabled, in x2APIC mode.
            sregs.apic_base |= 1 << 11 | 1 << 10;
            vcpu.set_sregs(&sregs).unwrap();
            let mut lapic = vcpu.get_lapic().unwrap();
            // Spurious interrupt vector register: the software enable.
            lapic.regs[0xf1] |= 1;
            vcpu.set_lapic(&lapic).unwrap();
            vcpu
        });
        Self { vm: Arc::new(vm), vcpus: vcpus.into() }
    }

    /// The processors at which an interrupt vector waits.
    fn waiting(&self, vector: u8) -> Vec<u32> {
        let waits = |vcpu: &VcpuFd| requested(&vcpu.get_lapic().unwrap(), vector);
        IDS.into_iter().zip(&self.vcpus).filter(|(_, vcpu)| waits(vcpu)).map(|(id, _)| id).collect()
    }
}

/// A bit of the interrupt request register: eight registers of 32 bits, 16 bytes apart.
fn requested(lapic: &kvm_lapic_state, vector: u8) -> bool {
    let vector = usize::from(vector);
    let byte = 0x200 + vector / 32 * 16 + vector % 32 / 8;
    lapic.regs[byte].to_ne_bytes()[0] & 1 << (vector % 8) != 0
}

/// Each message has an interrupt vector of its own.
fn messages() -> impl Iterator<Item = (GuestMessage, u8, &'static [u32], &'static str)> {
    (0x40..).zip(MESSAGES).map(|(vector, (address, meant, what))| {
        (GuestMessage { address, data: u32::from(vector) }, vector, meant, what)
    })
}

#[test]
fn a_route_leads_to_the_whole_id() {
    let processors = Processors::new(BOTH);
    let vm = Arc::clone(&processors.vm);
    let routes = KvmRoutes::new(vm, KvmRoutes::default_pins(PINS), PINS..).unwrap();
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let gsi = routes.allocate(1).unwrap()[0];
    for (message, vector, meant, what) in messages() {
        let route = Route { message, device_id: None };
        routes.install(&[RouteChange { gsi, route }]).unwrap();
        routes.attach(&event, gsi).unwrap();
        event.write(1).unwrap();
        // Waits for what is under way.
        routes.detach(&event, gsi).unwrap();
        assert_eq!(processors.waiting(vector), meant, "{what}: {message:x?}");
    }
}

/// What the service relies on: a VMM that has not enabled all of it must not say so.
#[test]
fn kvm_itself_reads_no_more_than_it_was_told_to() {
    let sent = |x2apic_api, address: u64| {
        let processors = Processors::new(x2apic_api);
        let [a0, a1, a2, a3, a4, a5, a6, a7] = address.to_le_bytes();
        let message = kvm_msi {
            address_lo: u32::from_le_bytes([a0, a1, a2, a3]),
            address_hi: u32::from_le_bytes([a4, a5, a6, a7]),
            data: 0x40,
            ..Default::default()
        };
        processors.vm.signal_msi(message).unwrap();
        processors.waiting(0x40)
    };
    let (extended, x2apic, all) = (0xfee0_1020, 0x0000_0100_fee0_1000, 0xffff_ff00_feef_f000);
    assert_eq!(sent(0, extended), [0x01], "the wrong one");
    assert_eq!(sent(0, x2apic), [0x01], "the wrong one");
    assert_eq!(sent(BOTH, extended), [0x01], "the wrong one: these bits are the VMM's to decode");
    assert_eq!(sent(BOTH, x2apic), [0x101]);
    let ids_alone = KVM_X2APIC_API_USE_32BIT_IDS;
    assert_eq!(sent(ids_alone, 0xfeef_f000), ALL, "id 255");
    assert_eq!(sent(ids_alone, all), [0; 0], "all of them");
    assert_eq!(sent(BOTH, all), ALL);
}

/// A function on this VM; its table is always trapped.
fn function(
    processors: &Processors,
    platform: Platform,
) -> (Service, FunctionHandle, Arc<SoftwareDevice>) {
    let vm = Arc::clone(&processors.vm);
    let routes = KvmRoutes::new(vm, KvmRoutes::default_pins(PINS), PINS..).unwrap();
    let service = Service::new(ServiceConfig::new(platform), Arc::new(routes));
    let vectors = u16::try_from(MESSAGES.len()).unwrap();
    let software =
        SoftwareFunction::new(SoftwareOptions { vectors, isolated: true }, 4096).unwrap();
    let device = software.device();
    let (window, policy) = (Box::new(IdleWindow::new(false)), FunctionPolicy::default());
    let function = service.add_function(FUNCTION, Box::new(software), window, policy).unwrap();
    function.config_write(0x10, &0xc000_0000_u32.to_le_bytes()).unwrap();
    function.config_write(0x04, &[6, 0]).unwrap();
    function.config_write(MSIX_CONTROL, &ENABLE.to_le_bytes()).unwrap();
    (service, function, device)
}

/// What a guest does that never calls.
fn program_all(function: &FunctionHandle) {
    for (offset, (GuestMessage { address, data }, ..)) in (TABLE..).step_by(16).zip(messages()) {
        let write = |offset, value: u64| {
            function.bar_write(BarIndex(0), offset, &value.to_le_bytes()).unwrap();
        };
        write(offset, address);
        write(offset + 8, data.into());
    }
}

/// An event of each vector; all have arrived then.
fn raise_all(function: &FunctionHandle, device: &SoftwareDevice) {
    for (vector, _) in (0..).zip(MESSAGES) {
        device.raise(VectorIndex(vector));
    }
    // Waits for what is under way.
    function.remove().unwrap();
}

fn assert_all_where_meant(processors: &Processors) {
    for (message, vector, meant, what) in messages() {
        assert_eq!(processors.waiting(vector), meant, "{what}: {message:x?}");
    }
}

#[test]
fn events_reach_the_processors_that_a_call_names() {
    let processors = Processors::new(BOTH);
    let platform = Platform::X86_64 { extended_destination_ids: true };
    let (service, function, device) = function(&processors, platform);
    let setups =
        messages().map(|(message, ..)| VectorSetup { message: Some(message), masked: false });
    let setups: Vec<_> = setups.collect();
    let (mut body, count) = ([0; 1024], u16::try_from(setups.len()).unwrap());
    let start = Sequence::START;
    let used = ConfigureRequest::encode(Kind::MsiX, count, start, setups.into_iter(), &mut body);
    let body = &body[..used.unwrap()];
    let header = Header::request(CallId::Configure, FUNCTION, BUFFER_MAX, body.len()).unwrap();
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
    memory.write_slice(&header.to_bytes(), GuestAddress(0x1_0000)).unwrap();
    memory.write_slice(body, GuestAddress(0x1_0020)).unwrap();
    service.doorbell(&memory, 0x10).unwrap();
    let mut answer = [0; Header::SIZE];
    memory.read_slice(&mut answer, GuestAddress(0x1_0000)).unwrap();
    assert_eq!(Header::from_bytes(&answer).status, Status::SUCCESS);
    raise_all(&function, &device);
    assert_all_where_meant(&processors);
}

#[test]
fn events_reach_the_processors_that_the_standard_table_names() {
    let processors = Processors::new(BOTH);
    let platform = Platform::X86_64 { extended_destination_ids: true };
    let (_service, function, device) = function(&processors, platform);
    program_all(&function);
    raise_all(&function, &device);
    assert_all_where_meant(&processors);
}

/// A VMM that says nothing of 32-bit ids: no event goes where its message does not say.
#[test]
fn without_the_capability_no_event_goes_elsewhere() {
    let processors = Processors::new(0);
    let platform = Platform::X86_64 { extended_destination_ids: false };
    let (_service, function, device) = function(&processors, platform);
    program_all(&function);
    raise_all(&function, &device);
    for (message, vector, meant, what) in messages() {
        let extended = message.address & 0xffff_ff00_0000_0fe0 != 0;
        let meant = match message.address {
            _ if extended => &[],
            // The quirk is there.
            0xfeef_f000 | 0xfeef_f004 => ALL,
            _ => meant,
        };
        assert_eq!(processors.waiting(vector), meant, "{what}: {message:x?}");
    }
}

/// The reference machine takes such ids, and has no such processors. Its I/O APIC, which is KVM's, knows 8 bits alone: KVM's own feature, by which a guest would use more for it as well, is not shown.
#[test]
fn the_reference_machine_takes_them() {
    let bench = Bench::start(MachineConfig { cpus: 2, ..config(4, Policy::Direct) });
    let leaf = |leaf| {
        let [eax, ebx, ecx, edx] = bench.puppet.cpuid(0, leaf, 0).unwrap();
        Leaf { eax, ebx, ecx, edx }
    };
    let block = ServiceBlock::find_by_cpuid(leaf).unwrap();
    assert!(block.features.contains(Features::EXTENDED_DESTINATION_ID));
    const KVM_FEATURE_MSI_EXT_DEST_ID: u32 = 1 << 15;
    assert_eq!(leaf(0x4000_0001).eax & KVM_FEATURE_MSI_EXT_DEST_ID, 0);
    bench.control(ENABLE);
    let data = message_to(1, 0).data;
    let beyond = [0xfee0_1020, 0x0000_0100_fee0_1000].map(|address| GuestMessage { address, data });
    for message in beyond {
        bench.program(0, message);
        bench.quiet(|| bench.raise(0));
    }
    bench.configure(1);
    for message in beyond {
        bench.update(0, message).unwrap();
        bench.quiet(|| bench.raise(0));
    }
    bench.update(0, message_to(1, 0)).unwrap();
    bench.raise(0);
    bench.puppet.wait_count(1, interrupt(0), 1, PATIENCE).unwrap();
}
