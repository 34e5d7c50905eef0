//! The service's own locks, and the device's, in the orders in which threads can take them.
//!
//! Compiled with `--cfg pvmsi_shuttle` only, which `cargo xtask model` does. A
//! schedule in which threads wait for each other for ever fails the test.

#![cfg(pvmsi_shuttle)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use pvmsi_hypervisor::{
    FunctionHandle, FunctionPolicy, PciFunction, Platform, Router, Service, ServiceConfig, View,
};
use pvmsi_protocol::{
    CallId, ConfigureAnswer, ConfigureRequest, FunctionId, GuestMessage, Header, Kind, Sequence,
    Status, TableMode, VectorIndex, VectorSetup,
};
use pvmsi_software::config::{DEVICE_CONTROL, MSIX_CONTROL, POWER_CONTROL as POWER};
use pvmsi_software::registers::entry_word;
use pvmsi_software::{SoftwareDevice, SoftwareFunction, SoftwareOptions};
use pvmsi_test_doubles::{RecordedRoutes, RecordedWindow};
use shuttle::thread;
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, MmapRegion, VolatileMemory};

const FUNCTION: FunctionId = FunctionId(8);
const PLATFORM: Platform = Platform::X86_64 { extended_destination_ids: false };
const SCHEDULES: usize = 2000;
const VECTORS: u16 = 2;
const BAR: u64 = 0xc000_0000;
const ELSEWHERE: u64 = 0xd000_0000;
const COMMAND: u64 = 0x04;
const BAR_REGISTER: u64 = 0x10;

fn message(vector: u16) -> GuestMessage {
    GuestMessage { address: 0xfee0_0000, data: 0x40 + u32::from(vector) }
}

struct Machine {
    service: Service,
    function: FunctionHandle,
    router: Router,
    /// Each call is a place where other threads can run, as is one of the window.
    routes: Arc<RecordedRoutes>,
    window: Arc<RecordedWindow>,
    device: Arc<SoftwareDevice>,
    bar: Arc<MmapRegion>,
    memory: GuestMemoryMmap,
}

impl Machine {
    fn new() -> Arc<Self> {
        let routes = Arc::new(RecordedRoutes::new(100));
        let window = RecordedWindow::new();
        let service = Service::new(ServiceConfig::new(PLATFORM), Arc::clone(&routes) as _);
        let options = SoftwareOptions { vectors: VECTORS, isolated: true };
        let function = SoftwareFunction::new(options, 4096).unwrap();
        let device = function.device();
        let bar = function.mappings().unwrap().remove(0).memory;
        let policy = FunctionPolicy::default();
        let function =
            service.add_function(FUNCTION, Box::new(function), window.share(), policy).unwrap();
        let router = service.router();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
        let machine = Self { service, function, router, routes, window, device, bar, memory };
        machine.config_write(BAR_REGISTER, &0xc000_0000_u32.to_le_bytes());
        machine.config_write(COMMAND, &[2, 0]);
        machine.config_write(MSIX_CONTROL + 1, &[0x80]);
        Arc::new(machine)
    }

    fn config_write(&self, offset: u64, data: &[u8]) {
        self.router.config_write(FUNCTION, offset, data);
    }

    /// Both vectors, unmasked; the events that were reported, or `None` where there is no function any more. Each caller has a page of its own.
    fn configure(&self, page: u32) -> Option<Vec<bool>> {
        let setups = (0..VECTORS).map(|v| VectorSetup { message: Some(message(v)), masked: false });
        let mut body = [0; 256];
        let used =
            ConfigureRequest::encode(Kind::MsiX, VECTORS, Sequence::START, setups, &mut body)
                .unwrap();
        let header = Header::request(CallId::Configure, FUNCTION, 512, used).unwrap();
        let start = u64::from(page) << 12;
        self.memory.write_slice(&header.to_bytes(), GuestAddress(start)).unwrap();
        self.memory.write_slice(&body[..used], GuestAddress(start + 32)).unwrap();
        self.service.doorbell(&self.memory, page).unwrap();
        let mut bytes = [0; Header::SIZE];
        self.memory.read_slice(&mut bytes, GuestAddress(start)).unwrap();
        let header = Header::from_bytes(&bytes);
        if header.status == Status::NO_SUCH_FUNCTION {
            return None;
        }
        assert_eq!(header.status, Status::SUCCESS);
        let mut body = vec![0; usize::try_from(header.body_length).unwrap()];
        self.memory.read_slice(&mut body, GuestAddress(start + 32)).unwrap();
        let answer = ConfigureAnswer::decode(&body).unwrap();
        assert_eq!(answer.mode == TableMode::Direct, answer.reasons.is_empty());
        Some(answer.vectors.iter().map(|vector| vector.unwrap().pending).collect())
    }

    /// Writes a mask bit by the mapping or by an exit, as the memory map says at that moment. The map does not change during the store.
    fn set_mask(&self, vector: u16, masked: bool) {
        let at = entry_word(vector, 3);
        let value = u32::from(masked);
        let stored = self.window.while_shown(|view| {
            let direct = view.table == TableMode::Direct;
            if direct {
                let at = usize::try_from(at).unwrap();
                self.bar.as_volatile_slice().write_obj(value, at).unwrap();
            }
            direct
        });
        if !stored {
            self.router.mmio_write(BAR + at, &value.to_le_bytes());
        }
    }

    fn raise(&self, vector: u16) {
        assert!(self.device.raise(VectorIndex(vector)));
    }

    /// How often the vectors' messages were delivered, now that all threads are done.
    fn delivered(&self) -> [usize; 2] {
        while self.device.run() {}
        let delivered = self.routes.delivered();
        [0, 1].map(|vector| delivered.iter().filter(|&one| *one == message(vector)).count())
    }

    fn has_lost_its_function(&self) {
        assert_eq!(self.window.now(), View::NOTHING);
        assert!(!self.router.mmio_read(BAR, &mut [0; 4]));
        let routes = &self.routes;
        assert_eq!((routes.taken(), routes.routed(), routes.attached()), (0, 0, 0));
    }

    /// Mode, reasons, memory map and decoded ranges agree.
    fn is_consistent(&self) {
        let status = self.function.status().unwrap();
        assert_eq!(status.mode == TableMode::Direct, status.reasons.is_empty());
        let view = self.window.now();
        let mut command = [0; 2];
        self.router.config_read(FUNCTION, COMMAND, &mut command);
        let mut power = [0];
        self.router.config_read(FUNCTION, POWER, &mut power);
        let mut bar = [0; 4];
        self.router.config_read(FUNCTION, BAR_REGISTER, &mut bar);
        let answers = command[0] & 2 != 0 && power[0] & 3 == 0;
        let place = Some(u64::from(u32::from_le_bytes(bar))).filter(|&bar| answers && bar != 0);
        assert_eq!(view.bars[0].map(|address| address.0), place);
        if place.is_some() {
            assert_eq!(view.table, status.mode);
        }
        for address in [BAR, ELSEWHERE] {
            let found = self.router.mmio_read(address, &mut [0; 4]);
            assert_eq!(found, place == Some(address), "{address:#x}");
        }
    }
}

/// Runs threads of a machine in many orders, and looks at what has become of it.
fn in_many_orders(threads: &'static [fn(&Machine)], look: fn(&Machine)) {
    let mut config = shuttle::Config::new();
    config.stack_size = 0x4_0000;
    let scheduler = shuttle::scheduler::PctScheduler::new(3, SCHEDULES / 2);
    let random = shuttle::scheduler::RandomScheduler::new(SCHEDULES / 2);
    let run = move || {
        let machine = Machine::new();
        let handles: Vec<_> = threads
            .iter()
            .map(|&act| {
                let machine = Arc::clone(&machine);
                thread::spawn(move || act(&machine))
            })
            .collect();
        for handle in handles {
            handle.join().unwrap();
        }
        look(&machine);
    };
    shuttle::Runner::new(scheduler, config.clone()).run(run);
    shuttle::Runner::new(random, config).run(run);
}

/// Unmasked by then: each of the two events is delivered exactly once.
fn both_events_arrive(machine: &Machine) {
    machine.is_consistent();
    assert_eq!(machine.delivered(), [1, 1]);
}

fn raise_both(machine: &Machine) {
    machine.raise(0);
    machine.raise(1);
}

#[test]
fn events_masking_and_a_revoke() {
    in_many_orders(
        &[
            |machine| {
                assert_eq!(machine.configure(0), Some(vec![false; 2]));
                machine.function.revoke().unwrap();
                machine.function.allow().unwrap();
            },
            |machine| {
                machine.set_mask(0, true);
                machine.set_mask(0, false);
            },
            raise_both,
        ],
        |machine| {
            machine.set_mask(0, false);
            both_events_arrive(machine);
        },
    );
}

#[test]
fn events_and_function_mask() {
    in_many_orders(
        &[
            |machine| drop(machine.configure(0)),
            |machine| {
                machine.config_write(MSIX_CONTROL + 1, &[0xc0]);
                machine.config_write(MSIX_CONTROL + 1, &[0x80]);
            },
            raise_both,
        ],
        both_events_arrive,
    );
}

#[test]
fn a_bar_moves_and_decoding_changes_while_others_access_it() {
    in_many_orders(
        &[
            |machine| {
                machine.config_write(BAR_REGISTER, &0xd000_0000_u32.to_le_bytes());
                machine.config_write(COMMAND, &[0, 0]);
            },
            |machine| {
                machine.router.mmio_read(BAR + entry_word(0, 0), &mut [0; 4]);
                machine.router.mmio_write(ELSEWHERE + entry_word(0, 3), &[0; 4]);
            },
            |machine| {
                machine.configure(0);
                machine.config_write(COMMAND, &[2, 0]);
                machine.config_write(POWER, &[3, 0]);
                machine.config_write(POWER, &[0, 0]);
            },
        ],
        Machine::is_consistent,
    );
}

#[test]
fn resets_while_a_vcpu_configures() {
    in_many_orders(
        &[
            |machine| drop(machine.configure(0)),
            |machine| {
                machine.config_write(DEVICE_CONTROL + 1, &[0x80]);
                machine.function.reset().unwrap();
            },
            |machine| machine.service.reset().unwrap(),
        ],
        Machine::is_consistent,
    );
}

#[test]
fn a_function_goes_while_vcpus_use_it() {
    in_many_orders(
        &[
            |machine| drop(machine.configure(0)),
            |machine| {
                machine.router.mmio_write(BAR + entry_word(0, 3), &[0; 4]);
                machine.config_write(MSIX_CONTROL + 1, &[0xc0]);
            },
            |machine| {
                machine.function.remove().unwrap();
                // From now on, whatever the others are still about to do.
                for _ in 0..4 {
                    machine.has_lost_its_function();
                    thread::yield_now();
                }
            },
        ],
        Machine::has_lost_its_function,
    );
}

#[test]
fn two_vcpus_configure_and_a_third_adds_a_neighbour() {
    in_many_orders(
        &[
            |machine| drop(machine.configure(0)),
            |machine| drop(machine.configure(1)),
            |machine| {
                let options = SoftwareOptions { vectors: 1, isolated: true };
                let function = SoftwareFunction::new(options, 4096).unwrap();
                let window = RecordedWindow::new().share();
                let policy = FunctionPolicy::default();
                let id = FunctionId(16);
                let added = machine.service.add_function(id, Box::new(function), window, policy);
                added.unwrap().remove().unwrap();
            },
        ],
        |machine| {
            machine.raise(0);
            machine.raise(1);
            both_events_arrive(machine);
        },
    );
}
