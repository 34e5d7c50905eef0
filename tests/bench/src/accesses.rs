//! Operations of the guest half whose loads and stores of the vector table lackey shows.

use std::io::Write;

use anyhow::Result;

use crate::guest::{Guest, Memory, with_guest};
use crate::{Line, Meter, Side, Unit, VECTORS};

/// Says where the table is and runs all.
///
/// # Errors
/// Where an operation does not do what its figure is about.
pub fn run<W: Write>(meter: &mut Meter<W>) -> Result<()> {
    let mut memory = Memory::new(VECTORS);
    meter.print_places(&memory.table())?;
    for (side, by_call) in [(Side::PvMsi, true), (Side::Standard, false)] {
        with_guest(VECTORS, &mut memory, |guest| operations(meter, guest, side, by_call))?;
    }
    Ok(())
}

fn operations<W: Write>(
    meter: &mut Meter<W>,
    guest: &mut Guest<'_>,
    side: Side,
    by_call: bool,
) -> Result<()> {
    let line = |name: &str, vectors| Line {
        name: name.to_owned(),
        side,
        unit: Unit::Accesses,
        vectors,
        per: 1,
        value: None,
    };
    meter.region(&line("guest.enable", VECTORS), || guest.enable(by_call))?;
    meter.region(&line("guest.unmask_all", VECTORS), || {
        (0..VECTORS).try_for_each(|vector| guest.unmask(vector))
    })?;
    meter.region(&line("guest.affinity_change", 1), || guest.set(0, 1))?;
    meter.region(&line("guest.mask_unmask", 1), || {
        guest.mask(0)?;
        guest.unmask(0)
    })?;
    meter.region(&line("guest.disable", VECTORS), || {
        guest.disable();
        Ok(())
    })
}
