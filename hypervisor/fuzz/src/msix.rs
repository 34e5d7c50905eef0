//! MSI-X as the PCI specification has it, as a plain model: entries, mask bits, pending bits, and
//! which messages are sent when. The protocol adds vectors whose messages are the host's.
//!
//! What the specification leaves open is open here: [`Pending::Perhaps`].

use pvmsi_protocol::{GuestMessage, TableMessage};

use crate::fixture::{FUNCTION, X86_64};

/// What is known of a pending bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// Clear.
    No,
    /// Set.
    Yes,
    /// A reset or the end of an ownership may have cleared it.
    Perhaps,
}

/// An entry of the table.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Message Address and Message Data.
    pub message: GuestMessage,
    /// Mask bit of Vector Control.
    pub masked: bool,
    /// Its bit in the pending bit array.
    pub pending: Pending,
    /// The event came to the host, which holds it for Function Mask or for want of a message,
    /// although the vector was not masked: the bit may be missing while the table is direct.
    pub held: bool,
    /// Another event waits in the function meanwhile, by the mask bit of a direct table. The two
    /// may arrive, or be reported, as one or one after the other.
    pub another: bool,
}

impl Entry {
    const RESET: Self = Self {
        message: GuestMessage { address: 0, data: 0 },
        masked: true,
        pending: Pending::No,
        held: false,
        another: false,
    };
}

/// A vector that the protocol owns.
#[derive(Clone, Copy, Debug)]
pub struct Assigned {
    /// Where its interrupts go; nowhere yet, if absent.
    pub guest: Option<GuestMessage>,
    /// What its entry reads as.
    pub table: TableMessage,
}

/// The interrupts of one function.
pub struct Msix {
    /// MSI-X Enable.
    pub enable: bool,
    /// Function Mask.
    pub function_mask: bool,
    /// The table.
    pub entries: Vec<Entry>,
    /// Bits of Vector Control beside the mask bit.
    pub other_bits: Vec<u32>,
    /// The vectors that are assigned, from the first on.
    pub assigned: Option<Vec<Assigned>>,
    /// Messages that must have been sent since the last look.
    sent: Vec<GuestMessage>,
    /// Messages that may have been.
    perhaps_sent: Vec<GuestMessage>,
}

impl Msix {
    /// After power-on.
    pub fn new(vectors: u16) -> Self {
        Self {
            enable: false,
            function_mask: false,
            entries: vec![Entry::RESET; vectors.into()],
            other_bits: vec![0; vectors.into()],
            assigned: None,
            sent: Vec::new(),
            perhaps_sent: Vec::new(),
        }
    }

    /// How many vectors the protocol owns.
    pub fn granted(&self) -> usize {
        self.assigned.as_ref().map_or(0, Vec::len)
    }

    /// An event of the function, whose table may be direct.
    pub fn raise(&mut self, vector: usize, direct: bool) {
        let withheld = self.withheld(vector);
        let entry = &mut self.entries[vector];
        let waits = entry.pending != Pending::No;
        entry.held &= waits;
        entry.another |= (entry.held || withheld && waits) && entry.masked && direct;
        entry.pending = Pending::Yes;
        self.send();
    }

    /// Whether more than a mask bit keeps the vector from firing: what waits may be at the host
    /// then, also while the table is direct.
    pub fn withheld(&self, vector: usize) -> bool {
        let assigned = self.assigned.as_ref().and_then(|assigned| assigned.get(vector));
        self.function_mask || assigned.is_some_and(|vector| vector.guest.is_none())
    }

    /// A write of MSI-X Message Control.
    pub fn control(&mut self, enable: bool, function_mask: bool) {
        let disabled = !enable && (self.enable || self.assigned.is_some());
        (self.enable, self.function_mask) = (enable, function_mask);
        if disabled {
            if self.assigned.is_some() {
                self.release();
            } else {
                self.doubt(0);
            }
        }
        self.send();
    }

    /// The four words of an entry; `None` for a message that nobody defines.
    pub fn entry(&self, vector: usize, direct: bool) -> ([u32; 3], bool, u32) {
        let entry = self.entries[vector];
        let (message, known) = match &self.assigned {
            None => ((entry.message.address, entry.message.data), true),
            Some(assigned) => match assigned.get(vector) {
                Some(Assigned { table, .. }) => ((table.address, table.data), true),
                // Trapped, the host shows nothing; direct, it is the function's.
                None => ((0, 0), !direct),
            },
        };
        let (address, data) = message;
        let control = u32::from(entry.masked) | self.other_bits[vector];
        ([address as u32, (address >> 32) as u32, data], known, control)
    }

    /// An aligned write of one word of an entry, by the number of the word. More than one word of
    /// a write takes effect at once.
    pub fn write(&mut self, vector: usize, words: &[(u64, u32)]) {
        for &(word, value) in words {
            if word == 3 {
                // The function's own, whoever has the vector (H-518).
                self.other_bits[vector] = value & !1;
            }
            let entry = &mut self.entries[vector];
            let message = &mut entry.message;
            match (word, &self.assigned) {
                (3, None) => entry.masked = value & 1 != 0,
                (3, Some(assigned)) if vector < assigned.len() => entry.masked = value & 1 != 0,
                (0, None) => message.address = message.address >> 32 << 32 | u64::from(value),
                (1, None) => {
                    message.address = u64::from(value) << 32 | message.address & 0xffff_ffff;
                }
                (2, None) => message.data = value,
                // Messages of an assigned function are the host's.
                _ => {}
            }
        }
        self.send();
    }

    /// A `configure` that has succeeded. `reported` are the pending bits of the answer.
    pub fn configure(&mut self, vectors: &[(Assigned, bool)], reported: &[bool]) {
        for (index, entry) in self.entries.iter_mut().enumerate() {
            match vectors.get(index) {
                Some((_, masked)) => {
                    entry.masked = *masked;
                    if reported[index] {
                        assert!(*masked, "vector {index} is not masked, and reported as pending");
                        assert_ne!(entry.pending, Pending::No, "vector {index} was not pending");
                        let another = std::mem::take(&mut entry.another);
                        entry.pending = if another { Pending::Perhaps } else { Pending::No };
                    }
                }
                None => entry.masked = true,
            }
        }
        self.assigned = Some(vectors.iter().map(|(assigned, _)| *assigned).collect());
        self.doubt(vectors.len());
        self.send();
    }

    /// An `update` that has succeeded.
    pub fn update(&mut self, vector: usize, message: GuestMessage) {
        if let Some(assigned) = &mut self.assigned {
            assigned[vector].guest = Some(message);
        }
        self.send();
    }

    /// The end of an ownership: all as after power-on, but for the control register.
    pub fn release(&mut self) {
        if self.assigned.take().is_some() {
            for entry in &mut self.entries {
                let pending = entry.pending;
                *entry = Entry { pending, ..Entry::RESET };
            }
            self.doubt(0);
        }
    }

    /// A function level reset.
    pub fn reset(&mut self) {
        self.other_bits.fill(0);
        match self.assigned {
            // What is assigned survives. Events that the function had not sent are lost with it.
            Some(_) => self.doubt(0),
            None => {
                self.entries.fill(Entry::RESET);
                (self.enable, self.function_mask) = (false, false);
            }
        }
    }

    /// Compares what arrived with what must and may have.
    pub fn arrived(&mut self, mut messages: Vec<GuestMessage>) {
        for sent in self.sent.drain(..) {
            let found = messages.iter().position(|message| *message == sent);
            let found = found.unwrap_or_else(|| panic!("lost: {sent:x?}; arrived: {messages:x?}"));
            messages.swap_remove(found);
        }
        for message in messages {
            let found = self.perhaps_sent.iter().position(|perhaps| *perhaps == message);
            let found = found.unwrap_or_else(|| panic!("doubled, masked or foreign: {message:x?}"));
            self.perhaps_sent.swap_remove(found);
        }
        self.perhaps_sent.clear();
    }

    /// From `first` on, events that wait may be gone.
    fn doubt(&mut self, first: usize) {
        for entry in self.entries.iter_mut().skip(first) {
            if entry.pending == Pending::Yes {
                entry.pending = Pending::Perhaps;
            }
        }
    }

    /// Sends what is pending and may be sent.
    fn send(&mut self) {
        if !self.enable {
            return;
        }
        for (index, entry) in self.entries.iter_mut().enumerate() {
            let message = match &self.assigned {
                None => Some(entry.message),
                Some(assigned) => assigned.get(index).and_then(|vector| vector.guest),
            };
            // A message that the platform cannot deliver is kept back, as by a mask.
            let valid = |message: &GuestMessage| {
                !self.function_mask && X86_64.route(FUNCTION, *message).is_some()
            };
            match message.filter(valid) {
                _ if entry.masked || entry.pending == Pending::No => {}
                None => entry.held = true,
                Some(message) => {
                    let perhaps = entry.pending == Pending::Perhaps;
                    let sent = if perhaps { &mut self.perhaps_sent } else { &mut self.sent };
                    sent.push(message);
                    if std::mem::take(&mut entry.another) {
                        self.perhaps_sent.push(message);
                    }
                    entry.pending = Pending::No;
                }
            }
        }
    }
}
