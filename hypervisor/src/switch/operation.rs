//! The guard that each change goes through.
//!
//! A call that answers an error has been rolled back and owes nothing. Other
//! operations cannot fail in the guest's eyes (a write of configuration space or
//! of a trapped table, a reset, a revocation), and rolling back can fail, too. What
//! they could not do is owed, and each later operation tries to pay first; but
//! removal, which needs nothing of it.

use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;

use pvmsi_protocol::TableMode;

use super::Switch;
use super::decide;
use super::host::Debts;
use crate::layout::{Bar, BarIndex};
use crate::sync::RwLock;

/// The only way to change a [`Switch`]: pays what is owed when it begins, and at its end brings the table's mode in line and publishes where the function is decoded.
pub(crate) struct Operation<'a> {
    switch: &'a mut Switch,
    decoded: &'a Decoded,
}

impl Deref for Operation<'_> {
    type Target = Switch;

    fn deref(&self) -> &Switch {
        self.switch
    }
}

impl DerefMut for Operation<'_> {
    fn deref_mut(&mut self) -> &mut Switch {
        self.switch
    }
}

impl<'a> Operation<'a> {
    pub(crate) fn begin(switch: &'a mut Switch, decoded: &'a Decoded) -> Self {
        if switch.owes() {
            switch.pay();
        }
        Self { switch, decoded }
    }
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        // The state after a panic is still the best there is.
        if !std::thread::panicking() {
            self.evaluate();
            debug_assert!(self.switch.nothing_is_forgotten(), "a changed vector is not marked");
        }
        if self.debts.contains(Debts::PUBLISH) {
            self.decoded.publish(self.switch);
            self.debts.remove(Debts::PUBLISH);
        }
    }
}

impl Switch {
    /// Whether something is owed that can be paid.
    fn owes(&self) -> bool {
        let vectors = self.world.wires.len();
        self.debts.intersects(Debts::PAYABLE)
            || !self.world.wires.changed.is_empty()
            || !self.world.aside.is_empty()
            || self.world.wires.has_retired()
            || self.world.set_up != vectors
            || self.world.enabled != decide::enabled(&self.guest, vectors)
            || self.debts.contains(Debts::TABLE) && self.answers()
            || !self.world.blocked.is_empty()
                && self.world.mode == TableMode::Trapped
                && self.answers()
    }

    fn pay(&mut self) {
        if let Err(error) = self.world.wires.release_retired() {
            self.complain_of_routes(&error);
        }
        if self.debts.contains(Debts::PLACEMENT) {
            self.refresh();
        }
        if self.debts.contains(Debts::MAP) {
            let _ = self.show();
        }
        let vectors = self.world.wires.len();
        // Where MSI-X is off, clearing Enable takes down what is left.
        if (self.world.set_up != vectors || self.debts.contains(Debts::TAKE_DOWN))
            && decide::enabled(&self.guest, vectors)
        {
            // It unmasks them.
            self.detach_prepared();
            if let Err(error) = self.set_up_interrupts(vectors) {
                self.complain("interrupts could not be set up", &error);
            }
        }
        self.follow_enable();
        if self.debts.contains(Debts::TABLE) && self.answers() {
            self.recover_table();
        }
        self.read_table_messages();
        self.set_up_legacy();
        self.converge_or_owe();
        self.free_spare_gsis();
        self.hold_back();
        // Looked at again by the hand-over itself.
        self.debts.remove(Debts::HAND_OVER);
    }

    /// Whether all vectors that are not as they shall be are marked as changed.
    fn nothing_is_forgotten(&self) -> bool {
        self.world.wires.first(self.world.wires.len()).all(|(index, vector)| {
            self.world.wires.changed.contains(index)
                || self.wanted_for(index, vector.wire).is_met(vector.wire)
        })
    }
}

/// Where a function is decoded, to be looked up on each exit without its lock.
#[derive(Debug, Default)]
pub(crate) struct Decoded(RwLock<[Option<(u64, u64)>; BarIndex::COUNT]>);

impl Decoded {
    /// What a guest physical address hits.
    pub(crate) fn find(&self, address: u64) -> Option<(BarIndex, u64)> {
        let ranges = self.0.read().unwrap_or_else(PoisonError::into_inner);
        (0_u8..).zip(ranges.iter()).find_map(|(index, range)| {
            let (start, size) = (*range)?;
            let offset = address.checked_sub(start)?;
            (offset < size).then_some((BarIndex(index), offset))
        })
    }

    /// Start and size of each BAR that is decoded.
    pub(crate) fn ranges(&self) -> [Option<(u64, u64)>; BarIndex::COUNT] {
        *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nowhere, from now on.
    pub(crate) fn withdraw(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Default::default();
    }

    pub(crate) fn publish(&self, switch: &Switch) {
        let placement = &switch.guest.placement;
        let mut now = [None; BarIndex::COUNT];
        if switch.answers() {
            let placed = placement.bars.iter().zip(switch.fixed.layout.bars());
            for (range, (address, bar)) in now.iter_mut().zip(placed) {
                *range = address.zip(*bar).map(|(address, Bar { size, .. })| (address, size));
            }
        }
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = now;
    }
}
