//! Runs the conformance suite against the host that it runs on.
//!
//! The tests are those of `tests/conformance`, the same code; here they ring real
//! doorbells and count interrupts that arrive. The results go to the serial port
//! as KTAP, version 1. The run ends with exit status 0 when no test has failed, else 1.
//!
//! Needs software functions of the reference machine (`hypervisor/vmm/MACHINE.md`), and three
//! vCPUs. Options on the command line, `key=value`:
//!
//! | key | default | what |
//! |---|---|---|
//! | `functions` | | what the operator has said of each software function, separated by commas, in the order of their addresses: `direct`, `trapped` or `denied`, with `+open` where the host does not isolate it, and `+allowed` where the operator has overridden that; the default is `direct` |
//! | `service` | 1 | 0: the machine does not offer the service |
//! | `exact` | 1 | 0: the machine may deliver an interrupt twice |
//! | `patience` | 200 | milliseconds that an interrupt may take |
//! | `tests` | | only these tests, or tests of these clauses, separated by commas |
#![no_std]
#![no_main]

extern crate alloc;

#[cfg_attr(target_arch = "x86_64", path = "x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "aarch64.rs")]
mod arch;
mod arrivals;
mod device;
mod doorbell;
mod host;
mod machine;
mod processors;
mod ram;

use alloc::vec::Vec;

use linked_list_allocator::LockedHeap;
use pvmsi_conformance::{Body, Stop, Test, tests};
use pvmsi_guest_runtime::{Start, entry, exit, interrupts, memory, println, timer, vcpu};

use host::Host;

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

const HEAP_BYTES: usize = 8 << 20;

entry!(main);

fn main(start: &Start, index: usize) -> ! {
    if index != 0 {
        vcpu::serve(index);
    }
    timer::start_tick();
    vcpu::settle(start.vcpus());
    interrupts::set_handler(arrivals::handle);
    println!("KTAP version 1");
    match run(start) {
        Ok(true) => exit(0),
        Ok(false) => exit(1),
        Err(why) => {
            println!("Bail out! {why}");
            exit(1)
        }
    }
}

/// Whether no test has failed.
fn run(start: &Start) -> Result<bool, &'static str> {
    let heap = memory::allocate(HEAP_BYTES).ok_or("no RAM for a heap; give the guest more")?;
    // SAFETY: the area is valid, never taken back, and handed out to nobody else; once.
    unsafe { HEAP.lock().init(heap.start().as_ptr(), heap.bytes()) };
    let host = Host::find(start)?;
    let selected: Vec<_> = tests().into_iter().filter(|test| is_selected(start, test)).collect();
    println!("1..{}", selected.len());
    let mut good = true;
    for (number, test) in (1..).zip(&selected) {
        interrupts::enable();
        let Body::Host(body) = test.body;
        match body(&host) {
            Ok(()) => println!("ok {number} {}", test.name),
            Err(Stop::Skipped(why)) => println!("ok {number} {} # SKIP {why}", test.name),
            Err(Stop::Failed(why)) => {
                good = false;
                println!("# {} ({}): {why}", test.name, test.clauses.join(" "));
                println!("not ok {number} {}", test.name);
            }
        }
    }
    Ok(good)
}

fn is_selected(start: &Start, test: &Test) -> bool {
    start.text("tests").is_none_or(|wanted| {
        wanted.split(',').any(|it| it == test.name || test.clauses.contains(&it))
    })
}
