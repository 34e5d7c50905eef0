//! `pvmsi-bench`: does what `cargo xtask bench` counts.

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use pvmsi_bench::{Meter, accesses, counts, holds, instructions};

/// Does what `cargo xtask bench` counts, and prints a line of JSON for each count. By itself it
/// counts neither instructions nor accesses: those come from valgrind, which xtask runs it under.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Regions whose instructions callgrind counts.
    Instructions {
        /// Add the same operations with 1, 2, 4 ... 2048 vectors, for the plot.
        #[arg(long)]
        sweep: bool,
    },
    /// Operations of the guest half whose accesses to the table lackey shows.
    Accesses,
    /// Exits, requests to the kernel, bytes of calls.
    Counts {
        /// Add the exits of some operations with 1, 2, 4 ... 2048 vectors, for the plot.
        #[arg(long)]
        sweep: bool,
    },
    /// How long each doorbell exit of a configure takes on this machine's KVM.
    Holds,
}

fn main() -> ExitCode {
    let mut meter = Meter::new(io::stdout());
    let result = match Arguments::parse().command {
        Command::Instructions { sweep } => instructions::run(&mut meter, sweep),
        Command::Accesses => accesses::run(&mut meter),
        Command::Counts { sweep } => counts::run(&mut meter, sweep),
        Command::Holds => holds::run(&mut meter),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
