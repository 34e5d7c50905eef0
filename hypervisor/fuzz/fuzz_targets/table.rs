//! Accesses to vector table and pending bit array, of every size and alignment, and what arrives
//! in the guest: the service and the software function against a model of the PCI specification.
//!
//! Trapped and direct, legacy and assigned: the guest must not see a difference.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use pvmsi_hypervisor::Policy;
use pvmsi_hypervisor_fuzz::bounded;
use pvmsi_hypervisor_fuzz::fixture::{self, Guest, PENDING, TABLE, message};
use pvmsi_hypervisor_fuzz::msix::{Assigned, Entry, Msix, Pending};
use pvmsi_protocol::{
    CallId, GuestMessage, Reasons, Sequence, TableMessage, TableMode, VectorSetup,
};

/// What happens, to which function.
#[derive(Arbitrary, Debug)]
struct Scenario {
    vectors: u8,
    trapped: bool,
    events: Vec<Event>,
}

#[derive(Arbitrary, Debug)]
enum Event {
    /// The guest reads.
    Read {
        at: At,
        size: u8,
    },
    /// The guest writes.
    Write {
        at: At,
        size: u8,
        data: u128,
    },
    /// The guest writes what a driver would.
    Program {
        vector: u8,
        message: u8,
    },
    Mask {
        vector: u8,
        masked: bool,
    },
    Control {
        enable: bool,
        function_mask: bool,
        width: u8,
    },
    Configure {
        requested: u8,
        setups: Vec<(Option<u8>, bool)>,
    },
    Update {
        vectors: Vec<(u8, u8)>,
    },
    Release,
    Restore,
    /// The device has something to say.
    Raise {
        vector: u8,
    },
    Reset,
    Revoke,
    Allow,
}

/// Where an access starts.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum At {
    /// Around an entry.
    Entry { vector: u8, offset: u8 },
    /// Around the pending bit array.
    Pending { offset: u8 },
}

/// Registers that only keep what is written there, beside table and pending bit array.
const MARGIN: u64 = 0x20;

struct Machine {
    guest: Guest,
    model: Msix,
    vectors: u64,
    trapped: bool,
    revoked: bool,
    /// The bytes beside table and pending bit array.
    beside: std::collections::BTreeMap<u64, u8>,
}

fuzz_target!(|scenario: Scenario| {
    let vectors = [1, 2, 3, 8, 31, 33, 64, 65][usize::from(scenario.vectors % 8)];
    let policy = if scenario.trapped { Policy::Trapped } else { Policy::Direct };
    let guest = Guest::new(fixture::Options { vectors, policy, ..Default::default() });
    let mut machine = Machine {
        guest,
        model: Msix::new(vectors),
        vectors: vectors.into(),
        trapped: scenario.trapped,
        revoked: false,
        beside: Default::default(),
    };
    for event in scenario.events.into_iter().take(64) {
        machine.event(event);
        machine.settle();
    }
});

impl Machine {
    fn event(&mut self, event: Event) {
        let vector = |vector: u8| u64::from(vector) % self.vectors;
        match event {
            Event::Read { at, size } => self.read(self.offset(at), bytes(size)),
            Event::Write { at, size, data } => {
                let data = data.to_le_bytes();
                let offset = self.offset(at);
                self.write(offset, &data[..bytes(size)]);
                self.settle();
                // Whatever it has reached: the entries and the bytes around it.
                for word in 0..8 {
                    self.read((offset & !0xf) + word * 4, 4);
                }
            }
            Event::Program { vector: number, message: of } => {
                let entry = TABLE + vector(number) * 16;
                let GuestMessage { address, data } = message(of.into());
                for (word, value) in [(3, 1), (0, address as u32), (1, 0), (2, data), (3, 0)] {
                    self.write(entry + word * 4, &value.to_le_bytes());
                    self.settle();
                }
            }
            Event::Mask { vector: number, masked } => {
                let at = TABLE + vector(number) * 16 + 12;
                self.write(at, &u32::from(masked).to_le_bytes());
            }
            Event::Control { enable, function_mask, width } => {
                let high = u8::from(enable) << 7 | u8::from(function_mask) << 6;
                match width % 3 {
                    0 => self.guest.config_write(0x93, &[high]),
                    1 => self.guest.config_write(0x92, &[0xff, high]),
                    _ => self.guest.config_write(0x90, &[0, 0, 0, high]),
                }
                self.model.control(enable, function_mask);
            }
            Event::Configure { requested, setups } => self.configure(requested.into(), &setups),
            Event::Update { vectors } => self.update(&vectors),
            Event::Release => {
                self.guest.call(CallId::Release, &[]).expect("a release always succeeds");
                self.model.release();
            }
            Event::Restore => {
                self.guest.call(CallId::Restore, &[]).expect("a restore of one's own function");
            }
            Event::Raise { vector: number } => {
                let number = vector(number);
                self.model.raise(number as usize, self.guest.is_direct());
                self.guest.raise(number as u16);
            }
            Event::Reset => {
                self.guest.function.reset().unwrap();
                self.model.reset();
            }
            Event::Revoke => {
                self.guest.function.revoke().unwrap();
                self.revoked = true;
            }
            Event::Allow => {
                self.guest.function.allow().unwrap();
                self.revoked = false;
            }
        }
    }

    /// Lets all that is under way arrive, and compares.
    fn settle(&mut self) {
        for _ in 0..16 {
            if !self.guest.device.run() {
                break;
            }
        }
        self.model.arrived(self.guest.routes.delivered());
        let status = self.guest.status();
        assert_eq!(usize::from(status.assigned), self.model.granted());
        assert_eq!(status.mode == TableMode::Direct, status.reasons.is_empty());
        assert_eq!(self.guest.is_direct(), status.mode == TableMode::Direct);
        let mut others = status.reasons.difference(Reasons::HELD_EVENT);
        others.remove(Reasons::POLICY);
        assert!(self.trapped || !status.reasons.contains(Reasons::POLICY));
        let expected = self.model.granted() > 0 && self.model.enable && !self.revoked;
        assert_eq!(others.is_empty(), expected, "{:?}", status.reasons);
        // A long run has many, and nobody asks for them.
        drop(self.guest.window.shown());
    }

    fn offset(&self, at: At) -> u64 {
        match at {
            At::Entry { vector, offset } => {
                // The last entry's neighbour too.
                let entry = TABLE + u64::from(vector) % (self.vectors + 1) * 16;
                entry - MARGIN + often_aligned(offset)
            }
            At::Pending { offset } => PENDING - MARGIN + often_aligned(offset),
        }
    }

    fn table_end(&self) -> u64 {
        TABLE + self.vectors * 16
    }

    fn pending_end(&self) -> u64 {
        PENDING + self.vectors.div_ceil(64) * 8
    }

    /// The byte at an offset: of what, and its number there.
    fn part(&self, offset: u64) -> (Part, u64) {
        if (TABLE..self.table_end()).contains(&offset) {
            (Part::Entry((offset - TABLE) / 16), (offset - TABLE) % 16)
        } else if (PENDING..self.pending_end()).contains(&offset) {
            (Part::Pending, offset - PENDING)
        } else {
            (Part::Beside, offset)
        }
    }

    fn read(&mut self, offset: u64, size: usize) {
        let direct = self.guest.is_direct();
        let mut data = vec![0x5a; size];
        let here = fixture::BAR + offset;
        if direct && size == 4 && offset.is_multiple_of(4) {
            data = self.guest.load(offset).to_le_bytes().to_vec();
        } else {
            assert!(bounded(|| self.guest.router.mmio_read(here, &mut data)));
        }
        if size == 0 {
            return;
        }
        let (first, at) = self.part(offset);
        let (last, _) = self.part(offset + size as u64 - 1);
        if first != last || size > 8 {
            // No hardware answers it; ones, or what lies beside: nothing of it is defined.
            return;
        }
        for (byte, at) in data.into_iter().zip(at..) {
            let (expected, known) = self.byte(first, at, direct);
            assert_eq!(byte & known, expected & known, "byte {at} of {first:?}, {size} bytes read");
        }
    }

    /// What a byte reads as, and which of its bits are certain.
    fn byte(&self, part: Part, at: u64, direct: bool) -> (u8, u8) {
        match part {
            Part::Entry(vector) => {
                let ([low, high, data], known, control) = self.model.entry(vector as usize, direct);
                let known = if known || at >= 12 { 0xff } else { 0 };
                let word = [low, high, data, control][(at / 4) as usize];
                (word.to_le_bytes()[(at % 4) as usize], known)
            }
            Part::Pending => (0..8).fold((0, 0), |(bits, known), bit| {
                let vector = (at * 8 + bit) as usize;
                let entry = self.model.entries.get(vector);
                let at_host = |entry: &Entry| entry.held || self.model.withheld(vector);
                let unclear = direct && entry.is_some_and(at_host);
                match entry.map_or(Pending::No, |entry| entry.pending) {
                    Pending::No => (bits, known | 1 << bit),
                    Pending::Yes if !unclear => (bits | 1 << bit, known | 1 << bit),
                    Pending::Yes | Pending::Perhaps => (bits, known),
                }
            }),
            Part::Beside => (self.beside.get(&at).copied().unwrap_or(0), 0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let direct = self.guest.is_direct();
        let Some(end) = (data.len() as u64).checked_sub(1) else { return };
        let ((first, at), (last, _)) = (self.part(offset), self.part(offset + end));
        let aligned = matches!(data.len(), 4 | 8) && offset.is_multiple_of(data.len() as u64);
        let in_table = matches!(first, Part::Entry(_)) && first == last;
        if direct && aligned && in_table {
            // A guest that owns its table keeps to the messages that it was given.
            let Part::Entry(vector) = first else { return };
            if at != 12 || vector >= self.model.granted() as u64 {
                return;
            }
            // And to the bits of vector control that it does not know (G-521).
            let control = self.model.other_bits[vector as usize] | u32::from(data[0] & 1);
            self.guest.store(offset, control);
            self.model.write(vector as usize, &[(3, control)]);
            return;
        }
        let here = fixture::BAR + offset;
        assert!(bounded(|| self.guest.router.mmio_write(here, data)));
        match (first, last) {
            (Part::Entry(vector), Part::Entry(_)) if aligned => {
                let words: Vec<_> = (at / 4..)
                    .zip(data.chunks_exact(4))
                    .map(|(word, bytes)| {
                        (word, u32::from_le_bytes(bytes.try_into().expect("four")))
                    })
                    .collect();
                self.model.write(vector as usize, &words);
            }
            (Part::Beside, Part::Beside) if data.len() <= 8 => {
                self.beside.extend((offset..).zip(data.iter().copied()));
            }
            // No effect at all.
            _ => {}
        }
    }

    fn configure(&mut self, requested: u64, setups: &[(Option<u8>, bool)]) {
        let requested = (requested % (self.vectors + 1)) as u16;
        let setups: Vec<_> = setups
            .iter()
            .take(requested.into())
            .map(|&(of, masked)| VectorSetup { message: of.map(|of| message(of.into())), masked })
            .collect();
        let generation = self.guest.status().generation;
        let answer = bounded(|| self.guest.configure_with(requested, Sequence::START, &setups));
        let Ok(answer) = answer else {
            assert_eq!(requested, 0);
            assert_eq!(self.guest.status().generation, generation);
            return;
        };
        assert_eq!(answer.granted, requested);
        let direct = self.model.enable && !self.revoked && !self.trapped;
        assert_eq!(answer.mode == TableMode::Direct, direct, "{:?}", answer.reasons);
        let reported: Vec<_> = answer.vectors.iter().map(|vector| vector.pending).collect();
        let vectors: Vec<_> = answer
            .vectors
            .iter()
            .enumerate()
            .map(|(index, vector)| {
                let setup = setups.get(index).copied().unwrap_or(VectorSetup::RESERVED);
                let table = vector.table_message.expect("the function can be read");
                let device = TableMessage { data: index as u32, ..table };
                assert_eq!(table, device, "the message of another vector");
                (Assigned { guest: setup.message, table }, setup.masked)
            })
            .collect();
        self.model.configure(&vectors, &reported);
    }

    fn update(&mut self, vectors: &[(u8, u8)]) {
        let granted = self.model.granted();
        let mut updates: Vec<(u16, GuestMessage)> = Vec::new();
        for &(vector, of) in vectors {
            let Some(vector) = usize::from(vector).checked_rem(granted) else { break };
            if updates.iter().all(|(other, _)| usize::from(*other) != vector) {
                updates.push((vector as u16, message(of.into())));
            }
        }
        let updated = bounded(|| self.guest.update(&updates));
        assert_eq!(updated.is_ok(), !updates.is_empty() && granted > 0);
        for (vector, message) in updates {
            self.model.update(vector.into(), message);
        }
    }
}

/// Every size from 0 to 16; the two that tables have most often.
fn bytes(size: u8) -> usize {
    match size % 64 {
        size @ 0..=16 => size.into(),
        size if size % 2 == 0 => 4,
        _ => 8,
    }
}

/// Every offset in the two margins, and once more each that a word has.
fn often_aligned(offset: u8) -> u64 {
    let within = u64::from(offset) % (2 * MARGIN);
    if offset < 0x80 { within } else { within & !3 }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Entry(u64),
    Pending,
    Beside,
}
