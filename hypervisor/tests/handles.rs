//! Functions as devices on a VMM's own buses: handles, the router, what a removed function answers, and seams that ask for the function that they are called for.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![allow(clippy::cast_possible_truncation, clippy::panic)]

mod fixture;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use fixture::{BAR, ENABLE, FUNCTION, Guest, MSIX_CONTROL, Options, TABLE, X86_64};
use pvmsi_hypervisor::{
    AddFunctionError, BarIndex, FunctionError, FunctionHandle, FunctionPolicy, FunctionStatus,
    ModeChange, Service, ServiceConfig, View, Window,
};
use pvmsi_protocol::{
    CallError, CallId, FunctionId, Header, Reasons, Sequence, TableMode, VectorSetup,
};
use pvmsi_software::{SoftwareFunction, SoftwareOptions};
use pvmsi_test_doubles::{RecordedRoutes, RecordedWindow};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const BAR_0: BarIndex = BarIndex(0);
/// Bytes of BAR 0 of a software function.
const BAR_BYTES: u64 = 0x2_0000;
/// How long a test waits that must not hang.
const PATIENCE: Duration = Duration::from_secs(20);
const REMOVED: FunctionError = FunctionError::Removed(FUNCTION);

fn service() -> Service {
    Service::new(ServiceConfig::new(X86_64), Arc::new(RecordedRoutes::new(u16::MAX)))
}

fn function() -> Box<SoftwareFunction> {
    Box::new(SoftwareFunction::new(SoftwareOptions::default(), 4096).unwrap())
}

#[test]
fn a_handle_goes_where_a_bus_wants_it() {
    fn device<T: Clone + Send + Sync + std::fmt::Debug + 'static>(_: &T) {}
    let guest = Guest::with_vectors(4);
    device(&guest.function);
    device(&guest.router);
    assert_eq!(guest.function.id(), FUNCTION);
    assert_eq!(guest.service.function(FUNCTION).unwrap().id(), FUNCTION);
    assert!(guest.service.function(FunctionId(16)).is_none());
}

#[test]
fn a_handle_and_the_router_reach_the_same_function() {
    let guest = Guest::with_vectors(4);
    let entry = TABLE + 16;
    guest.function.bar_write(BAR_0, entry, &0xfee0_1000_u32.to_le_bytes()).unwrap();
    let (mut by_handle, mut by_router) = ([0; 4], [0; 4]);
    guest.function.bar_read(BAR_0, entry, &mut by_handle).unwrap();
    assert!(guest.router.mmio_read(BAR + entry, &mut by_router));
    assert_eq!((by_handle, by_router), (0xfee0_1000_u32.to_le_bytes(), by_handle));
    guest.function.config_write(MSIX_CONTROL, &ENABLE.to_le_bytes()).unwrap();
    let (mut by_handle, mut by_router) = ([0; 2], [0; 2]);
    guest.function.config_read(MSIX_CONTROL, &mut by_handle).unwrap();
    assert!(guest.router.config_read(FUNCTION, MSIX_CONTROL, &mut by_router));
    assert_eq!((u16::from_le_bytes(by_handle) & ENABLE, by_router), (ENABLE, by_handle));
}

#[test]
fn a_handle_says_where_the_function_is_decoded() {
    let guest = Guest::with_vectors(4);
    let at = |address| [Some((GuestAddress(address), BAR_BYTES)), None, None, None, None, None];
    assert_eq!(guest.function.bars(), at(BAR));
    guest.function.config_write(0x10, &0xd000_0000_u32.to_le_bytes()).unwrap();
    assert_eq!(guest.function.bars(), at(0xd000_0000));
    assert!(!guest.router.mmio_write(BAR, &[0; 4]), "nobody is there");
    guest.function.config_write(4, &[4, 0]).unwrap();
    assert_eq!(guest.function.bars(), [None; BarIndex::COUNT]);
}

/// Each method of a handle, and what came of it.
fn answers(handle: &FunctionHandle) -> Vec<Result<(), FunctionError>> {
    let (mut register, mut config) = ([0; 4], [0; 2]);
    let answers = vec![
        handle.bar_read(BAR_0, 0, &mut register),
        handle.bar_write(BAR_0, 0, &[1]),
        handle.config_read(0, &mut config),
        handle.config_write(4, &[6, 0]),
        handle.reset(),
        handle.revoke(),
        handle.allow(),
        handle.status().map(drop),
        handle.remove(),
    ];
    assert_eq!((register, config), ([0xff; 4], [0xff; 2]), "as on a bus where nobody answers");
    answers
}

#[test]
fn a_handle_of_a_removed_function_says_so_and_reads_ones() {
    let guest = Guest::with_vectors(4);
    let other = guest.function.clone();
    other.remove().unwrap();
    assert_eq!(answers(&guest.function), [Err(REMOVED); 9]);
    assert_eq!(guest.function.bars(), [None; BarIndex::COUNT]);
    assert_eq!(guest.function.id(), FUNCTION);
    let (mut register, mut config) = ([7; 4], [7; 2]);
    assert!(!guest.router.mmio_read(BAR, &mut register));
    assert!(!guest.router.config_read(FUNCTION, 0, &mut config));
    assert_eq!((register, config), ([7; 4], [7; 2]), "the VMM may have somebody else there");
    assert!(!guest.router.config_write(FUNCTION, 4, &[6, 0]));
}

#[test]
fn a_handle_does_not_reach_the_function_that_comes_after() {
    let guest = Guest::with_vectors(4);
    guest.function.remove().unwrap();
    assert!(guest.add_function(FUNCTION).is_some());
    assert_eq!(answers(&guest.function), [Err(REMOVED); 9]);
    assert_eq!(guest.service.function(FUNCTION).unwrap().status().unwrap().vectors, 64);
}

#[test]
fn a_handle_does_not_keep_a_function_whose_service_is_gone() {
    let Guest { service, function, window, routes, .. } = Guest::with_vectors(4);
    assert_ne!(window.now(), View::NOTHING);
    drop(service);
    assert_eq!((window.now(), routes.attached()), (View::NOTHING, 0));
    assert_eq!(answers(&function), [Err(REMOVED); 9]);
}

#[test]
fn a_function_that_is_not_added_comes_back_and_can_be_added_elsewhere() {
    let service = service();
    let policy = FunctionPolicy::default();
    let window = || RecordedWindow::new().share();
    service.add_function(FUNCTION, function(), window(), policy).unwrap();
    let failed = service.add_function(FUNCTION, function(), window(), policy).unwrap_err();
    assert!(matches!(failed.error, AddFunctionError::Exists(FUNCTION)));
    assert_eq!(failed.to_string(), format!("there is already a function at {FUNCTION}"));
    let beside = FunctionId(16);
    service.add_function(beside, failed.function, failed.window, policy).unwrap();
    let ids: Vec<_> = service.functions().iter().map(FunctionHandle::id).collect();
    assert_eq!(ids, [FUNCTION, beside]);
}

/// A window that asks for its own function, once it is told to.
struct Asks {
    told: Arc<AtomicBool>,
    service: Arc<OnceLock<Arc<Service>>>,
    answers: Arc<Mutex<Vec<Result<(), FunctionError>>>>,
    call: Arc<Mutex<Option<Option<CallError>>>>,
}

impl Window for Asks {
    fn show(&mut self, _: &View) -> io::Result<()> {
        let Some(service) = self.service.get().filter(|_| self.told.swap(false, SeqCst)) else {
            return Ok(());
        };
        let handle = service.function(FUNCTION).unwrap();
        *self.answers.lock().unwrap() = answers(&handle);
        self.answers.lock().unwrap().extend([
            service.reset(),
            service.resume(),
            service.save().map(drop),
        ]);
        *self.call.lock().unwrap() = Some(query(service));
        // Another's is free.
        let beside = service.function(FunctionId(16)).unwrap();
        assert_eq!(beside.status().unwrap().mode, TableMode::Trapped);
        Ok(())
    }

    fn table_can_be_direct(&self) -> bool {
        true
    }
}

/// Asks with a call how the function stands; the error.
fn query(service: &Service) -> Option<CallError> {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
    let header = Header::request(CallId::QueryFunction, FUNCTION, 4096, 0).unwrap();
    memory.write_slice(&header.to_bytes(), GuestAddress(0)).unwrap();
    service.doorbell(&memory, 0).unwrap();
    let mut bytes = [0; Header::SIZE];
    memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    CallError::decode(Header::from_bytes(&bytes).status, &[])
}

/// In a thread of its own, so that a hang is a failure.
#[test]
fn a_window_that_asks_for_its_own_function_gets_an_error() {
    let (done, finished) = mpsc::channel();
    thread::spawn(move || {
        let (service, cell) = (Arc::new(service()), Arc::new(OnceLock::new()));
        let (told, seen, call) = (Arc::<AtomicBool>::default(), Arc::default(), Arc::default());
        let window = Asks {
            told: Arc::clone(&told),
            service: Arc::clone(&cell),
            answers: Arc::clone(&seen),
            call: Arc::clone(&call),
        };
        let policy = FunctionPolicy::default();
        let handle = service.add_function(FUNCTION, function(), Box::new(window), policy).unwrap();
        let beside = RecordedWindow::new().share();
        service.add_function(FunctionId(16), function(), beside, policy).unwrap();
        cell.set(Arc::clone(&service)).unwrap();
        told.store(true, SeqCst);
        handle.config_write(0x10, &0xc000_0000_u32.to_le_bytes()).unwrap();
        handle.config_write(4, &[6, 0]).unwrap();
        assert!(!told.load(SeqCst), "it has asked");
        assert_eq!(*seen.lock().unwrap(), [Err(FunctionError::Reentered(FUNCTION)); 12]);
        assert_eq!(*call.lock().unwrap(), Some(Some(CallError::Hardware)));
        // The access itself was carried out, and the function answers as ever.
        assert_eq!(handle.bars()[0].unwrap().0, GuestAddress(0xc000_0000));
        handle.status().unwrap();
        done.send(()).unwrap();
    });
    finished.recv_timeout(PATIENCE).unwrap();
}

/// A window that asks for its function while it is being added, and for the others.
struct AsksEarly(Arc<Service>, Arc<Mutex<Vec<Result<(), FunctionError>>>>);

impl Window for AsksEarly {
    fn show(&mut self, _: &View) -> io::Result<()> {
        Ok(())
    }

    fn table_can_be_direct(&self) -> bool {
        let mut seen = self.1.lock().unwrap();
        seen.extend(self.0.functions().iter().map(|handle| handle.status().map(drop)));
        true
    }
}

#[test]
fn the_service_answers_while_a_function_is_added() {
    let (done, finished) = mpsc::channel();
    thread::spawn(move || {
        let (service, seen) = (Arc::new(service()), Arc::default());
        let policy = FunctionPolicy::default();
        let window = RecordedWindow::new().share();
        service.add_function(FunctionId(16), function(), window, policy).unwrap();
        let window = Box::new(AsksEarly(Arc::clone(&service), Arc::clone(&seen)));
        service.add_function(FUNCTION, function(), window, policy).unwrap();
        done.send(seen.lock().unwrap().clone()).unwrap();
    });
    let seen = finished.recv_timeout(PATIENCE).unwrap();
    assert_eq!(seen, [Err(FunctionError::Reentered(FUNCTION)), Ok(())]);
}

/// Changes that were told, and how the function stood when the observer asked.
type Told = Arc<Mutex<Vec<(ModeChange, Option<FunctionStatus>)>>>;

/// A guest whose observer asks for the function of which it is told.
fn observed() -> (Guest, Told, Arc<OnceLock<FunctionHandle>>) {
    let (told, handle) = (Told::default(), Arc::<OnceLock<FunctionHandle>>::default());
    let (notes, asks) = (Arc::clone(&told), Arc::clone(&handle));
    let guest = Guest::with_service(Options { vectors: 4, ..Options::default() }, |service| {
        service.on_change(move |change| {
            let status = asks.get().map(|handle| handle.status().unwrap());
            notes.lock().unwrap().push((change, status));
        })
    });
    handle.set(guest.function.clone()).unwrap();
    (guest, told, handle)
}

#[test]
fn an_observer_is_told_of_each_change_and_may_ask_for_the_function() {
    let (guest, told, _handle) = observed();
    let now = || -> Vec<_> {
        let told: Vec<_> = told.lock().unwrap().drain(..).collect();
        for (change, status) in &told {
            assert_eq!(change.function, FUNCTION);
            // The lock is free: it has asked.
            if let Some(status) = status {
                assert_eq!((change.mode, change.reasons), (status.mode, status.reasons));
            }
        }
        told.iter().map(|(change, _)| (change.number, change.mode, change.reasons)).collect()
    };
    let (trapped, direct) = (TableMode::Trapped, TableMode::Direct);
    let start = Reasons::NOT_ASSIGNED | Reasons::MSIX_DISABLED;
    assert_eq!(now(), [(1, trapped, start)], "decoding is on");
    guest.control(ENABLE);
    assert_eq!(now(), [(2, trapped, Reasons::NOT_ASSIGNED)]);
    guest.configure(4);
    assert_eq!(now(), [(3, direct, Reasons::empty())], "told before the call has returned");
    guest.configure(4);
    guest.status();
    guest.mask(1);
    assert_eq!(now(), [], "nothing has changed");
    guest.function.revoke().unwrap();
    guest.function.allow().unwrap();
    assert_eq!(now(), [(4, trapped, Reasons::HOST_REVOKED), (5, direct, Reasons::empty())]);
    guest.function.config_write(0x10, &0xd000_0000_u32.to_le_bytes()).unwrap();
    assert_eq!(now(), [], "trapped while the BAR moves, and direct again");
    guest.service.save().unwrap();
    guest.service.resume().unwrap();
    let [(6, trapped_6, _), (7, direct_7, _)] = now()[..] else { panic!("two changes") };
    assert_eq!((trapped_6, direct_7), (trapped, direct));
    guest.function.remove().unwrap();
    assert_eq!(now(), [], "a removal is not a change of mode");
}

#[test]
fn a_call_that_fails_is_not_a_change() {
    let (guest, told, _handle) = observed();
    guest.control(ENABLE);
    told.lock().unwrap().clear();
    fixture::faults::plan(fixture::faults::Plan::Only(1, &["routing update"]));
    let setups = [VectorSetup { message: Some(fixture::message(0)), masked: false }];
    let refused = guest.configure_with(1, Sequence::START, &setups).unwrap_err();
    fixture::faults::end();
    assert_eq!(refused, CallError::Hardware);
    assert!(told.lock().unwrap().is_empty());
}
