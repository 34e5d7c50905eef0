//! After a failure: what could not be done is done by the next operation.
//!
//! A call that answers an error has been rolled back and owes nothing. Other
//! operations cannot fail in the guest's eyes (a write of configuration space or
//! of a trapped table, a reset, a revocation), and rolling back can fail, too. What
//! they could not do is kept as debt, and each later operation tries to pay
//! first; but saving and removal, which need nothing of it. Until then the function
//! is on the safe side:
//!
//! | what failed | until it works |
//! |---|---|
//! | attach, route, set-up | the event waits: in its eventfd, or in the function |
//! | MSI-X Enable of the function | the guest reads its own; the function is as before, and a guest that starts it now may find it without interrupts |
//! | detach | the function's own mask bit holds the events of a vector that must not fire; nothing can while decoding is off |
//! | taking an event or a route out for good | its GSI is not given to anyone |
//! | clearing a mask bit of the function, writing the table | the event waits in the function |
//! | anything that the guest would find in a direct table | trapped, and handed over by the operation that pays |
//! | putting the table's pages in | trapped; tried again with `configure`, `restore`, `allow`, or a change of the BARs, decoding or power state, since guests can cause the attempt |
//! | taking pages out | they stay, the table is direct as before (but for an assignment that ends: that counts as trapped), and what would make the function stop to answer on them is not passed on |
//! | reading a mask bit that the guest has written, twice | the vector counts as masked until the guest writes it again |

use crate::state::{FunctionState, Vector};
use crate::window::View;

/// How often pages are tried to be taken out of the guest's memory map before an operation does without.
const TAKE_OUT_ATTEMPTS: usize = 3;

impl FunctionState {
    /// Pays debts, if there are any. Each operation that may change something starts with it.
    pub(crate) fn catch_up(&mut self) {
        if !std::mem::take(&mut self.behind) {
            return;
        }
        self.release_stuck();
        if self.unread {
            self.refresh();
        }
        if self.unshown {
            let _ = self.show(&self.view());
        }
        let count = self.vectors.len();
        // Where MSI-X is off, clearing Enable takes down what is left.
        if (self.set_up != count || self.leftover)
            && (count > 0 || self.control.enable)
            && let Err(error) = self.set_up_interrupts(count)
        {
            self.complain("interrupts could not be set up", &error);
        }
        self.follow_enable();
        if self.stale {
            self.follow_messages();
            self.rewrite_table();
        }
        self.read_table_messages();
        self.set_up_legacy();
        self.converge_or_log();
        self.free_spare_gsis();
        self.hold_back();
        // Looked at again by the hand-over itself.
        self.owing = false;
        self.evaluate();
    }

    /// Makes the memory map show no more than `view`; `false` where pages that are not in it are still shown. A transient refusal is overcome.
    pub(crate) fn take_out(&mut self, view: &View) -> bool {
        (0..TAKE_OUT_ATTEMPTS).any(|_| self.show(view).is_ok())
    }

    /// Keeps vectors that could not be taken out of the routes.
    pub(crate) fn keep_stuck(&mut self, vectors: impl Iterator<Item = Vector>) {
        self.stuck.extend(vectors);
        self.behind |= !self.stuck.is_empty();
    }

    /// Takes out of the routes what could not be taken out before.
    pub(crate) fn release_stuck(&mut self) {
        if self.stuck.is_empty() {
            return;
        }
        let mut stuck = std::mem::take(&mut self.stuck);
        for vector in stuck.iter_mut().filter(|vector| vector.attached) {
            let Some(gsi) = vector.gsi else { continue };
            match self.routes.detach(&vector.event, gsi) {
                Ok(()) => vector.attached = false,
                Err(error) => self.log_routes(&error),
            }
        }
        let (free, stuck): (Vec<_>, Vec<_>) = stuck.into_iter().partition(Vector::is_out);
        let gsis: Vec<_> = free.into_iter().filter_map(|vector| vector.gsi).collect();
        self.routes.free(&gsis);
        self.keep_stuck(stuck.into_iter());
    }
}
