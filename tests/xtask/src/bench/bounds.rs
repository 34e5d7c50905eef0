//! The most that rows may be: `tests/bench/bounds.txt`, which the tests of `pvmsi-bench` read as well.

use std::fs;

use anyhow::{Context, Result};

use super::report::Report;
use crate::architecture::Architecture;
use crate::check::Check;
use crate::workspace::Workspace;

/// What must hold of a report on this machine's architecture.
///
/// # Errors
/// When the bounds cannot be read.
pub(super) fn checks(workspace: &Workspace, report: &Report) -> Result<Vec<Check>> {
    let path = workspace.root.join("tests/bench/bounds.txt");
    let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    let bounds = read(&text, Architecture::native()?.name());
    let bounds = bounds.with_context(|| format!("{}", path.display()))?;
    let mut checks = vec![Check::new(
        "the standard table is used as the guest half uses it",
        report.check_standard(),
    )];
    checks.extend(bounds.into_iter().map(|(name, most)| {
        Check::new(&format!("{name} is at most {most}"), report.check_bound(name, most))
    }));
    Ok(checks)
}

/// Names and bounds of all architectures and of this one.
fn read<'t>(text: &'t str, architecture: &str) -> Result<Vec<(&'t str, f64)>> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let bound = words.next().zip(words.next().and_then(|most| most.parse().ok()));
            match (bound, words.next(), words.next()) {
                (Some(bound), None, None) => Some(Ok(bound)),
                (Some(bound), Some(only), None) => (only == architecture).then_some(Ok(bound)),
                _ => Some(Err(anyhow::anyhow!(
                    "no line of a name, a number and an architecture: {line}"
                ))),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_of_other_architectures_are_left_out() {
        let text = "# remark\n\na 1\nb 2.5 x86_64\nc 3 aarch64\n";
        assert_eq!(read(text, "x86_64").unwrap(), [("a", 1.0), ("b", 2.5)]);
        assert_eq!(read(text, "aarch64").unwrap(), [("a", 1.0), ("c", 3.0)]);
    }

    #[test]
    fn lines_that_are_none_are_refused() {
        for text in ["a", "a b", "a 1 x86_64 more"] {
            assert!(read(text, "x86_64").is_err(), "{text}");
        }
    }
}
