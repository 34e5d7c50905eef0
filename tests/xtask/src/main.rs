//! Build, demonstration, lab and test commands of the project: `cargo xtask --help`.

mod architecture;
mod bench;
mod check;
mod conformance;
mod debian;
mod demo;
mod fuzz;
mod guests;
mod lab;
mod model;
mod module;
mod package;
mod process;
mod report;
#[cfg(test)]
mod sample;
mod shim;
mod soak;
mod summary;
mod sysroot;
mod target;
mod test;
mod tools;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::architecture::Architecture;
use crate::workspace::Workspace;

/// Everything that is done with this repository, set-up included.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    /// Where the standard library for other targets comes from; found out when not given.
    #[arg(long, global = true, value_enum, env = "PVMSI_SYSROOT")]
    sysroot: Option<target::Source>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Builds the bare-metal guests and puts them next to the `pvmsi` binary of their architecture.
    Guests {
        /// That of the guests; this machine's when not given.
        #[arg(value_enum)]
        architecture: Option<Architecture>,
    },
    /// Builds the guest half for C kernels: header, libraries, symbols, sizes.
    Shim(shim::Options),
    /// Builds the Linux guest module for Debian's kernels.
    Module(module::Options),
    /// Builds the Debian package of the Linux guests' module, for DKMS.
    Package(package::Options),
    /// Runs the main job on this machine's /dev/kvm, with the software function.
    Demo(demo::Options),
    /// Runs the conformance suite on this repository's halves, in process or from inside a guest; or proves it.
    Conformance(conformance::Options),
    /// Runs the main job in an emulated host, with real PCI functions through VFIO.
    Lab(lab::Options),
    /// Builds a host kernel with iommufd (x86_64), or with that and pages of 64K (aarch64), for the lab.
    LabKernel(lab::built::Options),
    /// Attacks wire types and host service with inputs that libFuzzer makes up.
    Fuzz(fuzz::Options),
    /// Counts what the operations of both halves cost, beside the standard table.
    Bench(bench::Options),
    /// Does random valid operations under load and accounts for every interrupt.
    Soak(soak::Options),
    /// Explores all states of the host service, and tries its locks in many orders.
    Model(model::Options),
    /// Runs every check, the KVM tests, the demo and the lab.
    Test(test::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result =
        Workspace::find(arguments.sysroot).and_then(|workspace| match &arguments.command {
            Command::Guests { architecture } => architecture
                .map_or_else(Architecture::native, Ok)
                .and_then(|architecture| guests::build(&workspace, architecture))
                .map(|()| true),
            Command::Shim(options) => shim::command(&workspace, options),
            Command::Module(options) => module::command(&workspace, options),
            Command::Package(options) => package::command(&workspace, options),
            Command::Demo(options) => demo::command(&workspace, options),
            Command::Conformance(options) => conformance::command(&workspace, options),
            Command::Lab(options) => lab::command(&workspace, options),
            Command::LabKernel(options) => lab::built::command(&workspace, options),
            Command::Fuzz(options) => fuzz::command(&workspace, options),
            Command::Bench(options) => bench::command(&workspace, options),
            Command::Soak(options) => soak::command(&workspace, options),
            Command::Model(options) => model::command(&workspace, options),
            Command::Test(options) => test::command(&workspace, options),
        });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
