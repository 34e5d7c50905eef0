//! PCI configuration mechanism 1 (PCI Local Bus Specification 3.0, 3.2.2.3.2).

use core::sync::atomic::{AtomicBool, Ordering};

use x86_64::instructions::port::{Port, PortRead, PortWrite};

use crate::pci::Function;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;

/// Address and data port are two accesses: one vCPU at a time.
static BUSY: AtomicBool = AtomicBool::new(false);

/// Reads one, two or four aligned bytes.
pub(crate) fn read<T: PortRead>(function: Function, offset: u16) -> T {
    let mut port = Port::new(data_port::<T>(offset));
    // SAFETY: config reads of mechanism 1 have no side effect that matters.
    select(function, offset, || unsafe { port.read() })
}

/// Writes one, two or four aligned bytes.
pub(crate) fn write<T: PortWrite>(function: Function, offset: u16, value: T) {
    let mut port = Port::new(data_port::<T>(offset));
    // SAFETY: the guest owns its functions. A BAR that were moved over RAM would be its own fault; nothing here moves one.
    select(function, offset, || unsafe { port.write(value) });
}

fn data_port<T>(offset: u16) -> u16 {
    let lanes: u16 = match size_of::<T>() {
        1 => 3,
        2 => 2,
        _ => 0,
    };
    DATA | offset & lanes
}

fn select<T>(function: Function, offset: u16, access: impl FnOnce() -> T) -> T {
    let address = ENABLE | u32::from(function.requester_id()) << 8 | u32::from(offset & 0xfc);
    while BUSY.swap(true, Ordering::Acquire) {
        core::hint::spin_loop();
    }
    let mut port = Port::<u32>::new(ADDRESS);
    // SAFETY: the address register of mechanism 1; it only selects.
    unsafe { port.write(address) };
    let result = access();
    BUSY.store(false, Ordering::Release);
    result
}
