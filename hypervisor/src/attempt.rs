//! While a call can still fail: nothing of what it tries may show before it is certain.
//!
//! An attempt starts with the function holding all its events back, by its own
//! mask bits, and it takes what eventfds hold aside before they are attached. So
//! routes and attachments can change, and change back, without an event
//! that goes where the call had wanted it to go and has failed. At the end the
//! events are let go: to where they belong by then. An `update` that is one
//! routing update, or one with a single attach, needs no part of the function:
//! either fails as a whole.
//!
//! | an event that is raised during the attempt | waits in |
//! |---|---|
//! | of a vector that is set up | the function's pending bit |
//! | of one that the call sets up | nothing: that is the last step, and no step after it can fail |
//! | while the function does not answer, or the host cannot reach its table | nothing: it goes where the vector leads at that moment |

use std::io;

use pvmsi_protocol::TableMode;

use crate::event;
use crate::state::{FunctionState, Owner};

impl FunctionState {
    /// Starts an attempt in which the function holds back `vectors`, and what is masked in a direct table: that is the host's from here on.
    ///
    /// # Errors
    /// When the table cannot be taken back or written. The attempt is to be ended in any case.
    pub(crate) fn begin_attempt(&mut self, vectors: impl Iterator<Item = usize>) -> io::Result<()> {
        self.attempt = true;
        if self.mode == TableMode::Direct {
            if !self.take_back() {
                return Err(still_shown());
            }
            let bits = self.read_mask_bits();
            self.put_messages_right();
            let mut twice = Vec::new();
            for (index, vector) in self.vectors.iter_mut().enumerate().take(self.set_up) {
                // What is set up and not granted was masked when the table was handed over.
                let masked = bits.get(index).is_none_or(|&masked| masked);
                let waits = masked && !vector.attached && event::is_signalled(&vector.event);
                vector.quiet = masked && !waits;
                if waits {
                    twice.push(index);
                }
            }
            // An event waits at the host already: one that waits in the function joins it.
            self.unmask(&twice);
        }
        for index in vectors {
            let number = self.own_mask(index);
            let vector = self.vectors.get_mut(index).filter(|vector| !vector.quiet);
            if let (Some(number), Some(vector)) = (number, vector) {
                vector.quiet = true;
                self.function.set_masked(number, true)?;
            }
        }
        // What was under way arrives before anything is drained, routed or attached.
        self.function.settle();
        Ok(())
    }

    /// Ends an attempt, whatever has become of it, and brings the mode in line. What the guest has masked stays in the function's hands where the table is direct again.
    pub(crate) fn end_attempt(&mut self) {
        self.attempt = false;
        self.let_go(|masked| !masked);
        self.put_all_back();
        self.evaluate();
        self.let_go(|_| true);
    }

    /// Ends an attempt that has succeeded, with the table trapped: all events go where they belong now.
    pub(crate) fn commit_attempt(&mut self) {
        self.attempt = false;
        self.let_go(|_| true);
        self.put_all_back();
    }

    /// Ends the function's part for vectors of which the guest's mask bit says so.
    fn let_go(&mut self, which: fn(bool) -> bool) {
        for index in 0..self.vectors.len() {
            let masked = match &self.owner {
                Owner::Legacy(_) => false,
                // What is set up and not granted counts as masked.
                Owner::Assigned(assigned) => assigned.get(index).is_none_or(|v| v.masked),
            };
            let vector = self.vectors.get_mut(index);
            let Some(vector) = vector.filter(|vector| vector.quiet && which(masked)) else {
                continue;
            };
            vector.quiet = false;
            if self.mode == TableMode::Trapped {
                vector.blocked = true;
                self.unblock_vector(index);
            }
        }
    }

    /// Gives back all that was taken aside.
    fn put_all_back(&mut self) {
        for index in 0..self.vectors.len() {
            // One that could not be detached would fire: it gets its event back when it may, or is detached.
            if !self.is_against(index) {
                self.put_back(index);
            }
        }
    }

    /// Gives an event back what was taken aside: if it is attached, it fires.
    pub(crate) fn put_back(&mut self, index: usize) {
        if let Some(vector) = self.vectors.get_mut(index)
            && std::mem::take(&mut vector.aside)
        {
            event::signal(&vector.event);
        }
    }
}

pub(crate) fn still_shown() -> io::Error {
    io::Error::other("the pages are still shown to the guest")
}
