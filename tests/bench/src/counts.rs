//! Exits, requests to the host's kernel, and bytes of calls, for each event of a driver's life.
//!
//! By calls the table is direct. In the standard way the guest half makes the accesses, in its
//! legacy world. Both are about a function with 2048 vectors that are all used.

use std::io::Write;

use anyhow::Result;
use pvmsi_protocol::Sequence;

use crate::host::{self, Cost, ENABLE, FUNCTION_MASK, Host, Options};
use crate::{Line, Meter, POWERS, Side, Unit, VECTORS, standard};

/// Prints all; with `sweep` also the exits of some events with 1 to 2048 vectors, for the plot.
///
/// # Errors
/// Where an event does not do what its figures are about.
pub fn run<W: Write>(meter: &mut Meter<W>, sweep: bool) -> Result<()> {
    host::raise_file_limit()?;
    let mut lines = lines()?;
    if sweep {
        for vectors in POWERS {
            lines.extend(swept(vectors)?);
        }
    }
    lines.iter().try_for_each(|line| meter.print(line))
}

/// All counts.
///
/// # Errors
/// As [`run`].
pub fn lines() -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    by_call(&mut Events { lines: &mut lines, side: Side::PvMsi })?;
    in_the_standard_way(&mut Events { lines: &mut lines, side: Side::Standard })?;
    Ok(lines)
}

fn by_call(events: &mut Events<'_>) -> Result<()> {
    let host = Host::new(Options::default())?;
    events.add(&host, "enable", None, |host| host.write_control(ENABLE))?;
    // As Linux does: messages come later, one by one.
    let request = host.write_configure_without_messages(VECTORS)?;
    events.call(&host, "configure.without_messages", request)?;
    let request = host.write_configure(VECTORS, true, Sequence::START)?;
    events.call(&host, "configure.with_messages", request)?;
    let request = host.write_configure(VECTORS, true, Sequence::START)?;
    events.call(&host, "configure.again", request)?;
    let request = host.write_release()?;
    events.call(&host, "release", request)?;

    let host = Host::new(Options::default())?;
    let request = host.write_configure(VECTORS, true, Sequence::START)?;
    events.add(&host, "set_up", Some(request), |host| set_up(host, VECTORS))?;
    host.check(VECTORS, true)?;
    let request = host.write_update(0, 1)?;
    events.call(&host, "affinity_change", request)?;
    events.add(&host, "mask_unmask", None, |host| standard::mask_unmask(host, 0))?;
    events.add(&host, "write_beside_table", None, Host::write_beside_table)?;
    events.add(&host, "disable", None, |host| host.write_control(0))
}

fn in_the_standard_way(events: &mut Events<'_>) -> Result<()> {
    let host = Host::new(Options::default())?;
    events.add(&host, "enable", None, |host| host.write_control(ENABLE))?;
    host.write_message(0, 0);
    events.add(&host, "unmask_first", None, |host| host.write_mask(0, false))?;
    host.write_message(1, 1);
    events.add(&host, "unmask_next", None, |host| host.write_mask(1, false))?;

    let host = Host::new(Options::default())?;
    events.add(&host, "set_up", None, |host| standard::set_up(host, VECTORS))?;
    host.check(0, false)?;
    events.add(&host, "affinity_change", None, |host| standard::move_one(host, 0, 1))?;
    events.add(&host, "mask_unmask", None, |host| standard::mask_unmask(host, 0))?;
    events.add(&host, "write_beside_table", None, Host::write_beside_table)?;
    events.add(&host, "disable", None, |host| host.write_control(0))
}

/// Exits of the events that the plot shows.
fn swept(vectors: u16) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    let mut add = |host: &Host, name: &str, side, act: &dyn Fn(&Host)| -> Result<()> {
        let cost = spent(host, act)?;
        lines.push(line(format!("sweep.{name}"), side, Unit::Exits, vectors, cost.exits));
        Ok(())
    };
    let host = Host::new(Options::default())?;
    host.write_configure(vectors, true, Sequence::START)?;
    add(&host, "set_up", Side::PvMsi, &|host| set_up(host, vectors))?;
    host.check(vectors, true)?;
    host.write_update(0, 1)?;
    add(&host, "affinity_change", Side::PvMsi, &Host::ring)?;
    host.answer()?;
    add(&host, "mask_unmask", Side::PvMsi, &|host| standard::mask_unmask(host, 0))?;
    let host = Host::new(Options::default())?;
    add(&host, "set_up", Side::Standard, &|host| standard::set_up(host, vectors))?;
    add(&host, "affinity_change", Side::Standard, &|host| standard::move_one(host, 0, 1))?;
    add(&host, "mask_unmask", Side::Standard, &|host| standard::mask_unmask(host, 0))?;
    Ok(lines)
}

/// What the guest half makes a host do until every vector can fire; the call buffer holds its `configure`.
pub(crate) fn set_up(host: &Host, vectors: u16) {
    host.read_control();
    host.change_control(ENABLE | FUNCTION_MASK);
    host.ring();
    host.change_control(ENABLE);
    for vector in 0..vectors {
        host.write_mask(vector, false);
    }
}

/// Collects the costs of events.
struct Events<'l> {
    lines: &'l mut Vec<Line>,
    side: Side,
}

impl Events<'_> {
    /// A call; the buffer holds its request of so many bytes.
    fn call(&mut self, host: &Host, name: &str, request: usize) -> Result<()> {
        self.add(host, name, Some(request), Host::ring)
    }

    /// An event; one of its acts is a call where `request` says how long the call's request is.
    fn add(
        &mut self,
        host: &Host,
        name: &str,
        request: Option<usize>,
        act: impl Fn(&Host),
    ) -> Result<()> {
        let cost = spent(host, &act)?;
        let mut add = |what: &str, unit, value| {
            self.lines.push(line(format!("{name}.{what}"), self.side, unit, VECTORS, value));
        };
        add("exits", Unit::Exits, cost.exits);
        add("routing_updates", Unit::Requests, cost.routing_updates);
        add("interrupt_requests", Unit::Requests, cost.interrupt_requests);
        add("irqfds", Unit::Requests, cost.irqfds);
        if let Some(request) = request {
            let bytes = request.saturating_add(host.answer()?);
            add("bytes", Unit::Bytes, u64::try_from(bytes)?);
        }
        Ok(())
    }
}

fn spent(host: &Host, act: &dyn Fn(&Host)) -> Result<Cost> {
    let before = host.cost()?;
    act(host);
    Ok(host.cost()?.since(before))
}

fn line(name: String, side: Side, unit: Unit, vectors: u16, count: u64) -> Line {
    // A count of this size is exact in 53 bits.
    #[expect(clippy::cast_precision_loss, reason = "see above")]
    let value = Some(count as f64);
    Line { name, side, unit, vectors, per: 1, value }
}
