//! Counts what a test run has shown.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::check::{self, Check};

/// Tests that passed, failed and were skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// What a step of the test run comes to.
pub(crate) enum Verdict {
    /// It is one test, and it passed.
    Passed,
    /// It holds many tests.
    Counted(Counts),
    /// It consists of checks.
    Checked(Vec<Check>),
    /// It could not run here.
    Skipped(String),
}

/// All steps so far.
#[derive(Default)]
pub(crate) struct Summary {
    counts: Counts,
    failures: Vec<String>,
    skips: Vec<String>,
    times: Vec<(String, Duration)>,
}

impl Counts {
    /// Adds up the summary lines of `cargo test`: one for each test binary and for doc tests.
    pub(crate) fn of_cargo_test(output: &str) -> Self {
        output.lines().filter_map(|line| line.strip_prefix("test result: ")).fold(
            Self::default(),
            |counts, line| {
                let number = |unit: &str| -> u64 {
                    line.split([';', '.'])
                        .find_map(|part| part.trim().strip_suffix(unit)?.trim().parse().ok())
                        .unwrap_or(0)
                };
                counts.plus(Self {
                    passed: number("passed"),
                    failed: number("failed"),
                    skipped: number("ignored"),
                })
            },
        )
    }

    /// Tests that passed.
    pub(crate) fn passed(self) -> u64 {
        self.passed
    }

    /// Tests that failed.
    pub(crate) fn failed(self) -> u64 {
        self.failed
    }

    /// Counts failures that no summary line tells, such as a build that did not succeed.
    pub(crate) fn with_failure(self) -> Self {
        self.plus(Self { failed: 1, ..Self::default() })
    }

    fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed.saturating_add(other.passed),
            failed: self.failed.saturating_add(other.failed),
            skipped: self.skipped.saturating_add(other.skipped),
        }
    }
}

impl Summary {
    /// Runs a step under a heading. A failed step does not end the run.
    pub(crate) fn step(&mut self, name: &str, action: impl FnOnce() -> Result<Verdict>) {
        eprintln!("\n======== {name}");
        let start = Instant::now();
        let counts = match action() {
            Ok(Verdict::Passed) => {
                eprintln!("test {name} ... ok");
                Counts { passed: 1, ..Counts::default() }
            }
            Ok(Verdict::Counted(counts)) => {
                if counts.failed > 0 {
                    self.failures.push(format!("{name}: {} failed", counts.failed));
                }
                counts
            }
            Ok(Verdict::Checked(checks)) => self.checks(name, &checks),
            Ok(Verdict::Skipped(why)) => {
                eprintln!("test {name} ... skipped: {why}");
                self.skips.push(format!("{name}: {why}"));
                Counts { skipped: 1, ..Counts::default() }
            }
            Err(error) => {
                eprintln!("test {name} ... FAILED: {error:#}");
                self.failures.push(format!("{name}: {error:#}"));
                Counts { failed: 1, ..Counts::default() }
            }
        };
        self.counts = self.counts.plus(counts);
        let time = start.elapsed();
        eprintln!("-------- {name}: {:.0} s", time.as_secs_f64());
        self.times.push((name.to_owned(), time));
    }

    /// Prints times, skips and failures, and last the line with the counts; true when nothing
    /// failed.
    pub(crate) fn finish(&self) -> bool {
        println!("\n======== summary");
        for (name, time) in &self.times {
            println!("{:>6.0} s  {name}", time.as_secs_f64());
        }
        for skip in &self.skips {
            println!("skipped: {skip}");
        }
        for failure in &self.failures {
            println!("FAILED: {failure}");
        }
        let Counts { passed, failed, skipped } = self.counts;
        println!("{passed} passed, {failed} failed, {skipped} skipped");
        failed == 0
    }

    fn checks(&mut self, name: &str, checks: &[Check]) -> Counts {
        check::print(name, checks);
        checks.iter().fold(Counts::default(), |counts, check| match &check.result {
            Ok(()) => counts.plus(Counts { passed: 1, ..Counts::default() }),
            Err(why) => {
                self.failures.push(format!("{name}: {}: {why}", check.name));
                counts.with_failure()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_all_test_binaries_are_added() {
        let output = "running 3 tests\n\
            test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
            test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.20s\n";
        assert_eq!(Counts::of_cargo_test(output), Counts { passed: 13, failed: 2, skipped: 1 });
    }
}
