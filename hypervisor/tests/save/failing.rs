//! Saving and going on with each of their calls through the seams failing, once and from there on: nothing is lost on the way, nothing comes twice.

use super::faults::Plan;
use super::*;
use pvmsi_hypervisor::Policy;

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

/// Tries all fault points of `act` on what `prepare` makes of each source; `check` gets the rest.
fn every_point<T>(
    what: &str,
    prepare: impl Fn(Guest, Options) -> Guest,
    act: impl Fn(&Guest) -> T,
    check: impl Fn(Guest, Options, T, &str),
) {
    let mut points = 0;
    for (plan, (name, options, use_it)) in
        PLANS.iter().flat_map(|plan| sources().map(|source| (plan, source)))
    {
        for step in 1.. {
            let guest = prepare(source(options, use_it), options);
            faults::plan(plan(step));
            let result = act(&guest);
            let failed = faults::end();
            check(guest, options, result, &format!("{name}, step {step}: {failed:?} failed"));
            if failed.is_empty() {
                points += step - 1;
                break;
            }
        }
    }
    faults::report(points, what);
    assert!(points > 0, "nothing can fail");
}

#[test]
fn a_service_is_saved() {
    every_point(
        "a service is saved",
        |source, _| source,
        |source| source.service.save().unwrap(),
        |source, options, state, context| {
            assert_eq!(source.interrupts(), NONE, "{context}: saving delivers nothing");
            let target = carried(&source, &state).start(options);
            target.service.resume().unwrap();
            goes_on(&target, context);
        },
    );
}

#[test]
fn a_restored_service_goes_on() {
    every_point(
        "a restored service goes on",
        |source, options| stop(&source).start(options),
        |target| target.service.resume().unwrap(),
        |target, _, (), context| goes_on(&target, context),
    );
}

/// A VMM that has saved may go on with the first host after all.
#[test]
fn the_first_host_goes_on_after_all() {
    every_point(
        "a service is saved, and goes on where it was",
        |source, _| source,
        |source| drop(source.service.save().unwrap()),
        |source, _, (), context| {
            source.service.resume().unwrap();
            goes_on(&source, context);
        },
    );
}
