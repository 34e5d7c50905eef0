//! What guest, host and device can do, and what the specification says of it.

use crate::VECTORS;
use crate::bounds::Bounds;
use crate::hardware::Content;
use crate::kernel::Message;
use crate::rules::Rules;
use crate::state::State;
use crate::world::Interference;

/// An operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// The guest writes a mask bit: by its mapping where it has one, else by an exit.
    SetMask(u8, bool),
    /// The same by an exit, although the table is direct: the exit came before the mapping.
    SetMaskByExit(u8, bool),
    /// The guest writes a message into the trapped table of the default state.
    WriteMessage(u8, bool),
    /// The guest writes a message into a trapped table whose vectors are assigned.
    WriteIgnored(u8),
    /// The guest writes a message that is not its own into the direct table.
    Scribble(u8),
    /// The guest writes the table message back that it was given.
    WriteBack(u8),
    /// `configure`, one of [`CONFIGURES`].
    Configure(u8),
    /// `update`, one of [`UPDATES`].
    Update(u8),
    /// `release`.
    Release,
    /// `restore`.
    Restore,
    /// The guest writes MSI-X Enable and Function Mask.
    Control(bool, bool),
    /// The guest writes Memory Space Enable.
    Decoding(bool),
    /// The guest writes the power state: D0 or D3hot.
    Power(bool),
    /// The guest writes the base address register.
    MoveBar(u32),
    /// The guest starts a function level reset.
    FunctionLevelReset,
    /// The host takes the table back, or allows it again.
    Revoke(bool),
    /// The host resets the function.
    ResetFunction,
    /// The host fears that the function has lost its table, and repairs it.
    Repair,
    /// The host resets the machine.
    ResetMachine,
    /// The host removes the function, and plugs a new one.
    Remove,
    /// The device raises an event, whose message arrives at once.
    Raise(u8),
    /// The device raises an event, whose message stays under way.
    RaiseLate(u8),
    /// A message that was under way arrives.
    Arrive(u8),
    /// The guest resets the function by a register that the host does not know.
    ResetUnseen,
}

/// An operation, and what happens while it is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Action {
    /// The operation.
    pub operation: Operation,
    /// Before which access what else happens.
    pub meanwhile: Option<(u16, Interference)>,
}

/// How one vector shall start: which of its two messages, if any, and masked or not.
pub type Setup = (Option<bool>, bool);

/// A `configure`: vectors requested, and the first of them.
#[derive(Clone, Copy, Debug)]
pub struct Configure {
    /// How many vectors.
    pub requested: u8,
    /// The first of them.
    pub setups: &'static [Setup],
}

/// What guests ask for.
pub const CONFIGURES: &[Configure] = &[
    Configure { requested: 2, setups: &[(Some(false), false), (Some(false), false)] },
    Configure { requested: 2, setups: &[(Some(false), true), (Some(false), false)] },
    Configure { requested: 2, setups: &[(None, false)] },
    Configure { requested: 1, setups: &[(Some(false), true)] },
];

/// The vectors that an `update` names, each with which of its two messages.
pub const UPDATES: &[&[(u8, bool)]] =
    &[&[(0, false)], &[(0, true)], &[(1, false)], &[(0, false), (1, false)]];

/// The two places of the BAR.
pub const PLACES: [u32; 2] = [0xc000_0000, 0xd000_0000];

/// All operations that can change something in a state.
pub fn operations(bounds: &Bounds, state: &State) -> Vec<Operation> {
    let State { world, rules, .. } = state;
    let hardware = &world.hardware;
    let mut found = Vec::new();
    for (index, number) in (0..VECTORS).zip(0_u8..) {
        let toggled = !rules.masked[index];
        if world.map.table {
            // Entries beyond the granted vectors can be written as well: that is the guest's own affair.
            if rules.granted(index) {
                found.push(Operation::SetMask(number, toggled));
                found.push(Operation::SetMaskByExit(number, toggled));
                if bounds.scribbles && !rules.scribbled[index] {
                    found.push(Operation::Scribble(number));
                } else if rules.scribbled[index] {
                    found.push(Operation::WriteBack(number));
                }
            }
        } else if hardware.reachable() {
            found.push(Operation::SetMask(number, toggled));
            if rules.assigned > 0 {
                found.push(Operation::WriteIgnored(number));
            } else if rules.masked[index] {
                // An entry that is written while it is unmasked fires with half of a message.
                for second in [false, true] {
                    if (bounds.second || !second)
                        && rules.messages[index] != Some(Message::of(index, second))
                    {
                        found.push(Operation::WriteMessage(number, second));
                    }
                }
            }
        }
        if hardware.full_power {
            found.push(Operation::Raise(number));
        }
        if hardware.in_flight[index].is_some() {
            found.push(Operation::Arrive(number));
        } else if bounds.late
            && hardware.would_emit(index)
            && hardware.entries[index].content == Content::Host(number)
        {
            found.push(Operation::RaiseLate(number));
        }
    }
    found.extend((0..).zip(CONFIGURES).map(|(number, _)| Operation::Configure(number)));
    found.extend(
        (0..)
            .zip(UPDATES)
            .filter(|(_, named)| bounds.second || named.iter().all(|&(_, second)| !second))
            .map(|(number, _)| Operation::Update(number)),
    );
    for enable in [false, true] {
        for function_mask in [false, true] {
            found.push(Operation::Control(enable, function_mask));
        }
    }
    found.extend([
        Operation::Release,
        Operation::Restore,
        Operation::Decoding(!hardware.decoding),
        Operation::Power(!hardware.full_power),
        Operation::FunctionLevelReset,
        Operation::Revoke(!rules.revoked),
        Operation::ResetFunction,
        Operation::Repair,
        Operation::ResetMachine,
        Operation::Remove,
    ]);
    let places = if bounds.second { &PLACES[..] } else { &PLACES[..1] };
    found.extend(
        places
            .iter()
            .filter(|&&place| place != hardware.bar)
            .map(|&place| Operation::MoveBar(place)),
    );
    if bounds.unseen && rules.assigned > 0 && hardware.reachable() {
        found.push(Operation::ResetUnseen);
    }
    found
}

impl Operation {
    /// What the specification says that guest and host have asked for, once it is done.
    pub fn after(self, bounds: &Bounds, rules: &Rules, answers: bool) -> Rules {
        let mut rules = rules.clone();
        // The host cannot put messages back into a table that does not answer.
        let unseen = rules.reset_unseen && !answers;
        match self {
            Self::SetMask(vector, masked) | Self::SetMaskByExit(vector, masked) => {
                let vector = usize::from(vector);
                if rules.granted(vector) {
                    rules.masked[vector] = masked;
                }
            }
            Self::WriteMessage(vector, second) => {
                let vector = usize::from(vector);
                rules.messages[vector] = Some(Message::of(vector, second));
            }
            Self::Scribble(vector) => rules.scribbled[usize::from(vector)] = true,
            Self::WriteBack(vector) => rules.scribbled[usize::from(vector)] = false,
            Self::Configure(number) => {
                let Configure { requested, setups } = CONFIGURES[usize::from(number)];
                rules.become_default();
                rules.reset_unseen = unseen;
                rules.assigned = requested.min(u8::try_from(bounds.routes).unwrap_or(u8::MAX));
                for (vector, (message, masked)) in setups.iter().enumerate() {
                    if rules.granted(vector) {
                        rules.messages[vector] = message.map(|second| Message::of(vector, second));
                        rules.masked[vector] = *masked;
                    }
                }
            }
            Self::Update(number) => {
                for &(vector, second) in UPDATES[usize::from(number)] {
                    let vector = usize::from(vector);
                    rules.messages[vector] = Some(Message::of(vector, second));
                }
            }
            Self::Release if rules.assigned > 0 => rules.become_default(),
            Self::Restore if rules.assigned > 0 => {
                rules.table_rewritten();
                rules.reset_unseen = unseen;
            }
            Self::Repair => {
                rules.table_rewritten();
                rules.reset_unseen = unseen;
            }
            Self::Control(enable, function_mask) => {
                rules.enable = enable;
                rules.function_mask = function_mask;
                if !enable && rules.assigned > 0 {
                    rules.become_default();
                }
            }
            // Nobody is left who could want it.
            Self::Remove => rules.enable = false,
            Self::FunctionLevelReset | Self::ResetFunction => {
                if rules.assigned == 0 {
                    rules.become_default();
                    rules.enable = false;
                    rules.function_mask = false;
                }
                rules.table_rewritten();
            }
            Self::ResetMachine => {
                rules.become_default();
                rules.enable = false;
                rules.function_mask = false;
            }
            Self::Revoke(revoked) => rules.revoked = revoked,
            Self::ResetUnseen => rules.reset_unseen = true,
            _ => {}
        }
        rules
    }

    /// Whether events of a vector that are held may go: ownership ends, the vector does not stay assigned, or a function in the default state is reset.
    pub fn drops_events(self, vector: usize, before: &Rules, after: &Rules) -> bool {
        match self {
            Self::Configure(_) => !after.granted(vector),
            Self::Release => before.assigned > 0,
            Self::Control(enable, _) => !enable,
            Self::FunctionLevelReset | Self::ResetFunction => before.assigned == 0,
            Self::ResetMachine | Self::Remove => true,
            _ => false,
        }
    }

    /// The most routing updates, and interrupt set-ups with requests for Enable alone, that it may take, where a `configure` has prepared so many vectors.
    pub fn cost(self, rules: &Rules, prepared: usize) -> (u32, u32) {
        match self {
            // Twice where events wait that the emulated table has to hold from now on.
            Self::Release if prepared > 0 => (1, 2),
            // The trapped table of the default state: the first vector that is unmasked sets all up.
            Self::SetMask(..) | Self::WriteMessage(..) if rules.assigned == 0 => (2, 1),
            Self::Configure(_) | Self::Release | Self::Control(..) => (1, 1),
            Self::Update(_) => (1, 0),
            // Twice where the host could not read its messages yet, and the function has lost them.
            Self::Power(true) | Self::FunctionLevelReset | Self::ResetFunction | Self::Repair => {
                (1, 2)
            }
            Self::ResetMachine | Self::Remove => (2, 2),
            _ => (0, 0),
        }
    }
}
