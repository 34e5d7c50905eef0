//! Reports, for people and for machines.

use quick_junit::{NonSuccessKind, Report as JunitReport, TestCase, TestCaseStatus, TestSuite};
use serde::Serialize;

use crate::expected::ExpectedFailures;
use crate::run::{Outcome, Report, TestResult};
use crate::suite::Target;

/// The format's version, in its first field. New fields may be added.
const SCHEMA: &str = "pvmsi.conformance/1";

/// One line for each test, what failed, and the totals.
pub fn text(report: &Report, expected: &ExpectedFailures) -> String {
    let mut lines: Vec<_> = report
        .results
        .iter()
        .map(|TestResult { test, outcome, .. }| {
            let (target, name) = (test.target().name(), test.name);
            let line = format!("{target}: {name} [{}] ... ", test.clauses.join(" "));
            match (outcome, expected.reason(name)) {
                (Outcome::Passed, None) => line + "ok",
                (Outcome::Passed, Some(reason)) => {
                    line + &format!("ok, although expected to fail: {reason}")
                }
                (Outcome::Failed(why), None) => line + &format!("FAILED\n    {why}"),
                (Outcome::Failed(_), Some(reason)) => {
                    line + &format!("failed as expected: {reason}")
                }
                (Outcome::Skipped(why), _) => line + &format!("skipped: {why}"),
            }
        })
        .collect();
    let (failed, expected) = failures(report, expected);
    let skipped = report.count(|outcome| matches!(outcome, Outcome::Skipped(_)));
    let passed = report.count(Outcome::is_passed);
    lines.push(format!(
        "\n{passed} passed, {failed} failed, {expected} failed as expected, {skipped} skipped\n"
    ));
    lines.join("\n")
}

/// The Test Anything Protocol, version 13. An expected failure is a `TODO` there.
pub fn tap(report: &Report, expected: &ExpectedFailures) -> String {
    let mut lines = vec!["TAP version 13".to_owned(), format!("1..{}", report.results.len())];
    for (number, TestResult { test, outcome, .. }) in (1..).zip(&report.results) {
        let name = format!("{number} - {}: {}", test.target().name(), test.name);
        let todo = expected.reason(test.name).map_or(String::new(), |why| format!(" # TODO {why}"));
        match outcome {
            Outcome::Passed => lines.push(format!("ok {name}{todo}")),
            Outcome::Skipped(why) => lines.push(format!("ok {name} # SKIP {why}")),
            Outcome::Failed(why) => {
                lines.push(format!("not ok {name}{todo}"));
                lines.extend(why.lines().map(|line| format!("# {line}")));
            }
        }
    }
    lines.join("\n") + "\n"
}

/// JUnit's XML. An expected failure counts as skipped.
///
/// # Errors
/// When it cannot be written.
pub fn junit(
    report: &Report,
    expected: &ExpectedFailures,
) -> Result<String, quick_junit::SerializeError> {
    let mut junit = JunitReport::new("pvmsi-conformance");
    for target in [Target::Host, Target::Guest] {
        let mut suite = TestSuite::new(target.name());
        let results = report.results.iter().filter(|result| result.test.target() == target);
        for TestResult { test, outcome, time } in results {
            let mut status = match (outcome, expected.reason(test.name)) {
                (Outcome::Passed, _) => TestCaseStatus::success(),
                (Outcome::Failed(_), None) => TestCaseStatus::non_success(NonSuccessKind::Failure),
                (Outcome::Failed(_), Some(_)) | (Outcome::Skipped(_), _) => {
                    TestCaseStatus::skipped()
                }
            };
            if let Outcome::Failed(why) | Outcome::Skipped(why) = outcome {
                status.set_message(expected.reason(test.name).unwrap_or(why));
            }
            let mut case = TestCase::new(test.name, status);
            case.set_classname(test.clauses.join(" ")).set_time(*time);
            suite.add_test_case(case);
        }
        junit.add_test_suite(suite);
    }
    junit.to_string()
}

/// One JSON object.
///
/// # Errors
/// When it cannot be written.
pub fn json(report: &Report, expected: &ExpectedFailures) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct Whole<'r> {
        schema: &'r str,
        tests: Vec<One<'r>>,
    }

    #[derive(Serialize)]
    struct One<'r> {
        target: &'r str,
        name: &'r str,
        clauses: &'r [&'r str],
        #[serde(flatten)]
        outcome: &'r Outcome,
        #[serde(skip_serializing_if = "Option::is_none")]
        expected_failure: Option<&'r str>,
        seconds: f64,
    }

    let tests = report.results.iter().map(|TestResult { test, outcome, time }| One {
        target: test.target().name(),
        name: test.name,
        clauses: test.clauses,
        outcome,
        expected_failure: expected.reason(test.name),
        seconds: time.as_secs_f64(),
    });
    serde_json::to_string_pretty(&Whole { schema: SCHEMA, tests: tests.collect() })
        .map(|text| text + "\n")
}

/// Failures that were not expected, and those that were.
fn failures(report: &Report, expected: &ExpectedFailures) -> (usize, usize) {
    let failed = report.results.iter().filter(|it| matches!(it.outcome, Outcome::Failed(_)));
    let (expected, others): (Vec<_>, Vec<_>) =
        failed.partition(|result| expected.reason(result.test.name).is_some());
    (others.len(), expected.len())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::suite::tests;

    /// The first three tests: passed, failed, skipped.
    fn report() -> (Report, String) {
        let outcomes = [
            Outcome::Passed,
            Outcome::Failed("expected 1,\nseen <2>".to_owned()),
            Outcome::Skipped("cannot".to_owned()),
        ];
        let tests = tests().into_iter().zip(outcomes);
        let time = Duration::from_millis(5);
        let results = tests.map(|(test, outcome)| TestResult { test, outcome, time }).collect();
        let report = Report { results };
        let failed = report.results[1].test.name.to_owned();
        (report, failed)
    }

    #[test]
    fn a_failure_is_one_in_every_format() {
        let (report, failed) = report();
        let none = ExpectedFailures::default();
        assert!(!report.is_good(&none, false));
        assert!(
            text(&report, &none).contains("1 passed, 1 failed, 0 failed as expected, 1 skipped")
        );
        let tap = tap(&report, &none);
        assert!(tap.contains(&format!("not ok 2 - host: {failed}\n# expected 1,\n# seen <2>\n")));
        assert!(junit(&report, &none).unwrap().contains("seen &lt;2&gt;"));
        let json: serde_json::Value = serde_json::from_str(&json(&report, &none).unwrap()).unwrap();
        assert_eq!(json["tests"][1]["outcome"], "failed");
        assert_eq!(json["tests"][0]["outcome"], "passed");
    }

    #[test]
    fn an_expected_failure_is_none_and_strictness_wants_it_to_fail() {
        let (mut report, failed) = report();
        let expected = ExpectedFailures::parse(&format!("{failed}: not yet")).unwrap();
        assert!(report.is_good(&expected, false));
        assert!(!report.is_good(&expected, true), "a test was skipped");
        assert!(text(&report, &expected).contains("0 failed, 1 failed as expected"));
        assert!(tap(&report, &expected).contains("# TODO not yet"));
        assert!(!junit(&report, &expected).unwrap().contains("<failure"));
        report.results.truncate(2);
        assert!(report.is_good(&expected, true));
        report.results[1].outcome = Outcome::Passed;
        assert!(report.is_good(&expected, false) && !report.is_good(&expected, true));
    }
}
