//! A hostile driver: writes messages that are not its own into a direct vector table, and looks at what arrives.
//!
//! It needs an Intel 82576 (igb) behind VFIO, whose interrupts software can
//! raise, and takes an NVMe drive as the other function, whose messages it
//! steals. The host's IOMMU says in its log what it has blocked.
//!
//! With `linger=1` on the command line it forges nothing: it waits until the
//! host takes the function away, and says what it is told.
#![no_std]
#![no_main]

#[cfg_attr(target_arch = "x86_64", path = "x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "aarch64.rs")]
mod arch;
mod network;
mod victim;

use core::sync::atomic::{AtomicU32, Ordering};

use pvmsi_guest::{CallError, Reasons};
use pvmsi_guest_client::{ServiceClient, connect};
use pvmsi_guest_report::Event;
use pvmsi_guest_runtime::interrupts::FIRST_DEVICE;
use pvmsi_guest_runtime::{Start, entry, interrupts, park, pci, println, report, timer, vcpu};

use network::Network;

/// How long an interrupt that must come may take, in milliseconds.
const PATIENCE: u32 = 5000;
/// How long one that must not come is waited for, in milliseconds.
const QUIET: u32 = 300;
/// How long the host may take to take the function away, in milliseconds.
const LINGER: u32 = 90_000;

/// Interrupts of devices, by number.
static TAKEN: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];

/// Numbers of the function that forges.
const OWN: (usize, usize) = (FIRST_DEVICE as usize, victim::INTERRUPT as usize);
/// Numbers of others.
const OTHERS: (usize, usize) = (victim::INTERRUPT as usize, TAKEN.len());

entry!(main);

fn main(start: &Start, index: usize) -> ! {
    if index != 0 {
        park();
    }
    interrupts::set_handler(|number| {
        if let Some(taken) = TAKEN.get(usize::from(number)) {
            taken.fetch_add(1, Ordering::AcqRel);
        }
    });
    timer::start_tick();
    if let Err(error) = run(start) {
        report::failure(format_args!("{error}"));
    }
    report::send(&Event::Done);
    park()
}

fn run(start: &Start) -> Result<(), &'static str> {
    let mut client = connect(start.platform()).ok_or("the host does not offer PV-MSI")?;
    let network = pci::functions().find_map(Network::find).ok_or("no igb function on bus 0")?;
    if start.number("linger") == Some(1) {
        network.start(&mut client)?;
        works(&network)?;
        return linger(&network, &mut client);
    }
    let stolen = victim::message(&mut client)?;
    network.start(&mut client)?;
    works(&network)?;
    for (what, message) in arch::forgeries(stolen) {
        let before = [taken(OWN), taken(OTHERS)];
        network.forge(message);
        network.raise();
        vcpu::wait_until(QUIET, || false);
        // Where an index is the function's own, as behind an AMD IOMMU, its own interrupt is rightly raised.
        let arrived = match [taken(OWN), taken(OTHERS)] {
            after if after == before => "nothing arrived",
            [_, others] if others == before[1] => "its own interrupt arrived",
            _ => {
                report::failure(format_args!("forged: {what}: {message:x?}: another's arrived"));
                continue;
            }
        };
        println!("forged: {what}: {message:x?}: {arrived}");
    }
    client.release(network.id()).map_err(|_| "release failed")?;
    network.start(&mut client)?;
    works(&network)?;
    println!("released: the function works again");
    Ok(())
}

/// The function's own interrupt arrives.
fn works(network: &Network) -> Result<(), &'static str> {
    let before = taken(OWN);
    network.raise();
    if vcpu::wait_until(PATIENCE, || taken(OWN) != before) {
        Ok(())
    } else {
        Err("the function's own interrupt does not arrive")
    }
}

/// Asks again and again until the function is gone.
fn linger(network: &Network, client: &mut ServiceClient) -> Result<(), &'static str> {
    println!("ready");
    let mut revoked = false;
    let mut gone = false;
    vcpu::wait_until(LINGER, || {
        match client.query_function(network.id()) {
            Ok(answer) if answer.reasons.contains(Reasons::HOST_REVOKED) && !revoked => {
                println!("told: the host has revoked the table, {:?}", answer.mode);
                revoked = true;
            }
            Ok(_) => {}
            Err(CallError::NoSuchFunction) => gone = true,
            Err(_) => return true,
        }
        gone
    });
    if !(revoked && gone) {
        return Err("the host has not taken the function away in turn");
    }
    println!("told: the function is gone");
    if network.status() != u32::MAX {
        return Err("the registers of a function that is gone can be read");
    }
    Ok(())
}

/// How often interrupts of some numbers came.
fn taken((first, end): (usize, usize)) -> u32 {
    let numbers = TAKEN.get(first..end).unwrap_or_default();
    numbers.iter().fold(0, |sum, taken| sum.wrapping_add(taken.load(Ordering::Acquire)))
}
