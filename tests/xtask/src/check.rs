//! What must hold in a report, as named checks.

use std::fmt::Debug;

use crate::report::{Configure, Phase};

/// A named statement and whether it held.
pub(crate) struct Check {
    /// Says what was checked.
    pub name: String,
    /// Why it did not hold.
    pub result: Result<(), String>,
}

impl Check {
    /// Gives a result its name.
    pub(crate) fn new(name: &str, result: Result<(), String>) -> Self {
        Self { name: name.to_owned(), result }
    }

    /// What did not hold, and why; none where it did.
    pub(crate) fn complaint(&self) -> Option<String> {
        self.result.as_ref().err().map(|why| format!("{}: {why}", self.name))
    }
}

/// Prints checks on stderr as a test runner does; true when all held.
pub(crate) fn print(group: &str, checks: &[Check]) -> bool {
    for check in checks {
        match &check.result {
            Ok(()) => eprintln!("test {group}: {} ... ok", check.name),
            Err(why) => eprintln!("test {group}: {} ... FAILED: {why}", check.name),
        }
    }
    checks.iter().all(|check| check.result.is_ok())
}

/// Two values that must be the same.
///
/// # Errors
/// When they are not.
pub(crate) fn equal<T: PartialEq + Debug>(what: &str, found: T, wanted: T) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{what}: {found:?}, must be {wanted:?}")) }
}

/// Whatever the number of vectors: one exit, one routing update, one request for interrupts.
///
/// # Errors
/// When it cost more, or vectors are missing.
pub(crate) fn configured_in_one_go(phase: &Phase) -> Result<(), String> {
    let configure = phase.configure.as_ref().ok_or("no configure section")?;
    equal("configure.doorbell_exits", configure.doorbell_exits, 1)?;
    equal("configure.routing_updates", configure.routing_updates, 1)?;
    equal("configure.interrupt_setups", configure.interrupt_setups, 1)?;
    at_least("configure.granted", configure.granted, 1)
}

/// The same was done in both phases, until every vector could fire, and it cost fewer exits by a
/// call: none of them is on the pages of a direct table.
///
/// # Errors
/// When what was done is not the same, or the call saves nothing.
pub(crate) fn set_up_with_fewer_exits(legacy: &Phase, called: &Phase) -> Result<(), String> {
    let mode = &called.mode;
    let both = [legacy, called].map(|phase| phase.configure.as_ref());
    let [Some(legacy), Some(called)] = both else { return Err("no configure section".to_owned()) };
    equal(&format!("{mode}: configure.granted"), called.granted, legacy.granted)?;
    for (mode, configure) in [("legacy", legacy), (mode.as_str(), called)] {
        // Without this the vectors were not all armed.
        at_least(&format!("{mode}: configure.irqfds"), configure.irqfds, configure.granted)?;
    }
    let set_ups = format!("{mode}: configure.interrupt_setups");
    equal(&set_ups, called.interrupt_setups, 1)?;
    // An interrupt comes with the first unmask of its vector.
    equal("legacy: configure.interrupt_setups", legacy.interrupt_setups, legacy.granted)?;
    // Three words of an entry, and the mask bit; each message is a route.
    let accesses = legacy.granted.saturating_mul(4);
    at_least("legacy: configure.table_exits", legacy.table_exits, accesses)?;
    at_least("legacy: configure.routing_updates", legacy.routing_updates, legacy.granted)?;
    if mode == "direct" {
        equal("direct: configure.table_exits", called.table_exits, 0)?;
    } else {
        // Each mask bit.
        at_least("trapped: configure.table_exits", called.table_exits, called.granted)?;
    }
    // What is left is configuration space, where both do the same.
    let others = |configure: &Configure| {
        configure.exits.checked_sub(configure.table_exits)?.checked_sub(configure.doorbell_exits)
    };
    equal(
        &format!("{mode}: configure.exits, other than table and calls"),
        others(called),
        others(legacy),
    )?;
    below(&format!("{mode}: configure.exits"), called.exits, legacy.exits)
}

/// It also took less time, in most rounds: the two took turns, and what else the machine did
/// meanwhile it did to both of a round.
///
/// # Errors
/// When it did not.
pub(crate) fn set_up_faster(legacy: &Phase, direct: &Phase) -> Result<(), String> {
    let both = [legacy, direct].map(|phase| phase.configure.as_ref());
    let [Some(legacy), Some(direct)] = both else { return Err("no configure section".to_owned()) };
    let (legacy, direct) = (&legacy.ns_each, &direct.ns_each);
    equal("direct: set-ups in configure.ns_each", direct.len(), legacy.len())?;
    let faster = direct.iter().zip(legacy).filter(|(direct, legacy)| direct < legacy).count();
    if faster > direct.len() / 2 {
        Ok(())
    } else {
        Err(format!("set-ups took {direct:?} ns direct, {legacy:?} ns legacy"))
    }
}

/// A direct table costs nothing, and neither does the register beside it.
///
/// # Errors
/// When something was done and cost an exit, or nothing was done.
pub(crate) fn table_is_free(phase: &Phase) -> Result<(), String> {
    equal("table_exits_after_switch", phase.table_exits_after_switch.unwrap_or(u64::MAX), 0)?;
    let mask = phase.mask_unmask.as_ref().ok_or("no mask_unmask section")?;
    at_least("mask_unmask.pairs", mask.pairs, 1)?;
    equal("mask_unmask.exits", mask.exits, 0)?;
    if let Some(neighbour) = &phase.neighbour {
        at_least("neighbour.writes", neighbour.writes, 1)?;
        equal("neighbour.exits", neighbour.exits, 0)?;
    }
    Ok(())
}

/// Registers that share no page with a trapped table cost no exit, however many commands go
/// through them.
///
/// # Errors
/// When a command cost one, or there was none.
pub(crate) fn commands_are_free(phase: &Phase) -> Result<(), String> {
    let io = phase.io.as_ref().ok_or("no io section")?;
    at_least("io.commands", io.commands, 1)?;
    equal("io.mmio_exits", io.mmio_exits, 0)
}

/// Doorbells in the page of a trapped table cost an exit for each command at least.
///
/// # Errors
/// When fewer were counted: the count is then wrong, or the page was not trapped.
pub(crate) fn command_exits(phase: &Phase) -> Result<(), String> {
    let io = phase.io.as_ref().ok_or("no io section")?;
    at_least("io.commands", io.commands, 1)?;
    at_least("io.mmio_exits", io.mmio_exits, io.commands)
}

/// A table that is not mapped costs two exits for each mask and unmask, and one for each write
/// to a register in its page.
///
/// # Errors
/// When fewer were counted: the count is then wrong, or the table was not trapped.
pub(crate) fn table_exits(phase: &Phase) -> Result<(), String> {
    let mask = phase.mask_unmask.as_ref().ok_or("no mask_unmask section")?;
    at_least("mask_unmask.pairs", mask.pairs, 1)?;
    at_least("mask_unmask.exits", mask.exits, mask.pairs.saturating_mul(2))
}

/// No interrupt was lost, doubled or delivered while masked.
///
/// # Errors
/// When one was.
pub(crate) fn interrupts_arrived(phase: &Phase) -> Result<(), String> {
    let Some(interrupts) = &phase.interrupts else { return Ok(()) };
    equal("interrupts.lost", interrupts.lost, 0)?;
    equal("interrupts.spurious", interrupts.spurious, 0)?;
    equal("interrupts.while_masked", interrupts.while_masked, 0)
}

/// A count with a lower bound.
///
/// # Errors
/// When it is below.
pub(crate) fn at_least(what: &str, found: u64, wanted: u64) -> Result<(), String> {
    if found >= wanted {
        Ok(())
    } else {
        Err(format!("{what} is {found}, must be at least {wanted}"))
    }
}

/// A figure with an upper bound that it may not reach.
///
/// # Errors
/// When it does.
fn below(what: &str, found: u64, bound: u64) -> Result<(), String> {
    if found < bound { Ok(()) } else { Err(format!("{what} is {found}, must be below {bound}")) }
}
