//! The scenario of moving interrupts: what becomes of a function's while the host moves them, and while it lets them be.

use std::time::Duration;

use serde_json::{Value, json};

use super::machine::{NVME, Results, Step};
use super::{HOST_PROGRAM, Run, Shown};
use crate::architecture::Architecture;
use crate::check::{self, Check, equal};
use crate::report::{Moving, SCHEMA};

/// What is moved, as the program in the host calls it.
const PARTS: [&str; 2] = ["moved", "pinned"];

/// Starting, and a last command whose event does not come.
const SLACK: u64 = 60;

/// What the host runs, each part so many minutes.
pub(super) fn steps(minutes: u64) -> Vec<Step> {
    let seconds = minutes.saturating_mul(60);
    PARTS
        .map(|part| Step {
            name: part,
            limit: Duration::from_secs(seconds.saturating_add(SLACK)),
            command: format!("{} moving {NVME} {seconds} {part}", HOST_PROGRAM),
        })
        .into()
}

/// What the steps must have shown.
pub(super) fn judge(architecture: Architecture, results: &Results) -> Run {
    let mut items = Vec::new();
    let mut texts = Vec::new();
    let mut checks = Vec::new();
    for part in PARTS {
        let outcome = results.outcome(part).map_err(|error| format!("{error:#}"));
        let account = outcome.and_then(|outcome| {
            equal("exit status", outcome.status, 0)?;
            let read = |error| format!("no account: {error}");
            let value: Value = serde_json::from_str(&outcome.output).map_err(read)?;
            let account: Moving = serde_json::from_value(value.clone()).map_err(read)?;
            items.push(value);
            texts.push(account.to_string());
            Ok(account)
        });
        checks.extend(checks_of(architecture, part, account));
    }
    let first = |name: &str| items.first().and_then(|item| item.get(name)).cloned();
    let wrong: Vec<_> = checks.iter().filter_map(Check::complaint).collect();
    let json = json!({
        "schema": SCHEMA,
        "host": { "kernel": first("host_kernel"), "page_size": first("page_size") },
        "functions": [],
        "moving": items,
        "failures": wrong,
    });
    let shown = Shown { json: json.to_string(), text: texts.join("\n") };
    Run { shown: Some(shown), checks }
}

fn checks_of(
    architecture: Architecture,
    part: &str,
    account: Result<Moving, String>,
) -> Vec<Check> {
    let look = |name: &str, look: &dyn Fn(&Moving) -> Result<(), String>| {
        Check::new(
            &format!("{part}: {name}"),
            account.as_ref().map_err(Clone::clone).and_then(look),
        )
    };
    let mut checks = vec![
        look("there was something to see", &|account| {
            for (what, figure) in [
                ("moves", account.moves),
                ("processors_off", account.processors_off),
                ("switches", account.switches),
                ("events", account.events),
                ("masks", account.masks),
            ] {
                check::at_least(what, figure, 1)?;
            }
            Ok(())
        }),
        look("no event is lost", &|account| equal("lost", account.lost, 0)),
        look("no event is doubled", &|account| equal("doubled", account.doubled, 0)),
    ];
    if part == "pinned" {
        checks.push(look("masks hold, and nobody else writes mask bits", &|account| {
            equal("while_masked", account.while_masked, 0)?;
            equal("masks_cleared", account.masks_cleared, 0)?;
            equal("masks_set", account.masks_set, 0)
        }));
        checks.push(look("the service has pinned what it has set up", &|account| {
            equal("not_pinned", account.not_pinned, 0)?;
            // Elsewhere no move writes a table.
            let pins = architecture == Architecture::X86_64;
            check::at_least("pinned", account.pinned, u64::from(pins))
        }));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> Value {
        json!({
            "host_kernel": "6.12", "page_size": 4096, "mode": "moved", "seconds": 60, "pinned": 5,
            "not_pinned": 0, "moves": 900,
            "processors_off": 40, "switches": 50, "events": 1000, "lost": 0, "held": 0, "doubled": 0,
            "while_masked": 0, "masks": 400, "masks_cleared": 0, "masks_set": 0,
        })
    }

    fn failures(part: &str, name: &str, figure: u64) -> usize {
        let mut account = account();
        *account.get_mut(name).unwrap() = figure.into();
        let checks =
            checks_of(Architecture::X86_64, part, Ok(serde_json::from_value(account).unwrap()));
        checks.iter().filter(|check| check.result.is_err()).count()
    }

    #[test]
    fn a_figure_that_is_wrong_fails_one_check() {
        for part in PARTS {
            assert_eq!(failures(part, "events", 1), 0);
            for name in ["moves", "processors_off", "switches", "events", "masks"] {
                assert_eq!(failures(part, name, 0), 1, "{part} {name}");
            }
            for name in ["lost", "doubled"] {
                assert_eq!(failures(part, name, 1), 1, "{part} {name}");
            }
            for name in ["while_masked", "masks_cleared", "masks_set", "not_pinned"] {
                assert_eq!(failures(part, name, 1), usize::from(part == "pinned"), "{part} {name}");
            }
            assert_eq!(failures(part, "pinned", 0), usize::from(part == "pinned"), "{part}");
            let none = checks_of(Architecture::X86_64, part, Err("it did not boot".to_owned()));
            assert!(none.iter().all(|check| check.result.is_err()));
        }
    }
}
