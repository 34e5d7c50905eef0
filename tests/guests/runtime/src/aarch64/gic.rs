//! The GICv3's distributor, redistributors and CPU interfaces (Arm IHI 0069).

use core::ptr::NonNull;

use arm_gic::IntId;
use arm_gic::gicv3::registers::{Gicd, GicrSgi};
use arm_gic::gicv3::{GicCpuInterface, GicDistributor, GicRedistributor};
use safe_mmio::UniqueMmioPointer;

use super::lpi;

/// The virtual timer's interrupt.
pub(crate) const TIMER: IntId = IntId::ppi(11);

/// Priority of what vCPUs send each other and of the tick. Devices have [`lpi::PRIORITY`].
const PRIORITY: u8 = 0xc0;

const DISTRIBUTOR: usize = 0x0800_0000;
const REDISTRIBUTORS: usize = 0x080a_0000;

/// Switches the distributor on, and prepares for LPIs. Once, on the boot processor.
pub(crate) fn initialise() -> Result<(), &'static str> {
    let registers = pointer::<Gicd>(DISTRIBUTOR)?;
    // SAFETY: the machine contract has a distributor there, and nothing else uses it.
    let mut distributor = GicDistributor::new(unsafe { UniqueMmioPointer::new(registers) });
    distributor.configure_default_settings();
    let typer = distributor.typer();
    if !typer.lpis_supported() || typer.id_bits() < lpi::ID_BITS {
        return Err("too few LPIs");
    }
    lpi::initialise()
}

/// Switches redistributor and CPU interface of a vCPU on. On that vCPU.
pub(crate) fn start(index: usize) -> Result<(), &'static str> {
    let registers = pointer::<GicrSgi>(
        size_of::<GicrSgi>().saturating_mul(index).saturating_add(REDISTRIBUTORS),
    )?;
    // SAFETY: the machine contract has the vCPU's redistributor there; only this vCPU uses it.
    let mut registers = unsafe { UniqueMmioPointer::new(registers) };
    lpi::start(registers.reborrow())?;
    let mut redistributor = GicRedistributor::new(registers);
    redistributor.configure_default_settings();
    // It may be awake already.
    let _ = redistributor.mark_core_awake();
    for id in (0..16).map(IntId::sgi).chain([TIMER]) {
        redistributor
            .set_interrupt_priority(id, PRIORITY)
            .and_then(|()| redistributor.enable_interrupt(id, true))
            .map_err(|_| "an interrupt of every GICv3 is missing")?;
    }
    GicCpuInterface::enable_system_register_el1();
    GicCpuInterface::set_priority_mask(u8::MAX);
    GicCpuInterface::enable_group1(true);
    Ok(())
}

fn pointer<T>(address: usize) -> Result<NonNull<T>, &'static str> {
    NonNull::new(core::ptr::with_exposed_provenance_mut(address)).ok_or("no address")
}
