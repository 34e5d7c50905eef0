//! All sections of one function in one world.

use pvmsi_guest::TableMode;
use pvmsi_guest_report::{Event, World};
use pvmsi_guest_runtime::{println, report};

use crate::device::{Device, Kind};
use crate::options::Options;
use crate::{load, measure, nvme};
use pvmsi_guest_client::ServiceClient;

/// Measures the set-up alone, and leaves the phase for [`run`] to go on with.
pub(crate) fn set_up(device: &Device, world: World, client: Option<&mut ServiceClient>) {
    report::send(&Event::PhaseStart { function: device.id(), world });
    measure::configure(device, client);
    report::send(&Event::PhaseEnd);
}

/// Runs the other sections. Whatever goes wrong is reported, and the function is back to its default in the end.
pub(crate) fn run(
    device: &Device,
    world: World,
    mut client: Option<&mut ServiceClient>,
    options: &Options,
) {
    println!("guest: {device}, {world:?}");
    report::send(&Event::PhaseStart { function: device.id(), world });
    match device.enable(client.as_deref_mut()) {
        Ok(granted) => sections(device, client, options, granted),
        Err(error) => report::failure(format_args!("{device}: {error}")),
    }
    device.msix.disable();
    report::send(&Event::PhaseEnd);
}

fn sections(device: &Device, client: Option<&mut ServiceClient>, options: &Options, granted: u16) {
    if device.kind != Kind::Nvme {
        unmask_all(device, granted);
    }
    if let Err(error) = device.msix.refresh(client) {
        report::failure(format_args!("{device}: query-function: {error}"));
    }
    if let Some(refusal) = device.msix.refusal() {
        println!("guest: {device}: the host refuses: {refusal}");
    }
    let (mode, reasons) = (device.msix.mode(), device.msix.reasons());
    report::send(&Event::Mode { mode, reasons });
    match mode {
        TableMode::Direct => println!("guest: {granted} vectors, the table is direct"),
        TableMode::Trapped => println!("guest: {granted} vectors, the table is trapped"),
    }
    if device.kind == Kind::Nvme {
        // It unmasks its vectors when their queues are there, and no sooner.
        nvme::run(device, granted, options);
        unmask_all(device, granted);
    }
    measure::mask_unmask(device, granted, options.pairs);
    if device.kind == Kind::Software {
        measure::neighbour(device, options.writes);
        load::run(device, granted, options);
    }
}

fn unmask_all(device: &Device, granted: u16) {
    if let Err(error) = device.unmask(granted) {
        report::failure(format_args!("{device}: a granted vector could not be unmasked: {error}"));
    }
}
