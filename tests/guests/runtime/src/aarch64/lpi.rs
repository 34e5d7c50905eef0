//! LPIs: the tables that make them interrupts of a vCPU, and what each stands for (Arm IHI 0069, chapter 5).

use core::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

use arm_gic::IntId;
use arm_gic::gicv3::registers::{GicrCtlr, GicrSgi};
use safe_mmio::{UniqueMmioPointer, field};

use crate::memory::{Area, allocate_aligned};

/// Bits of an interrupt id.
pub(crate) const ID_BITS: u32 = 16;

/// Priority of every LPI: above everything else.
pub(crate) const PRIORITY: u8 = 0x80;
const ENABLED: u8 = 1;

const FIRST: usize = 8192;
const COUNT: usize = (1 << ID_BITS) - FIRST;

/// Alignment that suits all tables of the GIC.
pub(crate) const TABLE_ALIGNMENT: usize = 64 << 10;
/// Inner shareable, the field of all base registers.
pub(crate) const INNER_SHAREABLE: u64 = 1 << 10;
/// Read- and write-allocate, write-back: the value of all cacheability fields.
pub(crate) const WRITE_BACK: u64 = 0b111;

/// The interrupt number of each LPI; 0 for none.
static INTERRUPTS: [AtomicU8; COUNT] = [const { AtomicU8::new(0) }; COUNT];
/// LPIs that are taken.
static TAKEN: AtomicUsize = AtomicUsize::new(0);
/// Guest physical address of the configuration table, which all vCPUs share.
static CONFIGURATION: AtomicU64 = AtomicU64::new(0);

/// Makes the configuration table. All LPIs are enabled from the start, so none is ever invalidated in a cache.
pub(crate) fn initialise() -> Result<(), &'static str> {
    let table = table(COUNT)?;
    // SAFETY: the whole of a fresh area.
    unsafe { table.start().write_bytes(PRIORITY | ENABLED, COUNT) };
    CONFIGURATION.store(table.physical(), Ordering::Release);
    Ok(())
}

/// Gives a redistributor its tables and switches LPIs on.
pub(crate) fn start(mut redistributor: UniqueMmioPointer<'_, GicrSgi>) -> Result<(), &'static str> {
    const ZERO: u64 = 1 << 62;

    let pending = table((1 << ID_BITS) / 8)?;
    let configuration = CONFIGURATION.load(Ordering::Acquire);
    let mut registers = field!(redistributor, gicr);
    // A machine that was reset may have them on; then the base registers cannot be written.
    field!(registers, ctlr).modify(|control| control.difference(GicrCtlr::EnableLPIs));
    field!(registers, propbaser).write(
        configuration | WRITE_BACK << 7 | INNER_SHAREABLE | u64::from(ID_BITS.saturating_sub(1)),
    );
    field!(registers, pendbaser)
        .write(pending.physical() | ZERO | WRITE_BACK << 7 | INNER_SHAREABLE);
    field!(registers, ctlr).modify(|control| control | GicrCtlr::EnableLPIs);
    if !field!(registers, ctlr).read().contains(GicrCtlr::EnableLPIs) {
        return Err("the redistributor does not take LPIs");
    }
    Ok(())
}

/// Takes so many consecutive LPIs; returns the first one's id.
pub(crate) fn take(count: u16) -> Result<u32, &'static str> {
    let first = TAKEN
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            taken.checked_add(count.into()).filter(|&taken| taken <= COUNT)
        })
        .map_err(|_| "no LPI left")?;
    u32::try_from(first.saturating_add(FIRST)).map_err(|_| "no LPI left")
}

/// Says which interrupt an LPI is.
pub(crate) fn set_interrupt(id: u32, number: u8) {
    if let Some(interrupt) = slot(id) {
        interrupt.store(number, Ordering::Release);
    }
}

/// Which interrupt an LPI is.
pub(crate) fn interrupt(id: IntId) -> Option<u8> {
    let number = slot(id.raw_value())?.load(Ordering::Acquire);
    (number != 0).then_some(number)
}

/// Memory for a table of the GIC, zeroed.
pub(crate) fn table(bytes: usize) -> Result<Area, &'static str> {
    allocate_aligned(bytes, TABLE_ALIGNMENT).ok_or("no RAM left for a table; give the guest more")
}

fn slot(id: u32) -> Option<&'static AtomicU8> {
    INTERRUPTS.get(usize::try_from(id).ok()?.checked_sub(FIRST)?)
}
