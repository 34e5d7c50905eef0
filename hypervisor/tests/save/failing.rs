//! Saving and going on with each of their calls through the seams failing, once and from there on: nothing is lost on the way, nothing comes twice.

use super::faults::Plan;
use super::*;
use pvmsi_hypervisor::Policy;

/// A register that no write changes: an operation that does nothing but work.
const READ_ONLY: u64 = 0x3c;

const PLANS: [fn(usize) -> Plan; 2] = [Plan::Nth, Plan::KernelFrom];

/// A name, a host, and what its guest does first.
type Source = (&'static str, Options, fn(&Guest));

/// Four vectors in use, of which vector 1 is masked and has an event that waits.
fn sources() -> [Source; 3] {
    let assign = |guest: &Guest| drop(guest.configure(4));
    let program = |guest: &Guest| (0..4).for_each(|vector| guest.program(vector, message(vector)));
    let options = |policy| Options { vectors: 4, policy, ..Options::default() };
    [
        ("direct", options(Policy::Direct), assign),
        ("trapped", options(Policy::Trapped), assign),
        ("emulated", options(Policy::Direct), program),
    ]
}

fn source(options: Options, use_it: fn(&Guest)) -> Guest {
    let guest = Guest::new(options);
    guest.control(ENABLE);
    use_it(&guest);
    guest.mask(1);
    guest.raise(1);
    assert_eq!(guest.interrupts(), NONE);
    guest
}

/// The guest goes on: what waited waits, and comes once.
fn goes_on(target: &Guest, context: &str) {
    target.config_write(READ_ONLY, &[0]);
    assert_eq!(target.interrupts(), NONE, "{context}: vector 1 is masked");
    assert!(target.masked(1) && target.pending(1), "{context}");
    (0..4).filter(|&vector| vector != 1).for_each(|vector| target.raise(vector));
    assert_eq!(target.interrupts(), [0, 2, 3], "{context}");
    target.unmask(1);
    assert_eq!(target.interrupts(), [1], "{context}");
    target.raise(1);
    assert_eq!(target.interrupts(), [1], "{context}");
}

/// Tries all fault points of `act` on what `prepare` makes; `check` gets the rest. Returns how many there are.
fn every_point<G, T>(
    name: &str,
    plan: fn(usize) -> Plan,
    prepare: impl Fn() -> G,
    act: impl Fn(&G) -> T,
    check: impl Fn(G, T, &str),
) -> usize {
    for step in 1.. {
        let guest = prepare();
        faults::plan(plan(step));
        let result = act(&guest);
        let failed = faults::end();
        check(guest, result, &format!("{name}, step {step}: {failed:?} failed"));
        if failed.is_empty() {
            return step - 1;
        }
    }
    unreachable!()
}

#[test]
fn a_service_is_saved() {
    let mut points = 0;
    for plan in PLANS {
        for (name, options, use_it) in sources() {
            points += every_point(
                name,
                plan,
                || source(options, use_it),
                |source| source.service.save(),
                |source, state, context| {
                    assert_eq!(source.interrupts(), NONE, "{context}: saving delivers nothing");
                    let target = carried(&source, &state).start(options);
                    target.service.resume();
                    goes_on(&target, context);
                },
            );
        }
    }
    faults::report(points, "a service is saved");
    assert!(points > 0, "nothing can fail");
}

#[test]
fn a_restored_service_goes_on() {
    let mut points = 0;
    for plan in PLANS {
        for (name, options, use_it) in sources() {
            points += every_point(
                name,
                plan,
                || stop(&source(options, use_it)).start(options),
                |target| target.service.resume(),
                |target, (), context| goes_on(&target, context),
            );
        }
    }
    faults::report(points, "a restored service goes on");
    assert!(points > 0, "nothing can fail");
}

/// A VMM that has saved may go on with the first host after all.
#[test]
fn the_first_host_goes_on_after_all() {
    for plan in PLANS {
        for (name, options, use_it) in sources() {
            every_point(
                name,
                plan,
                || source(options, use_it),
                |source| drop(source.service.save()),
                |source, (), context| {
                    source.service.resume();
                    goes_on(&source, context);
                },
            );
        }
    }
}
