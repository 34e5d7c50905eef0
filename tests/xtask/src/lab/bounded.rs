//! The scenario of a bounded `configure`: how much each call asks of the host's kernel, and what is left when it is given up.

use std::time::Duration;

use super::machine::{NVME, Results, Step};
use super::{HOST_PROGRAM, Run};
use crate::check::{Check, equal};

/// Vectors of the drive.
pub(super) const VECTORS: u16 = 256;

/// Vectors of one call.
const BOUND: u16 = 16;

/// The routes of all, each `BOUND` vectors, and the one that commits.
const CALLS: u16 = VECTORS / BOUND + 2;

/// Configures that come to their end.
const COMPLETE: [&str; 2] = ["whole", "revoke"];

/// What ends those that do not; the others are released at last.
const ENDS: [&str; 6] = ["whole", "revoke", "release", "reset", "machine-reset", "removal"];

/// What the host runs.
pub(super) fn steps() -> Vec<Step> {
    vec![Step {
        name: "bounded",
        limit: Duration::from_secs(300),
        command: format!(
            "mount -t tracefs trace /sys/kernel/tracing && ulimit -n 4096 && \
             {} bounded {NVME} {BOUND} 2>&1",
            HOST_PROGRAM
        ),
    }]
}

/// What the step must have shown.
pub(super) fn judge(results: &Results) -> Run {
    let output = results.outcome("bounded").map_err(|error| format!("{error:#}"));
    let output = output.and_then(|outcome| {
        equal("exit status", outcome.status, 0)
            .map_err(|why| format!("{why}\n{}", outcome.output))?;
        Ok(outcome.output)
    });
    Run { shown: None, checks: checks(&output) }
}

fn checks(output: &Result<String, String>) -> Vec<Check> {
    let look = |check: &dyn Fn(&str) -> Result<(), String>| match output {
        Ok(output) => check(output).map_err(|why| format!("{why}\n{output}")),
        Err(why) => Err(why.clone()),
    };
    let mut checks = vec![Check::new(
        "a drive of 256 vectors whose set-up can grow",
        look(&|output| {
            equal("vectors", figure(output, "", "vectors")?, VECTORS.to_string())?;
            equal("grows", figure(output, "", "grows")?, "true".to_owned())
        }),
    )];
    for name in COMPLETE {
        checks.push(Check::new(
            &format!("{name}: each call asks for one set-up of {BOUND} vectors at most"),
            look(&|output| complete(output, name)),
        ));
    }
    for name in ENDS {
        checks.push(Check::new(
            &format!("{name}: nothing is left behind"),
            look(&|output| {
                let line = format!("left {name}");
                for what in ["interrupts", "attached", "files"] {
                    equal(what, figure(output, &line, what)?, "0".to_owned())?;
                }
                Ok(())
            }),
        ));
    }
    checks
}

fn complete(output: &str, name: &str) -> Result<(), String> {
    let number = |what| {
        figure(output, name, what)?.parse::<u16>().map_err(|error| format!("{what}: {error}"))
    };
    equal("granted", number("granted")?, VECTORS)?;
    equal("mode", figure(output, name, "mode")?, "direct".to_owned())?;
    equal("most requests of a call", number("most_requests")?, 1)?;
    equal("most vectors of a request", number("most_vectors")?, BOUND)?;
    if name == "whole" {
        // What the host has taken back in between is attached once more.
        equal("calls", number("calls")?, CALLS)?;
        equal("requests", number("requests")?, VECTORS / BOUND)?;
    }
    Ok(())
}

/// The value of a word `what=value` of the line that starts so.
fn figure(output: &str, line: &str, what: &str) -> Result<String, String> {
    let starts = if line.is_empty() { format!("{what}=") } else { format!("{line} ") };
    let first = if line.is_empty() { "vectors=" } else { starts.as_str() };
    output
        .lines()
        .find(|text| text.starts_with(first))
        .and_then(|text| {
            let mut words = text.split_whitespace();
            words.find_map(|word| word.strip_prefix(&format!("{what}=")).map(str::to_owned))
        })
        .ok_or_else(|| format!("no {what} in a line of {line:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
vectors=256 grows=true
whole calls=18 granted=256 mode=direct requests=16 most_requests=1 most_vectors=16
left whole interrupts=0 attached=0 files=0
revoke calls=18 granted=256 mode=direct requests=12 most_requests=1 most_vectors=16
left revoke interrupts=0 attached=0 files=0
left release interrupts=0 attached=0 files=0
left reset interrupts=0 attached=0 files=0
left machine-reset interrupts=0 attached=0 files=0
left removal interrupts=0 attached=0 files=0
";

    fn failures(output: &str) -> usize {
        let checks = checks(&Ok(output.to_owned()));
        checks.iter().filter(|check| check.result.is_err()).count()
    }

    #[test]
    fn a_bounded_configure_that_leaves_nothing_behind_is_good() {
        assert_eq!(failures(GOOD), 0);
    }

    #[test]
    fn whatever_is_wrong_fails_one_check() {
        for (right, wrong) in [
            ("vectors=256", "vectors=65"),
            ("grows=true", "grows=false"),
            ("whole calls=18", "whole calls=19"),
            ("requests=16 most_requests=1", "requests=16 most_requests=2"),
            ("requests=16", "requests=17"),
            (
                "requests=12 most_requests=1 most_vectors=16",
                "requests=1 most_requests=1 most_vectors=192",
            ),
            ("mode=direct", "mode=trapped"),
            ("granted=256", "granted=200"),
            ("left release interrupts=0", "left release interrupts=64"),
            ("left reset interrupts=0 attached=0", "left reset interrupts=0 attached=3"),
            (
                "left removal interrupts=0 attached=0 files=0",
                "left removal interrupts=0 attached=0 files=1",
            ),
            ("left machine-reset interrupts=0 attached=0 files=0\n", ""),
        ] {
            assert!(GOOD.contains(right), "{right}");
            assert_eq!(failures(&GOOD.replacen(right, wrong, 1)), 1, "{right}");
        }
        let none = checks(&Err("it did not boot".to_owned()));
        assert!(none.iter().all(|check| check.result.is_err()));
    }
}
