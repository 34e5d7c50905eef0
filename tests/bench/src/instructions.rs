//! Regions whose instructions callgrind counts.

use std::io::Write;

use anyhow::Result;
use pvmsi_protocol::Sequence;

use crate::guest::{Memory, with_guest};
use crate::holds::{BOUND, CALLS_MAX};
use crate::host::{self, ENABLE, FUNCTION_MASK, Host, Options};
use crate::{Line, Meter, POWERS, Side, Unit, VECTORS, counts, standard};

/// Runs all; with `sweep` the series for the plot as well.
///
/// # Errors
/// Where an operation does not do what its figure is about.
pub fn run<W: Write>(meter: &mut Meter<W>, sweep: bool) -> Result<()> {
    host::raise_file_limit()?;
    configure(meter)?;
    bounded_configure(meter)?;
    for vectors in [8, VECTORS] {
        move_one(meter, &format!("host.update_one.assigned_{vectors}"), vectors)?;
    }
    trapped_mask_unmask(meter)?;
    function_mask_clear(meter)?;
    guest(meter)?;
    if sweep {
        for vectors in POWERS {
            set_up(meter, vectors)?;
            move_one(meter, "sweep.affinity_change", vectors)?;
            mask_unmask(meter, vectors)?;
        }
    }
    Ok(())
}

/// `configure` of all vectors, unmasked, with messages. The standard way takes its exits for each entry.
fn configure<W: Write>(meter: &mut Meter<W>) -> Result<()> {
    let name = "host.configure.per_vector";
    let host = Host::new(Options::default())?;
    host.write_control(ENABLE);
    host.write_configure(VECTORS, false, Sequence::START)?;
    meter.region(&line(name, Side::PvMsi, VECTORS, VECTORS), || {
        host.ring();
        Ok(())
    })?;
    host.answer()?;
    host.check(VECTORS, true)?;
    let host = Host::new(Options::default())?;
    meter.region(&line(name, Side::Standard, VECTORS, VECTORS), || {
        standard::set_up(&host, VECTORS);
        Ok(())
    })
}

/// The exits of a `configure` of all vectors, so many at most for each call.
fn bounded_configure<W: Write>(meter: &mut Meter<W>) -> Result<()> {
    let host = Host::new(Options { bound: BOUND, ..Options::default() })?;
    host.write_control(ENABLE);
    let mut sequence = Some(Sequence::START);
    for _ in 0..CALLS_MAX {
        let Some(next) = sequence else { break };
        host.write_configure(VECTORS, false, next)?;
        meter.region(&line("host.bounded_configure.exit", Side::PvMsi, VECTORS, 1), || {
            host.ring();
            Ok(())
        })?;
        sequence = host.busy()?;
    }
    host.check(VECTORS, true)
}

/// The interrupt of one vector moved, of so many that are set up.
fn move_one<W: Write>(meter: &mut Meter<W>, name: &str, vectors: u16) -> Result<()> {
    let host = set_up_by_call(vectors, true)?;
    host.write_update(0, 1)?;
    meter.region(&line(name, Side::PvMsi, vectors, 1), || {
        host.ring();
        Ok(())
    })?;
    host.answer()?;
    let host = set_up_in_table(vectors)?;
    meter.region(&line(name, Side::Standard, vectors, 1), || {
        standard::move_one(&host, 0, 1);
        Ok(())
    })
}

/// One vector masked and unmasked, of so many that are set up; a direct table makes no exit.
fn mask_unmask<W: Write>(meter: &mut Meter<W>, vectors: u16) -> Result<()> {
    for (side, host) in
        [(Side::PvMsi, set_up_by_call(vectors, true)?), (Side::Standard, set_up_in_table(vectors)?)]
    {
        meter.region(&line("sweep.mask_unmask", side, vectors, 1), || {
            standard::mask_unmask(&host, 0);
            Ok(())
        })?;
    }
    Ok(())
}

/// Two writes of vector control: of vectors that are assigned, and of ones that are not.
fn trapped_mask_unmask<W: Write>(meter: &mut Meter<W>) -> Result<()> {
    for (side, host) in [
        (Side::PvMsi, set_up_by_call(VECTORS, false)?),
        (Side::Standard, set_up_in_table(VECTORS)?),
    ] {
        meter.region(&line("host.trapped_mask_unmask", side, VECTORS, 1), || {
            host.write_mask(0, true);
            host.write_mask(0, false);
            Ok(())
        })?;
    }
    Ok(())
}

/// Function Mask cleared, and each vector gets its irqfd: in a direct table also those that are masked, in a trapped one those that are not.
fn function_mask_clear<W: Write>(meter: &mut Meter<W>) -> Result<()> {
    let name = "host.function_mask_clear.per_vector";
    let host = Host::new(Options::default())?;
    host.write_control(ENABLE | FUNCTION_MASK);
    host.write_configure(VECTORS, true, Sequence::START)?;
    host.ring();
    host.answer()?;
    host.check(VECTORS, true)?;
    let standard = set_up_in_table(VECTORS)?;
    standard.write_control(ENABLE | FUNCTION_MASK);
    for (side, host) in [(Side::PvMsi, host), (Side::Standard, standard)] {
        let before = host.cost()?;
        meter.region(&line(name, side, VECTORS, VECTORS), || {
            host.write_control(ENABLE);
            Ok(())
        })?;
        let irqfds = host.cost()?.since(before).irqfds;
        anyhow::ensure!(irqfds == u64::from(VECTORS), "{irqfds} irqfds");
    }
    Ok(())
}

/// All that it takes until every vector can fire.
fn set_up<W: Write>(meter: &mut Meter<W>, vectors: u16) -> Result<()> {
    let host = Host::new(Options::default())?;
    host.write_configure(vectors, true, Sequence::START)?;
    meter.region(&line("sweep.set_up", Side::PvMsi, vectors, 1), || {
        counts::set_up(&host, vectors);
        Ok(())
    })?;
    host.answer()?;
    host.check(vectors, true)?;
    let host = Host::new(Options::default())?;
    meter.region(&line("sweep.set_up", Side::Standard, vectors, 1), || {
        standard::set_up(&host, vectors);
        Ok(())
    })
}

/// The guest half alone.
fn guest<W: Write>(meter: &mut Meter<W>) -> Result<()> {
    let mut memory = Memory::new(VECTORS);
    for (name, messages) in [("without", false), ("with", true)] {
        let name = format!("guest.configure.per_vector.{name}_messages");
        with_guest(VECTORS, &mut memory, |guest| {
            meter.region(&line(&name, Side::PvMsi, VECTORS, VECTORS), || guest.configure(messages))
        })?;
    }
    for (side, by_call) in [(Side::PvMsi, true), (Side::Standard, false)] {
        with_guest(VECTORS, &mut memory, |guest| {
            let line = line("guest.enable.per_vector", side, VECTORS, VECTORS);
            meter.region(&line, || guest.enable(by_call))
        })?;
    }
    Ok(())
}

/// Vectors that are assigned, unmasked and have messages, of a function with the most vectors.
fn set_up_by_call(vectors: u16, direct: bool) -> Result<Host> {
    let host = Host::new(Options { direct, ..Options::default() })?;
    host.write_control(ENABLE);
    host.write_configure(vectors, false, Sequence::START)?;
    host.ring();
    host.answer()?;
    host.check(vectors, direct)?;
    Ok(host)
}

/// The same in the standard way.
fn set_up_in_table(vectors: u16) -> Result<Host> {
    let host = Host::new(Options::default())?;
    standard::set_up(&host, vectors);
    host.check(0, false)?;
    Ok(host)
}

fn line(name: &str, side: Side, vectors: u16, per: u16) -> Line {
    Line { name: name.to_owned(), side, unit: Unit::Instructions, vectors, per, value: None }
}
