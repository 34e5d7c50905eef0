//! A bounded `configure` of a function behind VFIO, as the host's kernel sees it.
//!
//! Prints a line for each case: what the longest call has asked of the kernel, and what is left
//! behind when the configure is given up half way.

mod host;
mod trace;

use anyhow::{Result, bail, ensure};
use pvmsi_protocol::Sequence;

use self::host::Host;
use self::trace::{Trace, open_files};
use crate::guest::Answer;
use crate::interrupts;

/// Calls after which a configure is given up.
const HALF_WAY: usize = 5;
/// More calls than that never come to an end.
const CALLS_MAX: usize = 1000;

/// What happens between two calls, and how it is called in the output.
type Event = (&'static str, fn(&mut Host) -> Result<()>);

/// What ends an unfinished `configure`.
const ENDS: [Event; 4] = [
    ("release", Host::release),
    ("reset", Host::reset_function),
    ("machine-reset", Host::reset_machine),
    ("removal", Host::remove),
];

/// Runs all cases with at most `bound` vectors for a call.
///
/// # Errors
/// Where something else happens than in an emulated host must.
pub(crate) fn run(function: &str, bound: u16) -> Result<()> {
    let trace = Trace::start()?;
    let mut host = Host::new(function, bound)?;
    println!("vectors={} grows={}", host.vectors(), host.grows());
    let files = open_files()?;
    let cost = complete(&mut host, &trace, Sequence::START, 0)?;
    println!("whole {cost}");
    host.release()?;
    left("whole", &host, function, files)?;
    host.start()?;
    let sequence = begin(&mut host)?;
    host.revoke()?;
    host.allow()?;
    let cost = complete(&mut host, &trace, sequence, HALF_WAY)?;
    println!("revoke {cost}");
    host.release()?;
    left("revoke", &host, function, files)?;
    for (name, end) in ENDS {
        host.start()?;
        begin(&mut host)?;
        ensure!(!interrupts::of(function)?.is_empty(), "{name}: nothing was prepared");
        end(&mut host)?;
        left(name, &host, function, files)?;
    }
    Ok(())
}

/// The first calls of a configure, all of which are busy.
fn begin(host: &mut Host) -> Result<Sequence> {
    let mut sequence = Sequence::START;
    for _ in 0..HALF_WAY {
        match host.configure(sequence)? {
            Answer::Busy(next) => sequence = next,
            Answer::Granted(vectors) => bail!("{vectors} vectors are granted already"),
        }
    }
    Ok(sequence)
}

/// Goes on until all vectors are granted; the most that one of the calls has asked for.
fn complete(host: &mut Host, trace: &Trace, sequence: Sequence, calls: usize) -> Result<String> {
    let mut sequence = sequence;
    let (mut most_requests, mut most_vectors, mut requests) = (0, 0, 0_usize);
    for call in calls.saturating_add(1)..CALLS_MAX {
        trace.clear()?;
        let answer = host.configure(sequence)?;
        let seen = trace.read()?;
        most_requests = most_requests.max(seen.requests);
        most_vectors = most_vectors.max(seen.vectors);
        requests = requests.saturating_add(seen.requests);
        match answer {
            Answer::Busy(next) => sequence = next,
            Answer::Granted(granted) => {
                let mode = host.mode()?;
                return Ok(format!(
                    "calls={call} granted={granted} mode={mode} requests={requests} \
                     most_requests={most_requests} most_vectors={most_vectors}"
                ));
            }
        }
    }
    bail!("the host is busy for ever")
}

/// Prints what is left: interrupts of the host, events that are attached, open files.
fn left(name: &str, host: &Host, function: &str, files: usize) -> Result<()> {
    let interrupts = interrupts::of(function)?.len();
    // A function that is gone has closed its own as well.
    let files = open_files()?.saturating_sub(files);
    println!("left {name} interrupts={interrupts} attached={} files={files}", host.attached());
    Ok(())
}
