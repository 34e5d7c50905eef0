//! The suite on `pvmsi-hypervisor`: a VMM without processors.
//!
//! Service and software function are the real ones. What a VMM adds is here:
//! RAM, routes and memory map that record instead of talking to KVM, the
//! doorbell's width, and the choice between mapping and exit for an access.
//!
//! The library knows two kinds of isolation, confined and not:
//! [`Isolation::Unknown`] is the second, as its check of a real function has it.

mod mapping;
mod ram;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use pvmsi_hypervisor::{
    FunctionHandle, FunctionPolicy, PciFunction, Platform as HostPlatform, Policy as HostPolicy,
    Router, Service, ServiceConfig,
};
use pvmsi_protocol::{GuestMessage, ServiceBlock, SmcccStatus, VECTORS_MAX, VectorIndex};
use pvmsi_software::config::SELF_TEST;
use pvmsi_software::registers::{CONTROL, RESET, START, STARTED, entry_word};
use pvmsi_software::{SoftwareDevice, SoftwareFunction, SoftwareOptions};
use pvmsi_test_doubles::{RecordedRoutes, RecordedWindow, Step};
use vm_memory::{Bytes, GuestMemoryMmap, MmapRegion, VolatileMemory};

use super::{Counts, HostFactory, HostOptions, HostUnderTest, Isolation, Platform, Policy, Ram};
use mapping::Mapping;

/// Makes machines with our host half.
#[derive(Clone, Copy, Debug)]
pub struct OurHost;

/// The doorbell's I/O port, as the service block names it.
const PORT: u16 = 0x5650;
/// Bytes of configuration space in which the software function has registers.
const CONFIG_BYTES: usize = 256;
/// Page size of the machine.
const PAGE_BYTES: u64 = 4096;

struct OurMachine {
    options: HostOptions,
    service: Service,
    function: FunctionHandle,
    router: Router,
    offer: Option<ServiceBlock>,
    platform: Platform,
    routes: Arc<RecordedRoutes>,
    /// The step of the routes from now that is refused; 0 is none.
    refused: Arc<AtomicU32>,
    window: Arc<RecordedWindow>,
    mapping: Mapping,
    device: Arc<SoftwareDevice>,
    /// The function's BAR, as the device sees it.
    bar: Arc<MmapRegion>,
    ram: GuestMemoryMmap,
    exits: AtomicU64,
}

impl HostFactory for OurHost {
    fn create(&self, options: &HostOptions) -> Result<Box<dyn HostUnderTest>, String> {
        Ok(Box::new(OurMachine::new(options).map_err(|error| error.to_string())?))
    }
}

impl OurMachine {
    fn new(options: &HostOptions) -> Result<Self, Box<dyn std::error::Error>> {
        let refused = Arc::new(AtomicU32::new(0));
        let due = Arc::clone(&refused);
        let routes = RecordedRoutes::with_hook(options.routes.unwrap_or(4000), move |step| {
            if step != Step::Allocate && count_down(&due) == 1 {
                return Err(io::Error::other("asked to refuse"));
            }
            Ok(())
        });
        let routes = Arc::new(routes);
        let config = ServiceConfig {
            policy: match options.policy {
                Policy::Off => HostPolicy::Off,
                Policy::Trapped => HostPolicy::Trapped,
                Policy::Denied | Policy::Direct => HostPolicy::Direct,
            },
            vectors_per_call: options.vectors_per_call.unwrap_or(VECTORS_MAX),
            platform: match options.platform {
                None | Some(Platform::X86) => HostPlatform::X86_64 {
                    extended_destination_ids: options.extended_destination_ids.unwrap_or(true),
                },
                Some(Platform::Arm64 { its_doorbell }) => HostPlatform::Aarch64 { its_doorbell },
            },
        };
        let policy = FunctionPolicy {
            policy: if options.policy == Policy::Denied { HostPolicy::Off } else { config.policy },
            allow_unisolated: options.allow_unisolated,
            vectors: options.quota,
        };
        let service = Service::new(config, Arc::clone(&routes) as _);
        let isolated = options.isolation == Isolation::Confined;
        let software = SoftwareOptions { vectors: options.vectors, isolated };
        let function = SoftwareFunction::new(software, PAGE_BYTES)?;
        let device = function.device();
        if !options.readable {
            device.give_zeros();
        }
        let bar = function.mappings()?.pop().ok_or("a software function has one BAR")?.memory;
        let mapping = Mapping::new(function.layout(), options.pending_mappable);
        let window = RecordedWindow::with_hook(options.mappable, |_| Ok(()));
        let function =
            service.add_function(options.function, Box::new(function), window.share(), policy)?;
        Ok(Self {
            options: *options,
            offer: service.offer(Some(PORT), None),
            router: service.router(),
            service,
            function,
            platform: options.platform.unwrap_or(Platform::X86),
            routes,
            refused,
            window,
            mapping,
            device,
            bar,
            ram: ram::new()?,
            exits: AtomicU64::new(0),
        })
    }

    /// A machine on which this one's guest goes on.
    fn moved(&self) -> Result<Self, Box<dyn std::error::Error>> {
        let target = Self::new(&self.options)?;
        let (service, device) = (self.service.save()?, self.device.save());
        let mut config = [0; CONFIG_BYTES];
        self.function.config_read(0, &mut config)?;
        for (offset, word) in (0..).step_by(4).zip(config.chunks(4)) {
            target.function.config_write(offset, word)?;
        }
        target.device.restore(&device)?;
        target.service.restore(&service)?;
        target.service.resume()?;
        Ok(Self { ram: self.ram.clone(), ..target })
    }

    /// A word of the BAR, as the device sees it.
    fn load(&self, offset: u64) -> u32 {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        self.bar.as_volatile_slice().read_obj(at).unwrap_or(u32::MAX)
    }

    fn store(&self, offset: u64, value: u32) {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let _ = self.bar.as_volatile_slice().write_obj(value, at);
    }

    /// An access by the guest's mapping, at an offset of the BAR; `None` where it has none. The mapping does not change during the access.
    fn by_mapping<T>(&self, address: u64, access: impl FnOnce(usize) -> T) -> Option<T> {
        self.window.while_shown(|view| {
            usize::try_from(self.mapping.offset(view, address)?).ok().map(access)
        })
    }
}

impl HostUnderTest for OurMachine {
    fn ram(&self) -> &dyn Ram {
        &self.ram
    }

    fn ring(&self, page: u32) {
        // A buffer that cannot be answered is ignored, as a VMM does.
        let _ = self.service.doorbell(&self.ram, page);
    }

    fn ring_watched(&self, page: u32, watcher: &mut dyn FnMut(&dyn Ram)) -> bool {
        ram::watched(&self.ram, watcher, |memory| {
            let _ = self.service.doorbell(memory, page);
        })
    }

    fn doorbell_write(&self, data: &[u8]) {
        if let Ok(page) = data.try_into() {
            self.ring(u32::from_le_bytes(page));
        }
    }

    fn doorbell_read(&self, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn service_block(&self, leaf: u32) -> Option<[u32; 4]> {
        let leaves = self.offer?.leaves(0);
        let (_, leaf) = leaves.into_iter().find(|(number, _)| *number == leaf)?;
        Some([leaf.eax, leaf.ebx, leaf.ecx, leaf.edx])
    }

    fn smccc(&self, function: u32, x1: u64) -> Option<[u64; 4]> {
        let Platform::Arm64 { .. } = self.platform else { return None };
        let answer = self
            .offer
            .and_then(|offer| self.service.smccc(&self.ram, &offer, function, [x1, 0, 0]));
        Some(answer.unwrap_or([SmcccStatus::NOT_SUPPORTED.0, 0, 0, 0]))
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        // Ones where the function is gone.
        let _ = self.function.config_read(offset, data);
    }

    fn config_write(&self, offset: u64, data: &[u8]) {
        let _ = self.function.config_write(offset, data);
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        let bar = self.bar.as_volatile_slice();
        if self.by_mapping(address, |offset| bar.read_slice(data, offset)).is_some() {
            return;
        }
        self.exits.fetch_add(1, Ordering::SeqCst);
        if !self.router.mmio_read(address, data) {
            data.fill(0xff);
        }
    }

    fn mmio_write(&self, address: u64, data: &[u8]) {
        let bar = self.bar.as_volatile_slice();
        if self.by_mapping(address, |offset| bar.write_slice(data, offset)).is_some() {
            return;
        }
        self.exits.fetch_add(1, Ordering::SeqCst);
        self.router.mmio_write(address, data);
    }

    fn raise(&self, vector: u16) {
        self.device.raise(VectorIndex(vector));
    }

    fn start(&self) -> bool {
        self.store(CONTROL, START);
        self.device.run();
        self.load(CONTROL) == STARTED
    }

    fn reset_unseen(&self) {
        self.store(CONTROL, RESET);
        self.device.run();
    }

    fn reset_unseen_with_enable(&self) -> bool {
        self.config_write(SELF_TEST, &[0x40]);
        true
    }

    fn reset_function(&self) {
        let _ = self.function.reset();
    }

    fn reset_machine(&self) {
        let _ = self.service.reset();
    }

    fn revoke(&self) {
        let _ = self.function.revoke();
    }

    fn allow(&self) {
        let _ = self.function.allow();
    }

    fn fail(&self) {
        let _ = self.function.freeze();
    }

    fn recover(&self) {
        let _ = self.function.repair();
    }

    fn remove(&self) {
        let _ = self.function.remove();
    }

    fn move_elsewhere(&mut self) -> bool {
        self.moved().map(|target| *self = target).is_ok()
    }

    fn refuse_step(&self, step: u32) -> bool {
        self.refused.store(step, Ordering::SeqCst);
        true
    }

    fn refusal_is_due(&self) -> bool {
        self.refused.load(Ordering::SeqCst) != 0
    }

    fn interrupts(&self) -> Vec<GuestMessage> {
        while self.device.run() {}
        self.routes.delivered()
    }

    fn table_entry(&self, vector: u16) -> [u32; 4] {
        [0, 1, 2, 3].map(|word| self.load(entry_word(vector, word)))
    }

    fn foreign_messages(&self) -> u64 {
        self.device.blocked()
    }

    fn is_mapped(&self, address: u64) -> bool {
        self.by_mapping(address, |_| ()).is_some()
    }

    fn counts(&self) -> Counts {
        let counters = self.function.status().map(|status| status.counters);
        Counts {
            exits: self.exits.load(Ordering::SeqCst),
            routing_updates: self.routes.updates(),
            interrupt_setups: counters.map_or(0, |counters| counters.interrupt_setups),
            routes: self.routes.taken() as u64,
        }
    }
}

/// What the counter was; it ends at 0.
fn count_down(counter: &AtomicU32) -> u32 {
    let less = |count: u32| Some(count.saturating_sub(1));
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).unwrap_or_default()
}
