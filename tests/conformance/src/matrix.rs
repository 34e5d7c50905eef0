//! Clause × test × target × result, as a page of the specification's book.

use std::fmt::Write as _;

use crate::clause::clauses;
use crate::excuse::excuses;
use crate::run::Report;
use crate::suite::{Target, Test};

const HEAD: &str = "\
# Conformance

Which test of `tests/conformance` tests which clause, and what became of it on the
halves of this repository. Written by `pvmsi-conformance matrix`, checked by
`cargo test -p pvmsi-conformance`. The last column names the machines on which the
test also passes from inside a guest; `cargo xtask conformance --vm` and
`cargo xtask lab` check that.

| clause | target | test | result | in a guest |
|---|---|---|---|---|
";

/// For each machine the tests that a guest of it cannot run, lines `test: why`.
const IN_A_GUEST: [(&str, &str); 2] = [
    ("x86_64", include_str!("../in-a-guest/x86_64.txt")),
    ("arm64", include_str!("../in-a-guest/aarch64.txt")),
];

/// Those tests are run by machines without the service.
const WITHOUT_SERVICE: &str = "this machine offers the service";

/// The machines whose guests run a test.
fn machines(test: Test) -> String {
    let runs = |list: &str| {
        let skipped = list.lines().filter_map(|line| line.split_once(": "));
        skipped.filter(|(name, _)| *name == test.name).all(|(_, why)| why == WITHOUT_SERVICE)
    };
    let machines = IN_A_GUEST.iter().filter(|(_, list)| runs(list)).map(|(machine, _)| *machine);
    match test.target() {
        Target::Host => machines.collect::<Vec<_>>().join(", "),
        Target::Guest => String::new(),
    }
}

/// The page for a report of all tests.
pub fn matrix(report: &Report) -> String {
    let mut page = HEAD.to_owned();
    let (clauses, excuses) = (clauses(), excuses());
    for clause in &clauses {
        let tested = report.results.iter().filter(|it| it.test.clauses.contains(&clause.id));
        let mut id = clause.id;
        for result in tested {
            let (target, name) = (result.test.target().name(), result.test.name);
            let (outcome, machines) = (result.outcome.name(), machines(result.test));
            let _ = writeln!(page, "| {id} | {target} | `{name}` | {outcome} | {machines} |");
            id = "";
        }
        if let Some(excuse) = excuses.iter().find(|excuse| excuse.clause == clause.id) {
            let _ = writeln!(page, "| {id} | | none: {} | | |", excuse.reason);
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
