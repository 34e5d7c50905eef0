//! The one place that maps and unmaps: a function's pages in the guest's memory map.

use std::io;

use super::Switch;
use super::host::Debts;
use crate::window::{View, Window};

/// How often pages are tried to be taken out of the guest's memory map before an operation does without.
const TAKE_OUT_ATTEMPTS: usize = 3;

/// The guest's memory map, as far as the function is concerned.
pub(crate) struct Pages {
    window: Box<dyn Window>,
}

impl Pages {
    pub(crate) fn new(window: Box<dyn Window>) -> Self {
        Self { window }
    }

    /// Whether the table's pages can be shown at all.
    pub(crate) fn can_show_table(&self) -> bool {
        self.window.table_can_be_direct()
    }

    /// Whether a page of the table is still shown.
    pub(crate) fn shows_table(&self) -> bool {
        self.window.shows_table()
    }

    /// Makes the memory map equal to `view`.
    pub(crate) fn show(&mut self, view: &View) -> io::Result<()> {
        self.window.show(view)
    }

    /// Makes the memory map show no more than `view`. A transient refusal is overcome.
    pub(crate) fn take_out(&mut self, view: &View) -> io::Result<()> {
        let mut shown = Ok(());
        for _ in 0..TAKE_OUT_ATTEMPTS {
            shown = self.show(view);
            if shown.is_ok() {
                break;
            }
        }
        shown
    }
}

impl Switch {
    /// Makes the memory map match guest and mode.
    pub(super) fn show(&mut self) -> io::Result<()> {
        let shown = self.pages.show(&self.view());
        self.shown(shown)
    }

    /// Takes out of the memory map what is not in `view`; `false` where pages that are not in it are still shown.
    pub(super) fn take_out(&mut self, view: &View) -> bool {
        let shown = self.pages.take_out(view);
        self.shown(shown).is_ok()
    }

    fn shown(&mut self, shown: io::Result<()>) -> io::Result<()> {
        self.debts.set(Debts::MAP, shown.is_err());
        if let Err(error) = &shown {
            self.complain("the guest's memory map could not be changed", error);
        }
        shown
    }
}
