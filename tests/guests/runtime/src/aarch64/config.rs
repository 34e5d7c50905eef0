//! The enhanced configuration access mechanism (PCI Express Base Specification, 7.2.2).

use crate::mmio::{Register, Width};
use crate::pci::Function;

const BASE: usize = 0x3f00_0000;

/// Reads one, two or four aligned bytes.
pub(crate) fn read<T: Width>(function: Function, offset: u16) -> T {
    register(function, offset).read()
}

/// Writes one, two or four aligned bytes.
pub(crate) fn write<T: Width>(function: Function, offset: u16, value: T) {
    register(function, offset).write(value);
}

fn register<T: Width>(function: Function, offset: u16) -> Register<T> {
    let aligned = usize::from(offset & 0xfff) & !size_of::<T>().wrapping_sub(1);
    let address = BASE | usize::from(function.requester_id()) << 12 | aligned;
    // SAFETY: the machine contract gives bus 0 its configuration space there; aligned.
    unsafe { Register::at(address) }
}
