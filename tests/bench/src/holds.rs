//! How long each doorbell exit of one bounded `configure` holds a processor, on this machine's KVM.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pvmsi_protocol::Sequence;

use crate::host::{self, ENABLE, Host};
use crate::{Line, Meter, Side, Unit, VECTORS};

/// Vectors of one call, at most.
pub(crate) const BOUND: u16 = 128;
/// How often all is done. Of each exit the shortest counts: what else runs on the machine at a time
/// only makes it longer.
const RUNS: usize = 31;
/// More calls than that never come to an end.
pub(crate) const CALLS_MAX: usize = 4096;

/// Runs it; the figure is the longest exit's share of the time of all.
///
/// # Errors
/// Without /dev/kvm.
pub fn run<W: Write>(meter: &mut Meter<W>) -> Result<()> {
    host::raise_file_limit()?;
    let mut exits: Vec<Vec<Duration>> = Vec::new();
    for run in 0..RUNS {
        let holds = holds()?;
        exits.resize_with(holds.len().max(exits.len()), Vec::new);
        for (exit, hold) in exits.iter_mut().zip(holds) {
            exit.push(hold);
        }
        ensure!(exits.iter().all(|exit| exit.len() == run.saturating_add(1)), "another way");
    }
    let shortest = exits.iter().filter_map(|exit| exit.iter().min());
    let shortest: Vec<_> = shortest.copied().collect();
    let longest = shortest.iter().max().context("no exit")?.as_secs_f64();
    meter.print(&Line {
        name: "host.longest_call_share".to_owned(),
        side: Side::PvMsi,
        unit: Unit::Share,
        vectors: VECTORS,
        per: 1,
        value: Some(longest / shortest.iter().sum::<Duration>().as_secs_f64()),
    })
}

/// How long each doorbell exit takes until all vectors are granted.
fn holds() -> Result<Vec<Duration>> {
    let host = Host::on_kvm(VECTORS, BOUND)?;
    host.write_control(ENABLE);
    let mut sequence = Sequence::START;
    let mut holds = Vec::new();
    loop {
        host.write_configure(VECTORS, false, sequence)?;
        let start = Instant::now();
        host.ring();
        holds.push(start.elapsed());
        ensure!(holds.len() <= CALLS_MAX, "the host is busy for ever");
        match host.busy()? {
            Some(next) => sequence = next,
            None => break,
        }
    }
    host.check(VECTORS, true)?;
    Ok(holds)
}
