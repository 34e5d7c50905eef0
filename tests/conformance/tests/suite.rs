//! The suite on our own halves, its completeness, and its teeth.

use pvmsi_conformance::guest::ours::OurGuest;
use pvmsi_conformance::host::ours::OurHost;
use pvmsi_conformance::{
    Outcome, Report, Selection, Side, Target, clauses, excuses, matrix, mutants, run, tests,
};

const COVERAGE: &str = include_str!("../../../spec/src/coverage.md");

fn all() -> Report {
    run(&OurHost, &OurGuest, &Selection::default())
}

#[test]
fn our_halves_conform_and_the_books_page_says_so() {
    let report = all();
    for result in &report.results {
        assert_eq!(result.outcome, Outcome::Passed, "{}", result.test.name);
    }
    let page = matrix(&report);
    assert!(
        page == COVERAGE,
        "spec/src/coverage.md is out of date: pvmsi-conformance matrix > spec/src/coverage.md"
    );
}

#[test]
fn every_clause_is_tested_or_excused_and_on_its_side() {
    let (clauses, tests, excuses) = (clauses(), tests(), excuses());
    for clause in &clauses {
        let tested: Vec<_> =
            tests.iter().filter(|test| test.clauses.contains(&clause.id)).collect();
        let excused = excuses.iter().any(|excuse| excuse.clause == clause.id);
        assert_ne!(
            tested.is_empty(),
            !excused,
            "{clause}: tests {}, excuse {excused}",
            tested.len()
        );
        let target = match clause.side() {
            Side::Host => Target::Host,
            Side::Guest => Target::Guest,
            Side::Wire => continue,
        };
        assert!(excused || tested.iter().any(|test| test.target() == target), "{clause}");
    }
    for test in &tests {
        for named in test.clauses {
            assert!(clauses.iter().any(|clause| clause.id == *named), "{}: {named}", test.name);
        }
        let same = tests.iter().filter(|other| other.name == test.name).count();
        assert_eq!(same, 1, "{}", test.name);
    }
    for excuse in excuses {
        assert!(clauses.iter().any(|clause| clause.id == excuse.clause), "{}", excuse.clause);
    }
    assert!(excuses.len() * 10 < clauses.len(), "too many excuses");
}

#[test]
fn every_mutant_is_caught() {
    let hunted: Vec<_> = mutants::hunt().collect();
    assert!(hunted.len() >= 30);
    for mutant in hunted {
        assert!(mutant.caught.is_some(), "{} {} survives", mutant.target.name(), mutant.name);
    }
}
