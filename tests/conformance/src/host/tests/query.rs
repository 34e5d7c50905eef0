//! Chapter 4: `query-function` and `query-vectors`.

use alloc::vec::Vec;

use pvmsi_protocol::{CallError, CallId, Header, Parameter, Reasons, TableMode};

use crate::host::call::{PAGE, encoded, request, success, vector_states};
use crate::host::machine::{ENABLE, Machine};
use crate::host::{HostFactory, HostOptions, Policy};
use crate::suite::{Test, Verdict, equal, holds};

pub(super) const TESTS: &[Test] = &[
    Test::host("query-function-tells-how-it-stands", &["H-420"], how_it_stands),
    Test::host("query-vectors-tells-how-they-stand", &["H-431"], how_vectors_stand),
    Test::host("query-vectors-of-no-range", &["H-430"], no_range),
    Test::host("query-vectors-in-a-short-buffer", &["H-431", "H-213"], short_buffer),
];

fn how_it_stands(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::new(factory)?;
    let query = machine.query()?;
    equal("assigned", query.assigned, 0)?;
    equal("most vectors", query.msix_vectors, 8)?;
    holds("reason not-assigned", query.reasons.contains(Reasons::NOT_ASSIGNED))?;
    machine.control(ENABLE);
    let answer = machine.configure(5)?;
    let query = machine.query()?;
    equal("assigned", query.assigned, 5)?;
    equal("mode and reasons", (query.mode, query.reasons), (TableMode::Direct, Reasons::empty()))?;
    equal("generation", query.generation, answer.generation)?;
    let denied =
        Machine::with(factory, HostOptions { policy: Policy::Denied, ..HostOptions::default() })?;
    equal("most vectors of a function that is denied", denied.query()?.msix_vectors, 0)
}

fn how_vectors_stand(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    let mut setups = machine.setups(3, false);
    setups[1].masked = true;
    setups[2].message = None;
    let answer = machine.configure_with(4, &setups)?;
    machine.raise(1);
    let states = machine.states()?;
    equal("vectors", states.len(), 8)?;
    for (vector, state) in (0_u16..).zip(&states) {
        let at = usize::from(vector);
        let what = |what: &str| format!("{what} of vector {vector}");
        equal(&what("assigned"), state.assigned, vector < 4)?;
        let message = (vector < 2).then(|| machine.message(vector));
        equal(&what("guest message"), state.guest_message, message)?;
        let table = answer.vectors.get(at).and_then(|vector| vector.table_message);
        equal(&what("table message"), state.table_message, table)?;
        equal(&what("masked"), state.masked, machine.masked(vector))?;
        equal(&what("pending"), state.pending, vector == 1)?;
        equal(&what("pending bit in the array"), machine.pending(vector), vector == 1)?;
    }
    let masked: Vec<_> = states.iter().take(4).map(|state| state.masked).collect();
    equal("masked", masked, vec![false, true, false, true])
}

fn no_range(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    for first in [0, 8, u16::MAX] {
        let answer = machine.try_query_vectors(first, 0)?;
        let error = answer.err();
        let count =
            matches!(error, Some(CallError::Parameter(e)) if e.parameter == Parameter::Count);
        holds(&format!("a parameter error for 0 vectors from {first}: {error:?}"), count)?;
    }
    for (first, count) in [(0, 9), (8, 1), (7, 2), (u16::MAX, u16::MAX), (4, u16::MAX)] {
        let error = machine.try_query_vectors(first, count)?.err();
        let vector =
            matches!(error, Some(CallError::Parameter(e)) if e.parameter == Parameter::Vector);
        holds(&format!("a parameter error for {count} vectors from {first}: {error:?}"), vector)?;
    }
    Ok(())
}

fn short_buffer(factory: &dyn HostFactory) -> Verdict {
    let machine =
        Machine::enabled_with(factory, HostOptions { vectors: 64, ..HostOptions::default() })?;
    machine.configure(64)?;
    let all = machine.states()?;
    let body = encoded(&pvmsi_protocol::QueryVectorsRequest { first: 10, count: 50 });
    for room in [68, 200, 400, 1000, 4000] {
        let header = Header {
            buffer_length: 32 + room,
            ..request(CallId::QueryVectors, machine.function, body.len())
        };
        let answer = success("query-vectors", machine.raw(PAGE, header, &body)?)?;
        let (_, states) = vector_states(&answer)?;
        let some = (1..=50).contains(&states.len());
        holds(&format!("1 to 50 vectors in {room} bytes: {}", states.len()), some)?;
        equal("the vectors from 10 on", &states[..], &all[10..10 + states.len()])?;
    }
    Ok(())
}
