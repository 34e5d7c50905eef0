//! Where the function is decoded: read from configuration space after each write that can change it.

use super::Switch;
use super::guest::Placement;
use super::host::Debts;
use crate::capability::{self, BARS, COMMAND, COMMAND_MEMORY};
use crate::layout::BarIndex;
use crate::window::View;

impl Switch {
    /// Reads what a write may have changed, and makes table, function and memory map match.
    pub(super) fn refresh(&mut self) {
        let woke = self.read_placement();
        self.debts.remove(Debts::NOT_MAPPABLE);
        // Power states below D0 may cost a function its table.
        let lost = woke || self.debts.contains(Debts::TABLE) && self.answers();
        if lost && self.world.set_up > 0 {
            if !woke {
                // What could not be read before; after a sleep it may be anything.
                self.read_table_messages();
            }
            self.recover_table();
        }
        // A kernel refuses to enable what sleeps.
        self.follow_enable();
        self.read_table_messages();
        self.hold_back();
        // What fails is owed.
        let _ = self.show();
    }

    /// Whether the function has come back to full power.
    pub(super) fn read_placement(&mut self) -> bool {
        let function = self.function.as_mut();
        // A read that fails answers ones, which no register here holds but while a guest finds out how large a BAR is.
        let command = capability::word(function, COMMAND.start);
        let decoding = command != u16::MAX && command & COMMAND_MEMORY != 0;
        let mut unread = command == u16::MAX;
        let power = self.fixed.registers.power.as_ref();
        let power = power.map(|power| capability::byte(function, power.start));
        unread |= power == Some(u8::MAX);
        let full_power = power.is_none_or(|power| power & 3 == 0);
        let mut bars = [None; BarIndex::COUNT];
        for (index, (address, bar)) in (0_u64..).zip(bars.iter_mut().zip(self.fixed.layout.bars()))
        {
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
            *address = (base != 0).then_some(base);
        }
        let woke = full_power && !self.guest.placement.full_power;
        let placement = Placement { decoding, full_power, bars };
        if placement != self.guest.placement {
            self.guest.placement = placement;
            self.debts.insert(Debts::PUBLISH);
        }
        self.debts.set(Debts::PLACEMENT, unread);
        woke
    }

    /// Takes all pages out; `false` where some are still shown.
    pub(super) fn hide_all(&mut self) -> bool {
        // What follows may cost the function its mask bits.
        self.detach_prepared();
        self.leave_direct() && self.take_out(&View::NOTHING)
    }

    /// Power state D0, decoding off, BARs unprogrammed.
    pub(super) fn power_on_config(&mut self) {
        if let Some(power) = self.fixed.registers.power.clone() {
            self.function.config_write(power.start, &[0; 2]);
        }
        self.function.config_write(COMMAND.start, &[0; 2]);
        for register in BARS.step_by(4) {
            self.function.config_write(register, &[0; 4]);
        }
    }
}
