//! Loads and stores of the vector table, from valgrind's lackey.
//!
//! Its trace has a line for each access of the whole program. Which ones belong to which operation
//! shows in the trace itself: `pvmsi-bench` stores to a flag when one begins and when it ends.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// Where the things are that the trace is about, as `pvmsi-bench` says.
#[derive(Deserialize)]
pub(super) struct Places {
    table_start: u64,
    table_end: u64,
    flag: u64,
}

/// Accesses to the table in one operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Accesses {
    pub(super) reads: u64,
    pub(super) writes: u64,
}

/// Options that make it write its trace into a file.
pub(super) fn arguments(trace: &Path) -> Vec<String> {
    let file = format!("--log-file={}", trace.display());
    ["--tool=lackey", "--trace-mem=yes", &file].map(str::to_owned).into()
}

/// Counts the accesses of each operation.
///
/// # Errors
/// When there is no trace, or it ends in the middle of an operation.
pub(super) fn read(trace: &Path, places: &Places) -> Result<Vec<Accesses>> {
    let file = File::open(trace).with_context(|| format!("no trace at {}", trace.display()))?;
    count(BufReader::new(file), places)
}

fn count(trace: impl BufRead, places: &Places) -> Result<Vec<Accesses>> {
    let mut operations = Vec::new();
    let mut current: Option<Accesses> = None;
    for line in trace.split(b'\n') {
        let line = line?;
        let Some((kind, address)) = access(&line) else { continue };
        if address == places.flag && kind != Kind::Load {
            match current.take() {
                Some(operation) => operations.push(operation),
                None => current = Some(Accesses::default()),
            }
        }
        if let Some(operation) = &mut current
            && (places.table_start..places.table_end).contains(&address)
        {
            let reads = u64::from(kind != Kind::Store);
            let writes = u64::from(kind != Kind::Load);
            operation.reads = operation.reads.saturating_add(reads);
            operation.writes = operation.writes.saturating_add(writes);
        }
    }
    if current.is_some() {
        bail!("the trace ends in the middle of an operation");
    }
    Ok(operations)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Load,
    Store,
    Modify,
}

/// A line such as ` S 0400abcd,4`; none for fetched instructions and remarks.
fn access(line: &[u8]) -> Option<(Kind, u64)> {
    let (kind, rest) = match line {
        [b' ', b'L', b' ', rest @ ..] => (Kind::Load, rest),
        [b' ', b'S', b' ', rest @ ..] => (Kind::Store, rest),
        [b' ', b'M', b' ', rest @ ..] => (Kind::Modify, rest),
        _ => return None,
    };
    let (address, _) = std::str::from_utf8(rest).ok()?.split_once(',')?;
    Some((kind, u64::from_str_radix(address, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: Places = Places { table_start: 0x1000, table_end: 0x1020, flag: 0x2000 };

    fn counted(trace: &str) -> Result<Vec<Accesses>> {
        count(trace.as_bytes(), &PLACES)
    }

    #[test]
    fn accesses_count_between_the_stores_to_the_flag_and_within_the_table() {
        let trace = "==7== Lackey\n S 00001000,4\nI  00001000,4\n S 00002000,1\n L 00001000,4\n\
             \x20L 0000101c,4\n L 00001020,4\n S 00000fff,1\n S 00001004,4\n M 00001008,4\n L 00002000,1\n\
             \x20S 00002000,1\n L 00001000,4\n S 00002000,1\n S 00002000,1\n";
        assert_eq!(
            counted(trace).unwrap(),
            [Accesses { reads: 3, writes: 2 }, Accesses { reads: 0, writes: 0 }]
        );
    }

    #[test]
    fn a_trace_that_ends_early_is_refused() {
        assert!(counted(" S 00002000,1\n L 00001000,4\n").is_err());
    }
}
