//! Configuration space: MSI-X Message Control is the service's, the rest is the function's and watched.

use pvmsi_protocol::TableMode;
use vm_memory::GuestAddress;

use crate::capability::{
    self, BARS, COMMAND, COMMAND_MEMORY, CONFIG_BYTES, MSIX_ENABLE, MSIX_FUNCTION_MASK,
};
use crate::layout::BarIndex;
use crate::state::{FunctionState, LegacyEntry, MsixControl, Owner, Placement};
use crate::window::View;

impl FunctionState {
    pub(crate) fn config_read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if offset >= CONFIG_BYTES {
            return;
        }
        self.function.config_read(offset, data);
        let msix = (self.registers.msix_control, MSIX_ENABLE | MSIX_FUNCTION_MASK);
        let mut bits = 0;
        if self.control.enable {
            bits |= MSIX_ENABLE;
        }
        if self.control.function_mask {
            bits |= MSIX_FUNCTION_MASK;
        }
        for (at, byte) in (offset..).zip(data) {
            if at == msix.0 {
                *byte = (*byte & !msix.1) | bits;
            }
            if let Some((_, value)) = self.registers.msi_unlinked.filter(|(link, _)| *link == at) {
                *byte = value;
            }
        }
    }

    pub(crate) fn config_write(&mut self, offset: u64, data: &[u8]) {
        if offset >= CONFIG_BYTES {
            return;
        }
        self.catch_up();
        let control = (offset..).zip(data).find(|(at, _)| *at == self.registers.msix_control);
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

    /// Takes all pages out; `false` where some are still shown.
    fn hide_all(&mut self) -> bool {
        self.leave_direct() && self.take_out(&View::NOTHING)
    }

    /// What the write will do to the function's memory.
    fn effect(&mut self, offset: u64, data: &[u8]) -> Effect {
        let written = |at: u64| {
            let index = usize::try_from(at.checked_sub(offset)?).ok()?;
            data.get(index).copied()
        };
        let registers = &self.registers;
        let bit =
            |at: Option<u64>, bit: u8| at.and_then(written).is_some_and(|byte| byte & bit != 0);
        if bit(registers.device_control, 0x80) || bit(registers.advanced_control, 0x01) {
            return Effect::Reset;
        }
        let touches = |range: &std::ops::Range<u64>| range.clone().any(|at| written(at).is_some());
        let decoding = written(COMMAND.start).map(|byte| u16::from(byte) & COMMAND_MEMORY != 0);
        let moves = touches(&BARS) && self.placement.decoding;
        let decodes = decoding.is_some_and(|decoding| decoding != self.placement.decoding);
        let power = registers.power.as_ref().and_then(|range| written(range.start));
        let powers = power.is_some_and(|byte| (byte & 3 == 0) != self.placement.full_power);
        // A BAR that is written while decoding is off is read again when decoding goes on.
        if moves || decodes || powers { Effect::Memory } else { Effect::None }
    }

    /// Passes the write on, without the byte that is the service's.
    fn forward(&mut self, offset: u64, data: &[u8]) {
        let control = self.registers.msix_control.checked_sub(offset);
        let control = control.and_then(|at| usize::try_from(at).ok());
        match control.filter(|&at| at < data.len()).and_then(|at| data.split_at_checked(at)) {
            // All else in MSI-X Message Control is read-only.
            Some((before, [_, after @ ..])) => {
                if let Some(below) = before.len().checked_sub(1).filter(|&length| length > 0) {
                    self.function.config_write(offset, before.get(..below).unwrap_or(&[]));
                }
                if !after.is_empty() {
                    let next = self.registers.msix_control.saturating_add(1);
                    self.function.config_write(next, after);
                }
            }
            _ => self.function.config_write(offset, data),
        }
    }

    /// Reads what a write may have changed, and makes memory map and mode match.
    pub(crate) fn refresh(&mut self) {
        let woke = self.read_placement();
        self.try_again();
        if woke && self.set_up > 0 {
            // Power states below D0 may cost a function its table.
            self.recover_table();
        } else if self.stale && self.set_up > 0 {
            self.follow_messages();
            self.rewrite_table();
        }
        // A kernel refuses to enable what sleeps.
        self.follow_enable();
        self.read_table_messages();
        self.hold_back();
        let _ = self.show(&self.view());
        self.evaluate();
    }

    /// Whether the function has come back to full power.
    fn read_placement(&mut self) -> bool {
        let function = self.function.as_mut();
        // A read that fails answers ones, which no register here holds but while a guest finds out how large a BAR is.
        let command = capability::word(function, COMMAND.start);
        let decoding = command != u16::MAX && command & COMMAND_MEMORY != 0;
        let mut unread = command == u16::MAX;
        let power = self.registers.power.as_ref();
        let power = power.map(|power| capability::byte(function, power.start));
        unread |= power == Some(u8::MAX);
        let full_power = power.is_none_or(|power| power & 3 == 0);
        let mut bars = [None; BarIndex::COUNT];
        for (index, (address, bar)) in (0_u64..).zip(bars.iter_mut().zip(self.layout.bars())) {
            let Some(bar) = bar else { continue };
            let register = BARS.start.saturating_add(index.saturating_mul(4));
            let low = capability::double_word(function, register);
            if low == u32::MAX {
                unread = true;
                continue;
            }
            let low = low & !0xf;
            let high = if bar.is_64bit {
                capability::double_word(function, register.saturating_add(4))
            } else {
                0
            };
            if high == u32::MAX {
                unread = true;
                continue;
            }
            let base = u64::from(high) << 32 | u64::from(low);
            let base = base & !bar.size.saturating_sub(1);
            // Address 0 is what an unprogrammed BAR holds.
            *address = (base != 0).then_some(GuestAddress(base));
        }
        let woke = full_power && !self.placement.full_power;
        self.placement = Placement { decoding, full_power, bars };
        self.unread = unread;
        self.behind |= unread;
        woke
    }

    fn set_control(&mut self, control: MsixControl) {
        let before = std::mem::replace(&mut self.control, control);
        // Also where it was clear already: whoever writes it so knows nothing of an assignment.
        let assigned = matches!(self.owner, Owner::Assigned(_));
        if !control.enable && (before.enable || assigned) {
            self.disable();
            return;
        }
        if before == control {
            return;
        }
        self.set_up_legacy();
        self.follow_enable();
        self.converge_or_log();
        self.evaluate();
    }

    /// The guest has cleared MSI-X Enable: ownership ends. The emulated table keeps its content where it was the guest's.
    fn disable(&mut self) {
        match &self.owner {
            Owner::Assigned(_) => self.become_default(),
            Owner::Legacy(_) => {
                self.preparation = None;
                self.tear_down();
            }
        }
    }

    /// The function was reset. What is assigned survives, as if it had not been; a guest that programs the table itself finds it as after power-on.
    pub(crate) fn after_reset(&mut self) {
        debug_assert_eq!(self.mode, TableMode::Trapped, "the table is taken back before a reset");
        // The write that has reset the function may have moved or stopped it, too.
        self.read_placement();
        match &mut self.owner {
            Owner::Assigned(_) => {
                self.generation = self.generation.next();
                self.recover_table();
            }
            Owner::Legacy(entries) => {
                entries.fill(LegacyEntry::RESET);
                self.control = MsixControl::default();
                self.preparation = None;
                self.tear_down();
            }
        }
    }

    /// As a function level reset, asked for by the host.
    pub(crate) fn reset_function(&mut self) {
        self.catch_up();
        if self.hide_all() {
            if let Err(error) = self.function.reset() {
                self.complain("the function could not be reset", &error);
            }
            self.after_reset();
        }
        self.refresh();
    }

    /// Power state D0, decoding off, BARs unprogrammed.
    pub(crate) fn power_on_config(&mut self) {
        if let Some(power) = self.registers.power.clone() {
            self.function.config_write(power.start, &[0; 2]);
        }
        self.function.config_write(COMMAND.start, &[0; 2]);
        for register in BARS.step_by(4) {
            self.function.config_write(register, &[0; 4]);
        }
    }

    /// Machine reset: everything to the state at power-on, decoding off.
    pub(crate) fn reset_machine(&mut self) {
        self.catch_up();
        self.control = MsixControl::default();
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
