//! Reads and writes of configuration space, at all offsets and of all sizes, against a plain model
//! of the software function's registers: what reads back, where the BAR is decoded, what is
//! mapped, and when the table is direct.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use pvmsi_hypervisor_fuzz::bounded;
use pvmsi_hypervisor_fuzz::fixture::{
    DEVICE_CONTROL, FUNCTION, Guest, MSIX_CONTROL, POWER, SELF_TEST,
};
use pvmsi_protocol::{CallId, Reasons, TableMode};
use pvmsi_software::registers::BAR_BYTES;

const CONFIG_BYTES: usize = 4096;
const COMMAND: usize = 0x04;
const BAR: usize = 0x10;

#[derive(Arbitrary, Debug)]
enum Event {
    Write {
        at: At,
        bytes: Bytes,
    },
    Read {
        at: At,
        length: u8,
    },
    /// The vectors become the protocol's.
    Configure {
        vectors: u8,
    },
    Release,
    Reset,
    ResetMachine,
    Revoke,
    Allow,
    /// An access to memory, near where the BAR is or was.
    Look {
        old: bool,
        offset: i32,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum At {
    Command(u8),
    Bar(u8),
    Power(u8),
    DeviceControl(u8),
    Msix(u8),
    Any(u16),
    Far(u64),
}

#[derive(Arbitrary, Debug)]
enum Bytes {
    Two([u8; 2]),
    Four([u8; 4]),
    Any(Vec<u8>),
    /// As a driver finds out how large a BAR is.
    Ones,
}

impl At {
    fn offset(self) -> u64 {
        let near = |register: u64, at: u8| register - 4 + u64::from(at % 8);
        match self {
            Self::Command(at) => near(COMMAND as u64, at),
            Self::Bar(at) => near(BAR as u64, at),
            Self::Power(at) => near(POWER, at),
            Self::DeviceControl(at) => near(DEVICE_CONTROL, at),
            Self::Msix(at) => near(MSIX_CONTROL, at),
            Self::Any(at) => (at % 0x1010).into(),
            Self::Far(at) => at,
        }
    }
}

/// The software function as its data sheet has it, and the rules for the table.
struct Model {
    bytes: Vec<u8>,
    writable: Vec<u8>,
    assigned: u16,
    revoked: bool,
    old_base: u64,
    /// BIST has cost the function its MSI-X Enable and its table, which nobody has seen.
    lost: bool,
}

impl Model {
    /// As a machine's firmware leaves it, which the fixture plays.
    fn new(bytes: Vec<u8>) -> Self {
        let mut writable = vec![0; CONFIG_BYTES];
        let mut allow =
            |at: usize, bits: &[u8]| writable[at..at + bits.len()].copy_from_slice(bits);
        allow(COMMAND, &[0x06, 0x00]);
        allow(BAR, &[0x00, 0x00, 0xfe, 0xff]);
        allow(POWER as usize, &[0x03]);
        allow(DEVICE_CONTROL as usize, &[0xff, 0x7f]);
        allow(MSIX_CONTROL as usize, &[0x00, 0xc0]);
        Self { bytes, writable, assigned: 0, revoked: false, old_base: 0, lost: false }
    }

    fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let byte = |index: usize| {
            let at = offset.checked_add(index as u64).and_then(|at| usize::try_from(at).ok());
            at.and_then(|at| self.bytes.get(at)).copied().unwrap_or(0xff)
        };
        (0..length).map(byte).collect()
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let base = self.base();
        let mut reset = false;
        let mut control = None;
        for (index, &new) in data.iter().enumerate() {
            let Some(at) = offset.checked_add(index as u64) else { break };
            let Ok(at) = usize::try_from(at) else { break };
            let Some(byte) = self.bytes.get_mut(at) else { break };
            let writable = self.writable[at];
            self.lost |= at == SELF_TEST as usize && new & 0x40 != 0;
            // Initiate Function Level Reset.
            reset |= at == DEVICE_CONTROL as usize + 1 && new & 0x80 != 0;
            if at == MSIX_CONTROL as usize + 1 {
                control = Some(new & writable);
            } else {
                *byte = *byte & !writable | new & writable;
            }
        }
        if reset {
            self.reset();
        }
        if let Some(control) = control {
            let at = MSIX_CONTROL as usize + 1;
            self.bytes[at] = self.bytes[at] & !0xc0 | control;
            if control & 0x80 == 0 {
                self.assigned = 0;
            }
        }
        if self.base() != base {
            self.old_base = base;
        }
    }

    /// A function level reset. The host restores what is not the table's.
    fn reset(&mut self) {
        if self.assigned == 0 {
            self.bytes[MSIX_CONTROL as usize + 1] &= !0xc0;
        }
    }

    fn reset_machine(&mut self) {
        self.assigned = 0;
        self.bytes[MSIX_CONTROL as usize + 1] &= !0xc0;
        self.bytes[COMMAND] &= !0x06;
        self.bytes[POWER as usize] &= !3;
        self.bytes[BAR..BAR + 4].fill(0);
    }

    fn enable(&self) -> bool {
        self.bytes[MSIX_CONTROL as usize + 1] & 0x80 != 0
    }

    /// Whether the function answers accesses to its memory.
    fn answers(&self) -> bool {
        self.bytes[COMMAND] & 2 != 0 && self.bytes[POWER as usize] & 3 == 0
    }

    fn base(&self) -> u64 {
        self.bytes[BAR..BAR + 4].iter().rev().fold(0, |base, byte| base << 8 | u64::from(*byte))
    }

    fn reasons(&self) -> Reasons {
        let mut reasons = Reasons::empty();
        reasons.set(Reasons::NOT_ASSIGNED, self.assigned == 0);
        reasons.set(Reasons::MSIX_DISABLED, !self.enable());
        reasons.set(Reasons::DECODING_OFF, self.bytes[COMMAND] & 2 == 0);
        reasons.set(Reasons::POWER_STATE, self.bytes[POWER as usize] & 3 != 0);
        reasons.set(Reasons::HOST_REVOKED, self.revoked);
        reasons
    }
}

fuzz_target!(|events: Vec<Event>| {
    let guest = Guest::with_vectors(8);
    let mut space = vec![0; CONFIG_BYTES];
    assert!(guest.router.config_read(FUNCTION, 0, &mut space));
    let mut model = Model::new(space);
    for event in events.into_iter().take(64) {
        happen(&guest, &mut model, event);
        check(&guest, &mut model);
    }
    let mut space = vec![0; CONFIG_BYTES];
    assert!(guest.router.config_read(FUNCTION, 0, &mut space));
    assert!(space == model.bytes, "a byte that was not looked at has changed");
});

fn happen(guest: &Guest, model: &mut Model, event: Event) {
    match event {
        Event::Write { at, bytes } => {
            let bytes = match bytes {
                Bytes::Two(bytes) => bytes.to_vec(),
                Bytes::Four(bytes) => bytes.to_vec(),
                Bytes::Any(bytes) => bytes,
                Bytes::Ones => vec![0xff; 4],
            };
            bounded(|| guest.config_write(at.offset(), &bytes));
            model.write(at.offset(), &bytes);
        }
        Event::Read { at, length } => {
            let mut data = vec![0; length.into()];
            assert!(bounded(|| guest.router.config_read(FUNCTION, at.offset(), &mut data)));
            assert_eq!(data, model.read(at.offset(), length.into()));
        }
        Event::Configure { vectors } => {
            let vectors = 1 + u16::from(vectors % 8);
            model.assigned = bounded(|| guest.configure(vectors)).granted;
            assert_eq!(model.assigned, vectors);
        }
        Event::Release => {
            guest.call(CallId::Release, &[]).expect("a release always succeeds");
            model.assigned = 0;
        }
        Event::Reset => {
            guest.function.reset().unwrap();
            model.reset();
        }
        Event::ResetMachine => {
            guest.service.reset().unwrap();
            model.reset_machine();
        }
        Event::Revoke => {
            guest.function.revoke().unwrap();
            model.revoked = true;
        }
        Event::Allow => {
            guest.function.allow().unwrap();
            model.revoked = false;
        }
        Event::Look { old, offset } => {
            let base = if old { model.old_base } else { model.base() };
            let Some(at) = base.checked_add_signed(offset.into()) else { return };
            let mut data = [0; 4];
            let answered = bounded(|| guest.router.mmio_read(at, &mut data));
            let inside =
                model.base() != 0 && at.checked_sub(model.base()).is_some_and(|at| at < BAR_BYTES);
            assert_eq!(answered, model.answers() && inside, "{at:#x}");
        }
    }
}

fn check(guest: &Guest, model: &mut Model) {
    let status = guest.status();
    let enabled = model.enable() || model.assigned > 0;
    model.lost &= guest.device.enabled() != enabled;
    assert_eq!(status.assigned, model.assigned);
    let mut reasons = model.reasons();
    // What has not been read before is lost as well.
    reasons.set(Reasons::UNREADABLE, model.lost && status.reasons.contains(Reasons::UNREADABLE));
    assert_eq!(status.reasons, reasons);
    assert_eq!(status.mode == TableMode::Direct, reasons.is_empty());
    assert!(model.lost || guest.device.enabled() == enabled, "the function's own MSI-X Enable");
    let view = guest.window.now();
    let base = view.bars[0].map(|bar| bar.0);
    let expected = Some(model.base()).filter(|&base| model.answers() && base != 0);
    assert_eq!(base, expected, "mapped elsewhere");
    if model.answers() {
        assert_eq!(view.table, status.mode);
    }
}
