//! The scenario of a host without an IOMMU: nothing can be attached, and the probe has said so before.

use std::time::Duration;

use super::Run;
use super::machine::{NVME, Results, Step};
use crate::check::{Check, equal};

/// Exit status of `pvmsi probe` for a function that cannot be used.
const UNUSABLE: i32 = 1;

/// Exit status of `pvmsi run` on a host that cannot run it.
const CANNOT_RUN: i32 = 3;

/// What the host runs.
pub(super) fn steps() -> Vec<Step> {
    vec![
        Step::probe(),
        Step {
            name: "run",
            limit: Duration::from_secs(60),
            command: format!("pvmsi run --function vfio:{NVME} --report none 2>&1"),
        },
    ]
}

/// What the steps must have shown.
pub(super) fn judge(results: &Results) -> Run {
    let look = |name, status, parts: &[&str]| {
        let outcome = results.outcome(name).map_err(|error| format!("{error:#}"))?;
        equal("exit status", outcome.status, status)
            .map_err(|why| format!("{why}\n{}", outcome.output))?;
        match parts.iter().find(|part| !outcome.output.contains(**part)) {
            None => Ok(()),
            Some(part) => Err(format!("not said: {part}\n{}", outcome.output)),
        }
    };
    let checks = vec![
        Check::new("the probe says that there is no IOMMU", look("probe", UNUSABLE, &["no-iommu"])),
        Check::new("the VMM refuses the function, by name", look("run", CANNOT_RUN, &[NVME])),
    ];
    Run { shown: None, checks }
}
