//! Random valid operations on software functions while they raise events, with every event accounted for.
//!
//! vCPU 0 conducts: it opens a round, asks the functions for events, and in the
//! end settles with the ledger. Meanwhile vCPU 1 masks and unmasks vectors, and
//! the others do everything else that a driver may do: calls of PV-MSI, resets,
//! power states, decoding, BAR moves. Interrupts go to all vCPUs, and move.
//!
//! What a round may do decides how exactly it is accounted for:
//!
//! | round | events of a vector | operations | must be seen |
//! |---|---|---|---|
//! | exact | 1 | all that keep events, pages taken away and given back among them | exactly 1 interrupt |
//! | burst | up to 8 | all that keep events and pages | an interrupt after the last event, and no more than messages |
//! | reset | 1 | all, those that drop events among them | exactly 1, or at most 1 where the event came before such an operation |
//!
//! Options on the command line, `key=value`: `seed`, `seconds` (as the ticks of
//! vCPU 0 count them).
#![no_std]
#![no_main]

mod conductor;
mod ledger;
mod masker;
mod operator;
mod random;
mod subject;
mod sync;
mod worker;

use pvmsi_guest_report::Event;
use pvmsi_guest_runtime::software::is_software;
use pvmsi_guest_runtime::{Start, entry, interrupts, park, pci, println, report, timer, vcpu};

use conductor::Conductor;
use subject::Subject;

/// vCPUs that take part; interrupts of more are not told apart.
const VCPUS_MAX: usize = 8;
/// How long a run takes when nobody says, in seconds.
const SECONDS: u64 = 20;

entry!(main);

fn main(start: &Start, index: usize) -> ! {
    if index != 0 {
        vcpu::serve(index);
    }
    timer::start_tick();
    let vcpus = vcpu::settle(start.vcpus()).min(VCPUS_MAX);
    interrupts::set_handler(ledger::handle);
    run(start, vcpus);
    report::send(&Event::Done);
    park()
}

fn run(start: &Start, vcpus: usize) {
    let seed = start.number("seed").unwrap_or(1);
    let seconds = start.number("seconds").unwrap_or(SECONDS);
    if vcpus < 3 {
        report::failure(format_args!("3 vCPUs are needed, there are {vcpus}"));
        return;
    }
    println!("guest: soak with seed {seed} on {vcpus} vCPUs for {seconds} s");
    random::seed(seed);
    let mut found = 0usize;
    for function in pci::functions().filter(is_software) {
        match Subject::prepare(function, found, vcpus) {
            Ok(true) => found = found.saturating_add(1),
            Ok(false) => println!("guest: {} is left out", function.id()),
            Err(error) => report::failure(format_args!("{}: {error}", function.id())),
        }
    }
    if found == 0 {
        report::failure(format_args!("no software function on bus 0"));
        return;
    }
    for index in (0..vcpus).filter(|&index| index != worker::MASKER) {
        match pvmsi_guest_client::connect(start.platform()) {
            Some(client) => worker::give(index, client),
            None => return report::failure(format_args!("the host does not offer PV-MSI")),
        }
    }
    Conductor::new(vcpus, seconds).run();
}
