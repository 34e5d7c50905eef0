//! How long each doorbell exit of one bounded `configure` holds a processor, on this machine's KVM.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pvmsi_protocol::Sequence;

use crate::host::{self, ENABLE, Host};
use crate::{Line, Meter, Side, Unit, VECTORS};

/// Vectors of one call, at most.
pub(crate) const BOUND: u16 = 128;
/// How often all is done: the figure is the median.
const RUNS: usize = 15;
/// More calls than that never come to an end.
pub(crate) const CALLS_MAX: usize = 4096;

/// Runs it; the figure is the longest exit's share of the time of all.
///
/// # Errors
/// Without /dev/kvm.
pub fn run<W: Write>(meter: &mut Meter<W>) -> Result<()> {
    host::raise_file_limit()?;
    let mut shares = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let holds = holds()?;
        let longest = holds.iter().max().context("no exit")?.as_secs_f64();
        shares.push(longest / holds.iter().sum::<Duration>().as_secs_f64());
    }
    shares.sort_unstable_by(f64::total_cmp);
    meter.print(&Line {
        name: "host.longest_call_share".to_owned(),
        side: Side::PvMsi,
        unit: Unit::Share,
        vectors: VECTORS,
        per: 1,
        value: shares.get(RUNS / 2).copied(),
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
