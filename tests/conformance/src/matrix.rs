//! Clause × test × target × result, as a page of the specification's book.

use std::fmt::Write as _;

use crate::clause::clauses;
use crate::excuse::excuses;
use crate::run::Report;

const HEAD: &str = "\
# Conformance

Which test of `tests/conformance` tests which clause, and what became of it on the
halves of this repository. Written by `pvmsi-conformance matrix`, checked by
`cargo test -p pvmsi-conformance`.

| clause | target | test | result |
|---|---|---|---|
";

/// The page for a report of all tests.
pub fn matrix(report: &Report) -> String {
    let mut page = HEAD.to_owned();
    let (clauses, excuses) = (clauses(), excuses());
    for clause in &clauses {
        let tested = report.results.iter().filter(|it| it.test.clauses.contains(&clause.id));
        let mut id = clause.id;
        for result in tested {
            let (target, name) = (result.test.target().name(), result.test.name);
            let _ = writeln!(page, "| {id} | {target} | `{name}` | {} |", result.outcome.name());
            id = "";
        }
        if let Some(excuse) = excuses.iter().find(|excuse| excuse.clause == clause.id) {
            let _ = writeln!(page, "| {id} | | none: {} | |", excuse.reason);
        }
    }
    let (tests, passed) = (report.results.len(), report.count(|it| it.is_passed()));
    let _ = writeln!(
        page,
        "\n{} clauses, {} of them without a test; {tests} tests, {passed} passed.",
        clauses.len(),
        excuses.len(),
    );
    page
}
