//! Exits, requests to the host's kernel, and bytes of calls: what every vector costs until it can fire, when it moves, and when it is masked.

use std::io::Write;

use anyhow::Result;
use pvmsi_protocol::Sequence;

use crate::host::{self, Cost, ENABLE, FUNCTION_MASK, Host, Options};
use crate::{Line, Meter, Side, Unit, VECTORS, standard};

/// Runs all.
///
/// # Errors
/// Where an operation does not do what its figure is about.
pub fn run<W: Write>(meter: &mut Meter<W>) -> Result<()> {
    host::raise_file_limit()?;
    lines()?.iter().try_for_each(|line| meter.print(line))
}

/// All counts.
///
/// # Errors
/// As [`run`].
pub fn lines() -> Result<Vec<Line>> {
    let host = Host::new(Options { vectors: VECTORS, direct: true })?;
    let request = host.write_configure(VECTORS, true, Sequence::START)?;
    let mut lines = Vec::new();
    let mut count = |name: &str, vectors, bytes: Option<usize>, cost: Cost, side| {
        let mut add = |what: &str, unit, value: u64| {
            // A count of this size is exact in 53 bits.
            #[expect(clippy::cast_precision_loss, reason = "see above")]
            let value = Some(value as f64);
            lines.push(Line { name: format!("{name}.{what}"), side, unit, vectors, per: 1, value });
        };
        add("exits", Unit::Exits, cost.exits);
        add("routing_updates", Unit::Requests, cost.routing_updates);
        add("interrupt_requests", Unit::Requests, cost.interrupt_requests);
        add("irqfds", Unit::Requests, cost.irqfds);
        if let Some(bytes) = bytes {
            add("bytes", Unit::Bytes, u64::try_from(bytes).unwrap_or(u64::MAX));
        }
    };

    let before = host.cost()?;
    set_up(&host, VECTORS);
    let bytes = request.saturating_add(host.answer()?);
    host.check(VECTORS, true)?;
    count("set_up", VECTORS, Some(bytes), host.cost()?.since(before), Side::PvMsi);

    let request = host.write_update(0, 1)?;
    let before = host.cost()?;
    host.ring();
    let bytes = request.saturating_add(host.answer()?);
    count("affinity_change", 1, Some(bytes), host.cost()?.since(before), Side::PvMsi);

    let before = host.cost()?;
    standard::mask_unmask(&host, 0);
    count("mask_unmask", 1, None, host.cost()?.since(before), Side::PvMsi);

    let host = Host::new(Options { vectors: VECTORS, direct: true })?;
    let before = host.cost()?;
    standard::set_up(&host, VECTORS);
    host.check(0, false)?;
    count("set_up", VECTORS, None, host.cost()?.since(before), Side::Standard);

    let before = host.cost()?;
    standard::move_one(&host, 0, 1);
    count("affinity_change", 1, None, host.cost()?.since(before), Side::Standard);

    let before = host.cost()?;
    standard::mask_unmask(&host, 0);
    count("mask_unmask", 1, None, host.cost()?.since(before), Side::Standard);
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
