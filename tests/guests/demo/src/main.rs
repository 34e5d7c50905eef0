//! Measures the standard vector table against PV-MSI, function by function.
//!
//! For each function with MSI-X, the set-up of all vectors, several times the standard way and by
//! calls in turn, where the host offers them. Then first the standard way and then by calls:
//! mask and unmask, writes to the register beside
//! the table, interrupts under load (software function), a disk read by
//! interrupts (NVMe). What it did goes to the report channel; what it cost, the
//! machine counts.
//!
//! Options on the command line, `key=value`: `setups`, `pairs` (mask/unmask), `writes`
//! (neighbour), `events` and `pace` (nanoseconds between two) of the software
//! function, `io_mib` read from a disk.
#![no_std]
#![no_main]

mod accounting;
mod device;
mod load;
mod measure;
mod nvme;
mod options;
mod phase;

use pvmsi_guest_report::{Event, World};
use pvmsi_guest_runtime::{Start, entry, park, pci, println, report, timer, vcpu};

use device::Device;
use options::Options;

entry!(main);

fn main(start: &Start, index: usize) -> ! {
    if index != 0 {
        vcpu::serve(index);
    }
    timer::start_tick();
    let vcpus = vcpu::settle(start.vcpus());
    timer::stop_tick();
    if vcpus < start.vcpus() {
        report::failure(format_args!("only {vcpus} of {} vCPUs have started", start.vcpus()));
    }
    let options = Options::read(start, vcpus);
    let mut client = pvmsi_guest_client::connect(start.platform());
    println!(
        "guest: {vcpus} vCPUs, PV-MSI {}",
        if client.is_some() { "offered" } else { "not offered" }
    );
    let mut measured = 0u32;
    for function in pci::functions() {
        let Some(device) = Device::new(function, vcpus) else { continue };
        measured = measured.saturating_add(1);
        // In turn: whatever else the host does meanwhile, it does to both.
        for _ in 0..options.setups {
            phase::set_up(&device, World::Legacy, None);
            if client.is_some() {
                phase::set_up(&device, World::Paravirtual, client.as_mut());
            }
        }
        phase::run(&device, World::Legacy, None, &options);
        if client.is_some() {
            phase::run(&device, World::Paravirtual, client.as_mut(), &options);
        }
    }
    if measured == 0 {
        report::failure(format_args!("no function with MSI-X on bus 0"));
    }
    report::send(&Event::Done);
    park()
}
