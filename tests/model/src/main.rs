//! Explores the host service's state machine; `cargo xtask model` calls it.

use std::process::ExitCode;

use clap::Parser;
use pvmsi_model::bounds::Bounds;
use pvmsi_model::explore::explore;
use pvmsi_model::violation::PROPERTIES;

/// What all bounds together must reach: with fewer states something no longer happens in the model.
const STATES_MIN: usize = 1_000_000;

/// Explores all states of the host service within bounds, and checks the properties in each.
#[derive(Parser)]
#[command(name = "pvmsi-model")]
struct Arguments {
    /// Small bounds: a minute or less each.
    #[arg(long)]
    quick: bool,
    /// Only the bounds with this name.
    #[arg(long)]
    bounds: Option<String>,
    /// Threads; as many as there are processors when not given.
    #[arg(long)]
    threads: Option<usize>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let threads = arguments.threads.unwrap_or_else(|| {
        std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
    });
    let all = if arguments.quick { Bounds::QUICK } else { Bounds::FULL };
    let chosen =
        |bounds: &&Bounds| arguments.bounds.as_deref().is_none_or(|name| name == bounds.name);
    println!("properties:");
    for property in PROPERTIES {
        println!("  {} ({})", property.name, property.rule);
    }
    let mut kept = true;
    let mut states: usize = 0;
    for bounds in all.iter().filter(chosen) {
        println!("{bounds}");
        let report = explore(*bounds, threads);
        println!("{report}");
        kept &= report.broken.is_empty();
        states = states.saturating_add(report.states);
    }
    if states == 0 {
        println!("no bounds have that name");
        return ExitCode::FAILURE;
    }
    if kept && !arguments.quick && arguments.bounds.is_none() && states < STATES_MIN {
        println!("only {states} states: the model reaches less than it should");
        return ExitCode::FAILURE;
    }
    if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
