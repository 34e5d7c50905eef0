//! From the machine's entry point to the guest, on every vCPU.
//!
//! `aarch64-rt` switches the MMU on and clears the memory that the image does
//! not fill, before any Rust code.

use core::ptr::NonNull;

use aarch64_paging::descriptor::El1Attributes;
use aarch64_rt::{InitialPagetable, Stack, start_core};
use arm_sysregs::el1::accessors::read_mpidr_el1;

use super::{Conduit, device_tree, gic, its};
use crate::entry::enter;
use crate::memory::{self, PAGE};
use crate::{Start, park, report};

/// The most vCPUs: what one SGI reaches, and the machine has.
pub(crate) const VCPUS_MAX: usize = 16;

/// Pages of stack of each vCPU.
const STACK_PAGES: usize = 16;

aarch64_rt::entry!(boot, STACK_PAGES);
aarch64_rt::initial_pagetable!(identity_map());

unsafe extern "C" {
    /// The end of image and boot stack; the linker script defines it.
    static dma_region: u8;
}

/// The end of image and boot stack. The other vCPUs' stacks are allocated.
pub(crate) fn image_end() -> usize {
    (&raw const dma_region).expose_provenance()
}

/// The index of the vCPU that runs this: affinity level 0, by the machine contract.
pub(crate) fn vcpu_index() -> usize {
    usize::from(read_mpidr_el1().aff0())
}

/// The first 4 GiB, in blocks of 1 GiB: devices, then RAM.
const fn identity_map() -> InitialPagetable {
    // Index 0 is device memory (nGnRE), 1 is normal write-back memory, as in `DEFAULT_MAIR`.
    let common = El1Attributes::VALID.union(El1Attributes::ACCESSED).bits();
    let device =
        El1Attributes::ATTRIBUTE_INDEX_0.union(El1Attributes::PXN).union(El1Attributes::UXN).bits();
    let ram = El1Attributes::ATTRIBUTE_INDEX_1
        .union(El1Attributes::INNER_SHAREABLE)
        .union(El1Attributes::UXN)
        .bits();
    let mut blocks = [0; 512];
    [blocks[0], blocks[1], blocks[2], blocks[3]] =
        [common | device, common | ram | 1 << 30, common | ram | 2 << 30, common | ram | 3 << 30];
    InitialPagetable(blocks)
}

fn boot(device_tree: u64, _: u64, _: u64, _: u64) -> ! {
    let start = device_tree::read(device_tree);
    memory::initialise(start.ram_end);
    if let Err(error) = gic::initialise().and_then(|()| its::initialise()) {
        report::failure(format_args!("interrupt controller: {error}"));
    }
    for index in 1..start.vcpus {
        if let Err(error) = start_vcpu(&start, index) {
            report::failure(format_args!("vCPU {index}: {error}"));
        }
    }
    run(&start, 0)
}

fn start_vcpu(start: &Start, index: usize) -> Result<(), &'static str> {
    let stack = memory::allocate(STACK_PAGES.saturating_mul(PAGE)).ok_or("no RAM for its stack")?;
    let stack: NonNull<Stack<STACK_PAGES>> = stack.start().cast();
    let affinity = u64::try_from(index).unwrap_or(u64::MAX);
    let start = *start;
    let entry = move || run(&start, index);
    let result = match start.platform.conduit {
        // SAFETY: the stack is this vCPU's for good, and mapped alike on every vCPU.
        Conduit::Hvc => unsafe {
            start_core::<smccc::Hvc, _, STACK_PAGES>(affinity, stack.as_ptr(), entry)
        },
        // SAFETY: as above.
        Conduit::Smc => unsafe {
            start_core::<smccc::Smc, _, STACK_PAGES>(affinity, stack.as_ptr(), entry)
        },
    };
    result.map_err(|_| "PSCI does not start it")
}

fn run(start: &Start, index: usize) -> ! {
    if let Err(error) = gic::start(index).and_then(|()| its::start(index)) {
        report::failure(format_args!("interrupt controller of vCPU {index}: {error}"));
        park();
    }
    enter(start, index)
}
