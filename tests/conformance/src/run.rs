//! Runs tests and collects what became of them.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::clause::clauses;
use crate::expected::ExpectedFailures;
use crate::guest::GuestFactory;
use crate::host::HostFactory;
use crate::suite::{Body, Stop, Target, Test, tests};

/// What became of a test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "outcome", content = "why")]
pub enum Outcome {
    /// All that it expected was seen.
    Passed,
    /// Something else was seen.
    Failed(String),
    /// The half under test, or its adapter, lacks what the test needs.
    Skipped(String),
}

impl Outcome {
    /// Whether the test passed.
    pub fn is_passed(&self) -> bool {
        *self == Self::Passed
    }

    /// As in reports.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed(_) => "failed",
            Self::Skipped(_) => "skipped",
        }
    }
}

/// A test and what became of it.
#[derive(Clone)]
pub struct TestResult {
    /// The test.
    pub test: Test,
    /// What became of it.
    pub outcome: Outcome,
    /// How long it took.
    pub time: Duration,
}

/// All results, in the order of the tests.
#[derive(Clone, Default)]
pub struct Report {
    /// One for each selected test.
    pub results: Vec<TestResult>,
}

impl Report {
    /// Whether the halves under test conform, given the failures that are expected. With `strict`, a test that was skipped, or that was expected to fail and passed, is a failure too.
    pub fn is_good(&self, expected: &ExpectedFailures, strict: bool) -> bool {
        self.results.iter().all(|TestResult { test, outcome, .. }| match outcome {
            Outcome::Passed => !strict || expected.reason(test.name).is_none(),
            Outcome::Failed(_) => expected.reason(test.name).is_some(),
            Outcome::Skipped(_) => !strict,
        })
    }

    /// How many results are like that.
    pub fn count(&self, matches: impl Fn(&Outcome) -> bool) -> usize {
        self.results.iter().filter(|result| matches(&result.outcome)).count()
    }
}

/// Which tests to run.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    items: Vec<String>,
    target: Option<Target>,
}

/// Something to run that is no chapter, clause or test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownSelection(String);

impl fmt::Display for UnknownSelection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no chapter, clause or test; `list` shows what there is", self.0)
    }
}

impl std::error::Error for UnknownSelection {}

impl Selection {
    /// Chapters (by number or name), clauses and tests, of one target or of both; no item selects all.
    ///
    /// # Errors
    /// An item that is none of these.
    pub fn parse(items: &[String], target: Option<Target>) -> Result<Self, UnknownSelection> {
        let (clauses, tests) = (clauses(), tests());
        let known = |item: &String| {
            tests.iter().any(|test| test.name == item)
                || clauses.iter().any(|clause| {
                    clause.id == item
                        || clause.chapter_name == item
                        || clause.chapter.to_string() == *item
                })
        };
        match items.iter().find(|item| !known(item)) {
            Some(unknown) => Err(UnknownSelection(unknown.clone())),
            None => Ok(Self { items: items.to_vec(), target }),
        }
    }

    /// Whether a test is selected.
    pub fn has(&self, test: &Test) -> bool {
        let of_target = self.target.is_none_or(|target| target == test.target());
        of_target && (self.items.is_empty() || self.items.iter().any(|item| names(item, test)))
    }
}

fn names(item: &str, test: &Test) -> bool {
    item == test.name
        || clauses().iter().filter(|clause| test.clauses.contains(&clause.id)).any(|clause| {
            clause.id == item || clause.chapter_name == item || clause.chapter.to_string() == item
        })
}

/// Runs the selected tests one after the other.
pub fn run(host: &dyn HostFactory, guest: &dyn GuestFactory, selection: &Selection) -> Report {
    let selected = tests().into_iter().filter(|test| selection.has(test));
    Report { results: selected.map(|test| run_test(&test, host, guest)).collect() }
}

/// Runs one test. A panic in the half under test is a failure.
pub(crate) fn run_test(
    test: &Test,
    host: &dyn HostFactory,
    guest: &dyn GuestFactory,
) -> TestResult {
    let start = Instant::now();
    let verdict = catch_unwind(AssertUnwindSafe(|| match test.body {
        Body::Host(body) => body(host),
        Body::Guest(body) => body(guest),
    }));
    let outcome = match verdict {
        Ok(Ok(())) => Outcome::Passed,
        Ok(Err(Stop::Failed(why))) => Outcome::Failed(why),
        Ok(Err(Stop::Skipped(why))) => Outcome::Skipped(why),
        Err(_) => Outcome::Failed("a panic, in the half under test or in its adapter".to_owned()),
    };
    TestResult { test: *test, outcome, time: start.elapsed() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_select_by_chapter_clause_and_name() {
        let count = |items: &[&str], target| {
            let items: Vec<_> = items.iter().map(|&item| item.to_owned()).collect();
            let selection = Selection::parse(&items, target).unwrap();
            tests().iter().filter(|test| selection.has(test)).count()
        };
        assert_eq!(count(&[], None), tests().len());
        assert_eq!(count(&["4"], None), count(&["calls"], None));
        assert!(count(&["H-440"], None) >= 1);
        assert_eq!(count(&[tests()[0].name], None), 1);
        assert_eq!(count(&[tests()[0].name], Some(Target::Guest)), 0);
        assert_eq!(count(&[], Some(Target::Host)) + count(&[], Some(Target::Guest)), tests().len());
        assert!(Selection::parse(&["H-999".to_owned()], None).is_err());
    }
}
