//! Tests of a guest half, a file for each subject.
#![allow(
    clippy::indexing_slicing,
    reason = "an index outside ends the test, and the runner calls that a failure"
)]

mod answers;
mod busy;
mod discovery;
mod interrupts;
mod refusals;
mod resets;

use pvmsi_protocol::GuestMessage;

use super::GuestUnderTest;
use super::machine::Scripted;
use crate::suite::{Test, Verdict, equal, holds};

/// All of them, in the order of the specification.
pub(crate) fn tests() -> Vec<Test> {
    [
        discovery::TESTS,
        answers::TESTS,
        busy::TESTS,
        interrupts::TESTS,
        refusals::TESTS,
        resets::TESTS,
    ]
    .concat()
}

/// A message of the guest: each number has its own.
fn message(number: u32) -> GuestMessage {
    GuestMessage { address: 0x12_fee0_1000, data: number }
}

/// Starts and enables; all vectors must be had, by the service.
fn enabled(machine: &Scripted<'_>, guest: &mut dyn GuestUnderTest, vectors: u16) -> Verdict {
    holds("a guest that starts", guest.start())?;
    equal("vectors enabled", guest.enable(vectors), Ok(vectors))?;
    equal("assigned", machine.host.borrow().assigned, vectors)
}

/// The function works by its standard table.
fn works_by_the_table(machine: &Scripted<'_>, guest: &mut dyn GuestUnderTest) -> Verdict {
    let rings = machine.rings.get();
    equal("assigned", machine.host.borrow().assigned, 0)?;
    equal("set_message", guest.set_message(1, message(0x31)), Ok(()))?;
    equal("unmask", guest.unmask(1), Ok(()))?;
    equal("entry 1", machine.entry(1), [0xfee0_1000, 0x12, 0x31, 0])?;
    equal("mask", guest.mask(1), Ok(()))?;
    equal("entry 1", machine.entry(1), [0xfee0_1000, 0x12, 0x31, 1])?;
    equal("Enable and Function Mask", machine.control(), super::machine::ENABLE)?;
    equal("calls for the standard table", machine.rings.get(), rings)
}
