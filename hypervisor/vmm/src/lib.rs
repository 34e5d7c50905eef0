//! The reference VMM of PV-MSI, and the operator's tool `pvmsi`.
//!
//! The machine is small on purpose: no firmware, no legacy devices that nobody
//! asks for. MACHINE.md describes what a guest finds. It shows how a VMM embeds
//! `pvmsi-hypervisor`, runs the demo guest and Linux, and is the bench of the
//! tests, which run machines in process:
//!
//! ```no_run
//! use std::time::Duration;
//! use pvmsi::{End, FunctionConfig, Machine, MachineConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut config = MachineConfig::new(std::fs::read("pvmsi-demo-guest")?);
//! config.cpus = 2;
//! config.functions.push(FunctionConfig::software(64));
//! let machine = Machine::new(config)?;
//! machine.resume();
//! assert_eq!(machine.wait(Some(Duration::from_secs(60))), Some(End::Finished));
//! assert!(machine.report().passed());
//! # Ok(())
//! # }
//! ```
//!
//! No two files inside call each other:
//!
//! | modules | what they are about |
//! |---|---|
//! | `measurements` | what a run costs, and the report |
//! | `config`, `doorbell`, `memory`, `bars`, `pci`, `ecam`, `serial`, `bus` | what a machine consists of |
//! | `arch` | what differs between the architectures; `contract` has the machine in numbers |
//! | `access`, `vcpu`, `control` | vCPUs: entering the guest, serving what comes out, stopping |
//! | `machine` | all of it together |
//! | `run`, `probe`, `command_line`, `output` | the tool |

mod access;
mod arch;
mod arguments;
mod bars;
mod boot;
mod bus;
pub mod command_line;
mod config;
mod console;
mod control;
mod device_threads;
mod doorbell;
mod ecam;
mod error;
mod file_limit;
mod function_argument;
mod host;
mod internal_error;
mod machine;
mod measurements;
mod memory;
mod output;
mod pci;
mod probe;
mod recovery;
mod removal;
mod run;
mod serial;
#[cfg(test)]
mod test_guest;
#[cfg(test)]
mod test_machine;
mod vcpu;

pub use config::{Backend, CPUS_MAX, FunctionConfig, MachineConfig, Program};
pub use control::End;
pub use doorbell::Doorbell;
pub use error::MachineError;
pub use file_limit::raise as raise_file_limit;
pub use function_argument::FunctionArgumentError;
pub use machine::{Machine, MachineFunction, SavedMachine};
pub use measurements::{
    Configure, ExitCounts, FunctionReport, FunctionService, Host, Interrupts, Io, LongestCall,
    MaskUnmask, Neighbour, PhaseMode, PhaseReport, Pinning, REPORT_SCHEMA, Report, Soak,
};
