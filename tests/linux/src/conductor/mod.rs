//! In a host: runs guests below a VMM, has events happen in them, and counts.

mod counterpart;
mod counters;
mod guest;
mod mover;
mod suite;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use pvmsi_linux_lab::plan::{Outcome, Plan};

/// Runs the guests of a plan and prints an [`Outcome`]; true when nothing was wrong.
pub(crate) fn run(plan: &Path) -> Result<bool> {
    let text =
        fs::read_to_string(plan).with_context(|| format!("cannot read {}", plan.display()))?;
    let plan: Plan = serde_json::from_str(&text).context("this is no plan")?;
    let mut outcome = Outcome::default();
    for (index, boot) in plan.boots.iter().enumerate() {
        if let Err(error) = suite::run(boot, index, plan.seconds, &mut outcome) {
            let what = format!("{}: {error:#}", suite::title(boot));
            eprintln!("### {what}");
            outcome.failures.push(what);
        }
    }
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(outcome.failures.is_empty())
}
