//! Guests that do this and that, and are moved again and again: each event arrives once.

use super::*;
use pvmsi_hypervisor::Policy;
use pvmsi_protocol::{CallId, Sequence, VectorSetup};

const VECTORS: u16 = 4;

/// What the test knows: the guest's side of things, and where an event waits.
#[derive(Default)]
struct Model {
    assigned: bool,
    enabled: bool,
    function_mask: bool,
    masked: [bool; VECTORS as usize],
    waits: [bool; VECTORS as usize],
}

impl Model {
    /// The vectors whose events arrive now.
    fn due(&mut self) -> Vec<u16> {
        let open = self.enabled && !self.function_mask;
        let due: Vec<_> = (0..VECTORS)
            .filter(|&v| open && self.waits[usize::from(v)] && !self.masked[usize::from(v)])
            .collect();
        due.iter().for_each(|&v| self.waits[usize::from(v)] = false);
        due
    }
}

/// Xorshift: the same walk for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn options(dice: &mut Dice) -> Options {
    let policy = if dice.below(3) == 0 { Policy::Trapped } else { Policy::Direct };
    Options { vectors: VECTORS, policy, isolated: dice.below(4) != 0, ..Options::default() }
}

fn walk(seed: u64) -> (u64, u64) {
    let mut dice = Dice(seed);
    let mut guest = Guest::new(options(&mut dice));
    let mut model = Model { masked: [true; VECTORS as usize], ..Model::default() };
    let (mut moves, mut arrived) = (0, 0);
    for step in 0..300 {
        let vector = dice.below(VECTORS.into()) as u16;
        let at = usize::from(vector);
        match dice.below(10) {
            // An event: only where the function has interrupts, else it is the device's own matter.
            0..=2 if model.enabled && (model.assigned || !model.masked.contains(&true)) => {
                guest.raise(vector);
                model.waits[at] = true;
            }
            3 => {
                guest.mask(vector);
                model.masked[at] = true;
            }
            4 if model.assigned => {
                guest.unmask(vector);
                model.masked[at] = false;
            }
            4 => {
                guest.program(vector, message(vector));
                model.masked[at] = false;
            }
            5 if model.enabled => {
                model.function_mask = !model.function_mask;
                guest.control(if model.function_mask { ENABLE | FUNCTION_MASK } else { ENABLE });
            }
            6 if !model.enabled => {
                guest.control(ENABLE);
                model.enabled = true;
            }
            6 if model.enabled && model.waits == [false; VECTORS as usize] => {
                let setups: Vec<_> = (0..VECTORS)
                    .map(|v| VectorSetup {
                        message: Some(message(v)),
                        masked: model.masked[usize::from(v)],
                    })
                    .collect();
                let answer = guest.configure_with(VECTORS, Sequence::START, &setups).unwrap();
                assert_eq!(answer.pending(), [0_usize; 0], "seed {seed}, step {step}");
                model.assigned = true;
            }
            7 if model.assigned => drop(guest.call(CallId::Restore, &[]).unwrap()),
            8 | 9 => {
                guest = moved_to(&guest, options(&mut dice));
                moves += 1;
            }
            _ => {}
        }
        let due = model.due();
        arrived += due.len() as u64;
        assert_eq!(guest.interrupts(), due, "seed {seed}, step {step}");
    }
    (moves, arrived)
}

#[test]
fn no_event_is_lost_doubled_or_let_through_over_many_moves() {
    let (mut moves, mut arrived) = (0, 0);
    for seed in 1..=30 {
        let (some, more) = walk(seed * 0x9e37_79b9);
        moves += some;
        arrived += more;
    }
    assert!(moves > 1000 && arrived > 1000, "{moves} moves, {arrived} events: the walk is lame");
}
