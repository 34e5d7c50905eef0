//! The exploration: all states from power-on, by `stateright`.

use std::cell::RefCell;
use std::fmt;

use stateright::{Checker, HasDiscoveries, Model, Property};

use crate::action::{Action, Operation, operations};
use crate::bounds::Bounds;
use crate::rig::Rig;
use crate::state::State;
use crate::violation::Violations;
use crate::world::interferences;

/// The service within bounds.
#[derive(Clone, Copy, Debug)]
pub struct Exploration(pub Bounds);

/// What was explored.
#[derive(Clone, Debug)]
pub struct Report {
    /// Distinct states.
    pub states: usize,
    /// Steps that were taken, the ones that led to a known state included.
    pub steps: usize,
    /// The longest shortest way to a state.
    pub depth: usize,
    /// Properties that were broken, each with the way that breaks it; the exploration ended there.
    pub broken: Vec<(&'static str, Vec<Action>)>,
}

thread_local! {
    static RIG: RefCell<Option<Rig>> = const { RefCell::new(None) };
}

/// Does something with this thread's rig. A machine that breaks is a bug of the model itself, so it ends the exploration.
#[expect(
    clippy::expect_used,
    reason = "a broken model must not look like one that has found nothing"
)]
fn with_rig<T>(bounds: &Bounds, act: impl FnOnce(&mut Rig) -> anyhow::Result<T>) -> T {
    RIG.with_borrow_mut(|place| {
        if place.as_ref().is_none_or(|rig| rig.bounds != *bounds) {
            *place = None;
            *place = Some(Rig::new(*bounds).expect("a machine can be made"));
        }
        place.as_mut().map(act).expect("there is a machine").expect("the machine works")
    })
}

/// Whether a state was reached without breaking a rule.
fn kept<const VIOLATIONS: u32>(_: &Exploration, state: &State) -> bool {
    state.violations.bits() & VIOLATIONS == 0
}

fn reads(exploration: &Exploration, state: &State) -> bool {
    !state.violations.contains(Violations::READS)
        && with_rig(&exploration.0, |rig| rig.reads_right(state))
}

impl Model for Exploration {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![with_rig(&self.0, |rig| rig.initial())]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if !state.violations.is_empty() {
            return;
        }
        for operation in operations(&self.0, state) {
            actions.push(Action { operation, meanwhile: None });
            let alone = matches!(
                operation,
                Operation::Raise(_) | Operation::RaiseLate(_) | Operation::Arrive(_)
            );
            if self.0.interference && !alone {
                let accesses = with_rig(&self.0, |rig| rig.accesses(state, operation));
                let places =
                    interferences(&accesses, &state.world.hardware.in_flight, self.0.races);
                actions.extend(
                    places.into_iter().map(|place| Action { operation, meanwhile: Some(place) }),
                );
            }
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        Some(with_rig(&self.0, |rig| rig.step(state, action)))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        use crate::violation::PROPERTIES as P;
        // As many as there are: one that is missing here would never be checked.
        let all: [_; P.len()] = [
            Property::always(P[0].name, kept::<{ Violations::LOST.bits() }>),
            Property::always(P[1].name, kept::<{ Violations::DOUBLED.bits() }>),
            Property::always(P[2].name, kept::<{ Violations::MASKED.bits() }>),
            Property::always(P[3].name, kept::<{ Violations::STUCK.bits() }>),
            Property::always(P[4].name, kept::<{ Violations::MAPPING.bits() }>),
            Property::always(P[5].name, kept::<{ Violations::TOUCHED.bits() }>),
            Property::always(P[6].name, kept::<{ Violations::MODE.bits() }>),
            Property::always(P[7].name, kept::<{ Violations::FOREIGN.bits() }>),
            Property::always(P[8].name, kept::<{ Violations::COST.bits() }>),
            Property::always(P[9].name, kept::<{ Violations::ROUTES.bits() }>),
            Property::always(P[10].name, kept::<{ Violations::GENERATION.bits() }>),
            Property::always(P[11].name, reads),
            Property::always(P[12].name, kept::<{ Violations::CALLS.bits() }>),
            Property::always(P[13].name, kept::<{ Violations::ENABLE.bits() }>),
        ];
        all.into()
    }
}

/// Explores all states within bounds on some threads, or until a property is broken.
pub fn explore(bounds: Bounds, threads: usize) -> Report {
    run(bounds, threads, HasDiscoveries::Any)
}

/// The same, but goes on until one of these properties is broken: others may be before.
pub fn explore_until(bounds: Bounds, threads: usize, properties: &[&'static str]) -> Report {
    run(bounds, threads, HasDiscoveries::AnyOf(properties.iter().copied().collect()))
}

fn run(bounds: Bounds, threads: usize, until: HasDiscoveries) -> Report {
    let checker =
        Exploration(bounds).checker().threads(threads).finish_when(until).spawn_bfs().join();
    let broken =
        checker.discoveries().into_iter().map(|(name, path)| (name, path.into_actions())).collect();
    Report {
        states: checker.unique_state_count(),
        steps: checker.state_count(),
        depth: checker.max_depth(),
        broken,
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { states, steps, depth, broken } = self;
        write!(f, "  {states} distinct states, {steps} steps, depth {depth}: ")?;
        if broken.is_empty() {
            return write!(f, "all states within the bounds, all properties hold");
        }
        for (name, path) in broken {
            write!(f, "\n  BROKEN: {name}, by")?;
            for Action { operation, meanwhile } in path {
                write!(f, "\n    {operation:?}")?;
                if let Some((access, what)) = meanwhile {
                    write!(f, ", and before access {access}: {what:?}")?;
                }
            }
        }
        Ok(())
    }
}
