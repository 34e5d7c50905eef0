//! Linux guests in the lab's emulated hosts: what the programs inside and the commands outside
//! agree on.
//!
//! One program, `pvmsi-linux-lab`, does both jobs inside: as `conduct` it runs in the emulated host,
//! starts guests below a VMM and counts what they cost in the host's kernel; as `agent` it is the
//! only program of such a guest and does what the conductor asks for, line by line on the console.

pub mod plan;
pub mod report;
