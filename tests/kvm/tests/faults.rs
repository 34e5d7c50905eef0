//! The kernel refuses, or has no more to give: real KVM at the system call, real limits, and a real guest that counts its interrupts.

mod refusal;

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use kvm_ioctls::{Cap, Kvm};
use pvmsi::Machine;
use pvmsi_hypervisor::*;
use pvmsi_kvm_tests::*;
use pvmsi_protocol::{
    CallError, CallId, ConfigureAnswer, ConfigureRequest, FunctionId, Header, Kind, Reasons,
    Sequence, TableMode, VectorIndex, VectorSetup, VectorState,
};
use pvmsi_software::{SoftwareDevice, SoftwareFunction, SoftwareOptions};
use pvmsi_test_doubles::IdleWindow;
use refusal::{IRQFD, MAPPING, MEMORY_REGION, ROUTING};
use vm_memory::GuestAddress;

const VECTORS: u16 = 4;

/// The function that an operation finds.
#[derive(PartialEq)]
enum Found {
    Fresh,
    Programmed,
    Assigned,
}

/// A step of a guest or its host, on a machine with [`VECTORS`] vectors.
struct Operation {
    name: &'static str,
    found: Found,
    act: fn(&Bench) -> Result<(), CallError>,
}

fn setups(count: u16) -> Vec<VectorSetup> {
    (0..count).map(|v| VectorSetup { message: Some(message(v % 190)), masked: false }).collect()
}

fn configure(bench: &Bench) -> Result<(), CallError> {
    bench.configure_with(&setups(VECTORS)).map(drop)
}

const OPERATIONS: &[Operation] = &[
    Operation { name: "configure, the first", found: Found::Fresh, act: configure },
    Operation {
        name: "configure, over a programmed table",
        found: Found::Programmed,
        act: configure,
    },
    Operation { name: "configure, again", found: Found::Assigned, act: configure },
    Operation {
        name: "update",
        found: Found::Assigned,
        act: |bench| bench.update(1, message(VECTORS)),
    },
    Operation {
        name: "unmask in the trapped table",
        found: Found::Programmed,
        act: |bench| {
            bench.mask(2);
            bench.unmask(2);
            Ok(())
        },
    },
    Operation {
        name: "revoke and allow",
        found: Found::Assigned,
        act: |bench| {
            bench.function().revoke().unwrap();
            bench.function().allow().unwrap();
            Ok(())
        },
    },
    Operation {
        name: "Function Mask, set and cleared",
        found: Found::Assigned,
        act: |bench| {
            bench.control(ENABLE | FUNCTION_MASK);
            bench.control(ENABLE);
            Ok(())
        },
    },
    Operation {
        name: "function level reset",
        found: Found::Assigned,
        act: |bench| {
            bench.config_write_u16(DEVICE_CONTROL, 0x8000);
            Ok(())
        },
    },
    Operation {
        name: "decoding off and on",
        found: Found::Assigned,
        act: |bench| {
            bench.config_write_u16(0x04, 0x0004);
            bench.config_write_u16(0x04, 0x0006);
            Ok(())
        },
    },
];

fn prepared(operation: &Operation) -> Bench {
    let bench = Bench::with_vectors(VECTORS);
    bench.control(ENABLE);
    match operation.found {
        Found::Fresh => {}
        Found::Programmed => (0..VECTORS).for_each(|v| bench.program(v, message(v))),
        Found::Assigned => drop(bench.configure(VECTORS)),
    }
    bench
}

/// Past the test harness's capture: the report of all tests has it.
fn report(points: usize, what: &str) {
    let _ = writeln!(std::io::stderr(), "{points:5} fault points: {what}");
}

/// All that a call which fails must leave alone, and a guest can ask for.
fn stand(bench: &Bench) -> (u16, TableMode, Reasons, u32, Vec<VectorState>) {
    let status = bench.status();
    let vectors = bench.query_vectors();
    (status.assigned, status.mode, status.reasons, status.generation.0, vectors)
}

/// An event of each vector comes once, as the interrupt that its message names.
fn each_arrives(bench: &Bench) {
    let messages = bench.query_vectors().into_iter().map(|state| state.guest_message);
    let named = |data| (0..=VECTORS).find(|&vector| u32::from(interrupt(vector)) == data).unwrap();
    let wanted: Vec<_> = (0..)
        .zip(messages)
        .map(|(vector, message)| (vector, message.map_or(vector, |message| named(message.data))))
        .map(|(vector, named)| (vector, named, bench.taken(named) + 1))
        .collect();
    for &(vector, named, count) in &wanted {
        bench.raise(vector);
        bench.wait_taken(named, count);
    }
    std::thread::sleep(Duration::from_millis(2));
    for (vector, named, count) in wanted {
        assert_eq!(bench.taken(named), count, "vector {vector} came more than once");
    }
}

/// All n-th uses of a request of KVM refused, in one operation. Returns how many there are.
fn every_use(operation: &Operation, request: u64) -> usize {
    for step in 1.. {
        let bench = prepared(operation);
        let before = stand(&bench);
        refusal::refuse(request, step, 1);
        let result = (operation.act)(&bench);
        if refusal::end() == 0 {
            result.unwrap();
            return step - 1;
        }
        let context = format!("{}: request {request:#x}, use {step}", operation.name);
        match result {
            Err(error) => {
                assert_eq!(error, CallError::Hardware, "{context}");
                assert_eq!(stand(&bench), before, "{context}");
            }
            // The next operation, which makes up for what failed.
            Ok(()) => bench.config_write_u16(0x3c, 0),
        }
        if operation.found != Found::Fresh || bench.status().assigned > 0 {
            each_arrives(&bench);
        }
        (operation.act)(&bench).unwrap();
        each_arrives(&bench);
        if bench.status().assigned > 0 {
            assert_eq!(bench.configure(VECTORS).mode, TableMode::Direct, "{context}");
            each_arrives(&bench);
        }
    }
    unreachable!()
}

#[test]
fn each_request_of_kvm_refused_at_each_use() {
    let mut total = 0;
    for operation in OPERATIONS {
        let points = [ROUTING, IRQFD, MEMORY_REGION].map(|request| every_use(operation, request));
        println!("{points:3?} {}", operation.name);
        assert!(points.iter().sum::<usize>() > 0, "{}: nothing can fail", operation.name);
        total += points.iter().sum::<usize>();
    }
    report(total, "KVM refuses a routing update, an irqfd or a memory region");
}

/// A `configure` that would have unmasked the vector.
#[test]
fn an_event_behind_a_mask_bit_stays_there_when_kvm_refuses_a_call() {
    let mut refused = 0;
    for request in [ROUTING, IRQFD, MEMORY_REGION] {
        for step in 1.. {
            let bench = Bench::direct(VECTORS);
            bench.mask(1);
            bench.quiet(|| bench.raise(1));
            let (before, taken) = (stand(&bench), bench.taken(1));
            let mut setups = setups(VECTORS);
            setups[3].masked = true;
            (setups[0].message, setups[2].message) = (setups[2].message, setups[0].message);
            refusal::refuse(request, step, 1);
            let result = bench.configure_with(&setups).map(drop);
            if refusal::end() == 0 {
                break;
            }
            if result.is_err() {
                refused += 1;
                assert_eq!(stand(&bench), before, "request {request:#x}, use {step}");
                assert!(bench.masked(1) && !bench.masked(3));
                bench.quiet(|| {});
                assert_eq!(bench.taken(1), taken, "masked still");
                bench.unmask(1);
                (0..VECTORS).filter(|&v| v != 1).for_each(|vector| bench.raise_and_take(vector));
            } else {
                bench.config_write_u16(0x3c, 0);
            }
            bench.wait_taken(1, taken + 1);
            bench.raise_and_take(1);
            assert_eq!(bench.taken(1), taken + 2, "once each");
        }
    }
    assert!(refused > 1, "{refused}");
}

/// What a function maps, it maps when it is made.
#[test]
fn each_mapping_of_memory_refused_while_a_machine_is_made() {
    let open = || {
        ["fd", "task"].map(|what| std::fs::read_dir(format!("/proc/self/{what}")).unwrap().count())
    };
    let before = open();
    for step in 1.. {
        refusal::refuse(MAPPING, step, 1);
        let machine = Machine::new(config(VECTORS, Policy::Direct));
        if refusal::end() == 0 {
            assert!(step > 1 && machine.is_ok(), "nothing can fail");
            report(step - 1, "memory cannot be mapped while a machine is made");
            break;
        }
        println!("{}", machine.err().expect("without the memory it cannot work"));
        assert_eq!(open(), before, "files and threads, mapping {step}");
    }
    let bench = Bench::direct(VECTORS);
    (0..VECTORS).for_each(|vector| bench.raise_and_take(vector));
}

#[test]
fn pages_that_kvm_does_not_map_stay_trapped_until_it_does() {
    let bench = Bench::with_vectors(VECTORS);
    bench.control(ENABLE);
    refusal::refuse(MEMORY_REGION, 1, usize::MAX);
    let answer = bench.configure(VECTORS);
    assert_eq!((answer.mode, answer.reasons), (TableMode::Trapped, Reasons::NOT_MAPPABLE));
    (0..VECTORS).for_each(|vector| bench.raise_and_take(vector));
    bench.mask(1);
    bench.quiet(|| bench.raise(1));
    let before = bench.taken(1);
    bench.unmask(1);
    bench.wait_taken(1, before + 1);
    assert!(refusal::end() > 0);
    bench.call(CallId::Restore, &[]).unwrap();
    assert_eq!(bench.status().mode, TableMode::Direct, "restore tries again");
    (0..VECTORS).for_each(|vector| bench.raise_and_take(vector));
}

/// Pages that KVM does not let go: the table stays direct, and the function goes on answering on it.
#[test]
fn pages_that_kvm_does_not_take_out_stay_and_work() {
    let bench = Bench::direct(VECTORS);
    refusal::refuse(MEMORY_REGION, 1, usize::MAX);
    bench.function().revoke().unwrap();
    bench.config_write_u16(0x04, 0x0004);
    assert_eq!(bench.status().mode, TableMode::Direct);
    assert_eq!(bench.config_read_u32(0x04) & 2, 2, "not passed on: the function decodes");
    (0..VECTORS).for_each(|vector| bench.raise_and_take(vector));
    assert!(refusal::end() > 0);
    bench.config_write_u16(0x3c, 0);
    assert_eq!(bench.status().mode, TableMode::Trapped, "at the next operation");
    (0..VECTORS).for_each(|vector| bench.raise_and_take(vector));
}

/// From no descriptor left to enough: 16 vectors take two each, one for the event, one in the device.
#[test]
fn each_number_of_file_descriptors_that_are_left() {
    let bench = Bench::with_vectors(16);
    bench.control(ENABLE);
    let (mut refused, mut granted) = (0, 0);
    for left in 0..=40 {
        assert_eq!(bench.configure(VECTORS).granted, VECTORS);
        let before = stand(&bench);
        let limit = refusal::DescriptorLimit::leave(left);
        let result = bench.configure_with(&setups(16));
        drop(limit);
        match result {
            Ok(answer) => {
                assert!(answer.granted >= VECTORS, "{left} left");
                bench.raise_and_take(answer.granted - 1);
                granted += 1;
            }
            Err(error) => {
                assert!(matches!(error, CallError::Hardware | CallError::NoResources));
                assert_eq!(stand(&bench), before, "{left} left");
                refused += 1;
            }
        }
        bench.raise_and_take(0);
        bench.raise_and_take(VECTORS - 1);
        bench.call(CallId::Release, &[]).unwrap();
    }
    report(41, &format!("file descriptors run out: {refused} refused, {granted} granted"));
    assert!(refused > 0 && granted > 0);
}

/// Adds a function of 2048 vectors, with MSI-X enabled; its table is always trapped.
fn add(bench: &Bench, id: FunctionId, quota: Option<u16>) -> Arc<SoftwareDevice> {
    let options = SoftwareOptions { vectors: 2048, ..SoftwareOptions::default() };
    let function = SoftwareFunction::new(options, host_page_size()).unwrap();
    let device = function.device();
    let policy = FunctionPolicy { vectors: quota, ..FunctionPolicy::default() };
    let service = bench.machine.service();
    let window = Box::new(IdleWindow::new(false));
    let function = service.add_function(id, Box::new(function), window, policy).unwrap();
    function.config_write(MSIX_CONTROL, &ENABLE.to_le_bytes()).unwrap();
    device
}

fn call(bench: &Bench, id: FunctionId, call: CallId, body: &[u8]) -> Result<Vec<u8>, CallError> {
    let header = Header::request(call, id, 65536, body.len()).unwrap();
    let (header, body) = bench.ring(header, body);
    CallError::decode(header.status, &body).map_or(Ok(body), Err)
}

/// `configure` of all 2048 vectors; how many are granted.
fn take_all(bench: &Bench, id: FunctionId) -> Result<u16, CallError> {
    let mut body = vec![0; 65536];
    let items = setups(2048).into_iter();
    let used = ConfigureRequest::encode(Kind::MsiX, 2048, Sequence::START, items, &mut body);
    let answer = call(bench, id, CallId::Configure, &body[..used.unwrap()])?;
    Ok(ConfigureAnswer::decode(&answer).unwrap().granted)
}

fn takes(bench: &Bench, device: &SoftwareDevice, vector: u16) {
    let before = bench.taken(vector % 190);
    assert!(device.raise(VectorIndex(vector)));
    bench.wait_taken(vector % 190, before + 1);
}

#[test]
fn routes_run_out_for_one_function_after_another_and_come_back() {
    let ids = [16, 24, 32].map(FunctionId);
    let bench = Bench::with_vectors(1);
    let [first, second, third] = ids.map(|id| add(&bench, id, None));
    let available = Kvm::new().unwrap().create_vm().unwrap().check_extension_int(Cap::IrqRouting);
    assert_eq!(take_all(&bench, ids[0]), Ok(2048));
    let rest = take_all(&bench, ids[1]).unwrap();
    println!("KVM has {available} routes; the second function is granted {rest}");
    assert!(rest < 2048 && i32::from(rest) + 2048 <= available, "a short grant");
    assert_eq!(take_all(&bench, ids[2]), Err(CallError::NoResources));
    takes(&bench, &first, 2047);
    takes(&bench, &second, rest - 1);
    call(&bench, ids[0], CallId::Release, &[]).unwrap();
    assert_eq!(take_all(&bench, ids[2]), Ok(2048), "released routes come back");
    takes(&bench, &second, 0);
    takes(&bench, &third, 2047);
}

#[test]
fn a_quota_leaves_routes_for_the_others() {
    let ids = [16, 24, 32].map(FunctionId);
    let bench = Bench::with_vectors(1);
    let devices = ids.map(|id| add(&bench, id, Some(1024)));
    for (id, device) in ids.iter().zip(&devices) {
        assert_eq!(take_all(&bench, *id), Ok(1024));
        takes(&bench, device, 1023);
    }
}

#[test]
fn memory_slots_run_out_and_come_back() {
    let kvm = Kvm::new().unwrap();
    println!("KVM has {} memory slots", kvm.get_nr_memslots());
    let vm = Arc::new(kvm.create_vm().unwrap());
    let function = || SoftwareFunction::new(SoftwareOptions::default(), host_page_size()).unwrap();
    let window = |slots: &Arc<MemorySlots>, function: &SoftwareFunction| {
        KvmWindow::new(slots.clone(), function.layout(), function.mappings().unwrap())
    };
    let view = |address, table| {
        let mut bars = [None; BarIndex::COUNT];
        bars[0] = Some(GuestAddress(address));
        View { bars, table }
    };
    let (one, other) = (function(), function());
    let mut needed = 0;
    for count in 0.. {
        let slots = Arc::new(MemorySlots::new(vm.clone(), 1..1 + count));
        let mut shown = window(&slots, &one);
        if shown.show(&view(0xc000_0000, TableMode::Direct)).is_ok() {
            needed = count;
            break;
        }
        // What is beside the table can do without.
        shown.show(&view(0xc000_0000, TableMode::Trapped)).unwrap();
    }
    assert_eq!(needed, 1, "the table's pages; pending bits can do without");
    let slots = Arc::new(MemorySlots::new(vm, 1..1 + needed));
    let (mut first, mut second) = (window(&slots, &one), window(&slots, &other));
    first.show(&view(0xc000_0000, TableMode::Direct)).unwrap();
    second.show(&view(0xd000_0000, TableMode::Direct)).unwrap_err();
    first.show(&View::NOTHING).unwrap();
    second.show(&view(0xd000_0000, TableMode::Direct)).unwrap();
    drop(second);
    first.show(&view(0xc000_0000, TableMode::Direct)).unwrap();
}
