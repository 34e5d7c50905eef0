//! Configuration space and resets: MSI-X Message Control is the service's, the rest is the function's and watched.

use pvmsi_protocol::{TableMode, VectorIndex};

use super::guest::{LegacyEntry, MsixControl, Owner};
use super::host::{Debts, Host};
use super::operation::Operation;
use crate::capability::{
    self, BARS, COMMAND, COMMAND_MEMORY, CONFIG_BYTES, MSIX_ENABLE, MSIX_FUNCTION_MASK,
};
use crate::vector_table::is_unanswered;

impl Operation<'_> {
    pub(crate) fn config_write(mut self, offset: u64, data: &[u8]) {
        if offset >= CONFIG_BYTES {
            return;
        }
        let msix_control = self.fixed.registers.msix_control;
        let control = (offset..).zip(data).find(|(at, _)| *at == msix_control);
        let control = control.map(|(_, &byte)| byte);
        let effect = self.effect(offset, data);
        // What the function would stop to answer on must not be shown: unmap first, then change.
        let possible = effect == Effect::None || self.hide_all();
        if possible {
            self.forward(offset, data);
        }
        if possible && effect == Effect::Reset {
            self.after_reset();
        }
        if effect != Effect::None {
            self.refresh();
        }
        if let Some(byte) = control {
            self.set_control(MsixControl {
                enable: byte & MSIX_ENABLE != 0,
                function_mask: byte & MSIX_FUNCTION_MASK != 0,
            });
        }
    }

    /// What the write will do to the function's memory.
    fn effect(&self, offset: u64, data: &[u8]) -> Effect {
        let written = |at: u64| {
            let index = usize::try_from(at.checked_sub(offset)?).ok()?;
            data.get(index).copied()
        };
        let registers = &self.fixed.registers;
        let placement = &self.guest.placement;
        let bit =
            |at: Option<u64>, bit: u8| at.and_then(written).is_some_and(|byte| byte & bit != 0);
        if bit(registers.device_control, 0x80) || bit(registers.advanced_control, 0x01) {
            return Effect::Reset;
        }
        let touches = |range: &std::ops::Range<u64>| range.clone().any(|at| written(at).is_some());
        let decoding = written(COMMAND.start).map(|byte| u16::from(byte) & COMMAND_MEMORY != 0);
        let moves = touches(&BARS) && placement.decoding;
        let decodes = decoding.is_some_and(|decoding| decoding != placement.decoding);
        let power = registers.power.as_ref().and_then(|range| written(range.start));
        let powers = power.is_some_and(|byte| (byte & 3 == 0) != placement.full_power);
        // A BAR that is written while decoding is off is read again when decoding goes on.
        if moves || decodes || powers { Effect::Memory } else { Effect::None }
    }

    /// Passes the write on, without the byte that is the service's.
    fn forward(&mut self, offset: u64, data: &[u8]) {
        let msix_control = self.fixed.registers.msix_control;
        let control = msix_control.checked_sub(offset);
        let control = control.and_then(|at| usize::try_from(at).ok());
        match control.filter(|&at| at < data.len()).and_then(|at| data.split_at_checked(at)) {
            // All else in MSI-X Message Control is read-only.
            Some((before, [_, after @ ..])) => {
                if let Some(below) = before.len().checked_sub(1).filter(|&length| length > 0) {
                    self.function.config_write(offset, before.get(..below).unwrap_or(&[]));
                }
                if !after.is_empty() {
                    self.function.config_write(msix_control.saturating_add(1), after);
                }
            }
            _ => self.function.config_write(offset, data),
        }
    }

    fn set_control(&mut self, control: MsixControl) {
        let before = std::mem::replace(&mut self.guest.control, control);
        // Also where it was clear already: whoever writes it so knows nothing of an assignment.
        let assigned = self.guest.owner.is_assigned();
        if !control.enable && (before.enable || assigned) {
            self.disable();
            return;
        }
        if before.enable && !control.function_mask && !assigned {
            // A guest that never calls makes a reset good that the host has not seen.
            self.recover_unseen();
            self.follow_enable();
        }
        if before == control {
            return;
        }
        self.world.wires.all_changed();
        self.set_up_legacy();
        self.follow_enable();
        self.converge_or_owe();
    }

    /// The guest has cleared MSI-X Enable: ownership ends. The emulated table keeps its content where it was the guest's.
    fn disable(&mut self) {
        match &self.guest.owner {
            Owner::Assigned(_) => self.become_default(),
            Owner::Legacy(_) => {
                self.forget_unfinished();
                self.tear_down();
            }
        }
    }

    /// The function was reset. What is assigned survives, as if it had not been; a guest that programs the table itself finds it as after power-on.
    fn after_reset(&mut self) {
        debug_assert_eq!(
            self.world.mode,
            TableMode::Trapped,
            "the table is taken back before a reset"
        );
        // The write that has reset the function may have moved or stopped it, too.
        self.read_placement();
        match &mut self.guest.owner {
            Owner::Assigned(_) => {
                self.tally.next_generation();
                self.recover_table();
            }
            Owner::Legacy(entries) => {
                entries.fill(LegacyEntry::RESET);
                self.guest.control = MsixControl::default();
                self.forget_unfinished();
                self.tear_down();
            }
        }
    }

    /// As a function level reset, asked for by the host.
    pub(crate) fn reset_function(mut self) {
        if self.hide_all() {
            if let Err(error) = self.function.reset() {
                self.complain("the function could not be reset", &error);
            }
            self.after_reset();
        }
        self.refresh();
    }

    /// Lets nothing reach the function until [`repair`](Self::repair): it may stop to answer, or be reset by others, at any moment.
    pub(crate) fn freeze(mut self) {
        self.take_from_guest();
        self.host.insert(Host::FROZEN);
        self.debts.insert(Debts::PUBLISH);
        // What fails is owed.
        let _ = self.show();
    }

    /// Puts right what the function may have lost without a word to the service. `false` where it does not answer: it is frozen.
    pub(crate) fn repair(mut self) -> bool {
        let taken = self.take_from_guest();
        self.host.remove(Host::FROZEN);
        self.debts.insert(Debts::PUBLISH);
        // Whoever has reset it may have left decoding off.
        self.read_placement();
        let silent = self.is_silent();
        self.host.set(Host::FROZEN, silent);
        self.tally.next_generation();
        if taken && !silent {
            self.recover_table();
        } else {
            // The guest has it still, with its mask bits in it; or nobody has.
            self.rewrite_table();
        }
        self.refresh();
        !silent
    }

    /// Takes all pages out. The mask bits of a direct table are the guest's, whoever has cleared some. `false` where some pages are still shown.
    fn take_from_guest(&mut self) -> bool {
        let direct = self.world.mode == TableMode::Direct;
        let silent = direct && self.table_is_silent();
        let taken = self.hide_all();
        // It may have fallen silent while its mask bits were read.
        if direct
            && taken
            && (silent || self.table_is_silent())
            && let Owner::Assigned(vectors) = &mut self.guest.owner
        {
            // Ones are what nobody has answered. A vector that the guest has masked may fire: that is
            // less than one that it waits for in vain.
            vectors.iter_mut().for_each(|vector| vector.masked = false);
            self.world.wires.all_changed();
            self.converge_or_owe();
        }
        taken
    }

    /// Whether the function gives ones where it should answer.
    fn is_silent(&mut self) -> bool {
        let command = capability::word(self.function.as_mut(), COMMAND.start);
        command == u16::MAX || self.table_is_silent()
    }

    fn table_is_silent(&mut self) -> bool {
        self.world.set_up > 0
            && self.answers()
            && self.function.table().message(VectorIndex(0)).is_ok_and(is_unanswered)
    }

    /// Machine reset: everything to the state at power-on, decoding off.
    pub(crate) fn reset_machine(mut self) {
        self.guest.control = MsixControl::default();
        self.become_default();
        if self.hide_all() {
            self.power_on_config();
            if let Err(error) = self.function.reset() {
                self.complain("the function could not be reset", &error);
            }
        }
        self.refresh();
    }
}

/// What a write of configuration space does to the function's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    None,
    /// Decoding, BARs or power state change.
    Memory,
    /// Function level reset.
    Reset,
}
