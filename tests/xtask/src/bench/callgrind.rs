//! Instructions, from valgrind's callgrind.
//!
//! `pvmsi-bench` calls functions of known names around what is counted; callgrind writes a file
//! each time that the outermost one returns. Only instructions of user space are counted, and none
//! of the preparation.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Functions of `pvmsi-bench`: what is counted, and what is left out of it again.
const TOGGLES: [&str; 2] = ["pvmsi_bench::meter::counted", "pvmsi_bench::meter::excluded"];
/// The function whose return ends a count.
const REGION: &str = "pvmsi_bench::meter::region";
/// Callgrind adds a number to it, from 1 on.
const FILE: &str = "count";

/// Options that make it write its counts into `folder`, which is made anew.
///
/// # Errors
/// When the folder cannot be made.
pub(super) fn arguments(folder: &Path) -> Result<Vec<String>> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot clear {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut arguments = vec!["--tool=callgrind".to_owned(), format!("--dump-after={REGION}")];
    arguments.extend(TOGGLES.map(|function| format!("--toggle-collect={function}")));
    arguments.push(format!("--callgrind-out-file={}", folder.join(FILE).display()));
    Ok(arguments)
}

/// The counts of the first `regions` regions, in their order.
///
/// # Errors
/// When there are fewer or more, or a file is not as expected.
pub(super) fn totals(folder: &Path, regions: usize) -> Result<Vec<u64>> {
    let path = |number: usize| folder.join(format!("{FILE}.{number}"));
    let next = path(regions.saturating_add(1));
    if next.exists() {
        bail!("callgrind has counted more than {regions} regions");
    }
    let totals: Vec<u64> = (1..=regions)
        .map(|number| {
            let path = path(number);
            let text = fs::read_to_string(&path)
                .with_context(|| format!("callgrind has not written {}", path.display()))?;
            total(&text).with_context(|| format!("{} has no total", path.display()))
        })
        .collect::<Result<_>>()?;
    // A region may cost nothing, but not all of them.
    if totals.iter().all(|total| *total == 0) {
        let [counted, _] = TOGGLES;
        bail!("callgrind has counted nothing: it has not found the function {counted}");
    }
    Ok(totals)
}

/// The total of one file: instructions are the only event.
fn total(text: &str) -> Option<u64> {
    text.lines().any(|line| line == "events: Ir").then_some(())?;
    text.lines().find_map(|line| line.strip_prefix("summary: "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# callgrind format\nversion: 1\npositions: line\nevents: Ir\n\
        summary: 6005419\n\nfn=(806) (below main)\n58 6005419\n\ntotals: 6005419\n";

    #[test]
    fn the_total_is_read() {
        assert_eq!(total(TEXT), Some(6_005_419));
    }

    #[test]
    fn other_events_and_files_without_a_total_are_refused() {
        assert_eq!(total(&TEXT.replace("Ir", "Ir Dr")), None);
        assert_eq!(total("events: Ir\n"), None);
        assert_eq!(total(&TEXT.replace("summary: 6005419", "summary: 1 2")), None);
    }

    #[test]
    fn files_are_read_in_the_order_of_the_regions() {
        let folder = std::env::temp_dir().join(format!("pvmsi-callgrind-{}", std::process::id()));
        arguments(&folder).unwrap();
        for number in 1..=11 {
            let text = TEXT.replace("6005419", &number.to_string());
            fs::write(folder.join(format!("{FILE}.{number}")), text).unwrap();
        }
        assert_eq!(totals(&folder, 11).unwrap(), (1..=11).collect::<Vec<u64>>());
        assert!(totals(&folder, 10).is_err(), "one too many");
        assert!(totals(&folder, 12).is_err(), "one too few");
        for number in 1..=11 {
            let text = TEXT.replace("6005419", "0");
            fs::write(folder.join(format!("{FILE}.{number}")), text).unwrap();
        }
        assert!(totals(&folder, 11).is_err(), "nothing was counted");
        fs::remove_dir_all(&folder).unwrap();
    }
}
