//! Where in an operation others can act so that it makes a difference: the device, or the other processor.

use crate::VECTORS;

/// Something that happens while an operation is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interference {
    /// The device raises an event.
    Raise(u8),
    /// The device raises an event at the very moment of an attach, which KVM may see twice.
    RaiseInAttach(u8),
    /// A message that was under way arrives.
    Arrive(u8),
    /// The other processor masks or unmasks a vector, by its mapping.
    SetMask(u8, bool),
}

/// A call of a seam or a look at an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    pub(super) kind: Kind,
    /// The vector that is concerned; absent for all.
    pub(super) vector: Option<u8>,
    pub(super) mapped: bool,
    pub(super) masked: [bool; VECTORS],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Look,
    Attach,
    Detach,
    Install,
    SetUp,
    SetMask,
    Mask,
    Message,
    SetMessage,
    Pending,
    Settle,
    Change,
    Show,
}

impl Access {
    /// Whether it makes a difference whether the device raises an event before or after.
    fn sees_event(&self, vector: u8) -> bool {
        let own = self.vector.is_none_or(|own| own == vector);
        own && !matches!(self.kind, Kind::Mask | Kind::Message | Kind::Show | Kind::Settle)
    }

    fn sees_arrival(&self, vector: u8) -> bool {
        let own = self.vector.is_none_or(|own| own == vector);
        let kinds =
            [Kind::Look, Kind::Attach, Kind::Detach, Kind::Install, Kind::SetUp, Kind::Settle];
        own && kinds.contains(&self.kind)
    }

    fn sees_mask(&self, vector: u8) -> bool {
        self.vector.is_none_or(|own| own == vector)
            && !matches!(self.kind, Kind::Message | Kind::SetMessage)
    }
}

/// Where in an operation something can happen that makes a difference.
pub fn interferences(
    accesses: &[Access],
    in_flight: &[Option<bool>; VECTORS],
    races: bool,
) -> Vec<(u16, Interference)> {
    let mut found = Vec::new();
    for (number, flying) in (0..).zip(in_flight) {
        let (mut event, mut arrival, mut mask) = (false, false, false);
        for (at, access) in (0..).zip(accesses) {
            // Before the first that sees it is as good as before the operation.
            if access.sees_event(number) {
                if event && flying.is_none() {
                    found.push((at, Interference::Raise(number)));
                }
                event = true;
                if races && access.kind == Kind::Attach {
                    found.push((at, Interference::RaiseInAttach(number)));
                }
            }
            if access.sees_arrival(number) {
                if arrival && flying.is_some() {
                    found.push((at, Interference::Arrive(number)));
                }
                arrival = true;
            }
            if access.sees_mask(number) {
                if mask && access.mapped {
                    let now = access.masked.get(usize::from(number)) == Some(&true);
                    found.push((at, Interference::SetMask(number, !now)));
                }
                mask = true;
            }
        }
    }
    found
}
