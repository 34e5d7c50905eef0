//! Reports for tests, as the contract describes them.

use serde_json::{Value, json};

/// A report of some functions.
pub(crate) fn report(functions: Value) -> Value {
    json!({
        "schema": "pvmsi.report/1",
        "host": {"kernel": "6.12.0", "page_size": 4096, "kvm": {"api": 12}},
        "policy": "direct",
        "functions": functions,
    })
}

/// A function with its phases.
pub(crate) fn function(id: &str, backend: &str, vectors: u16, phases: Value) -> Value {
    json!({"id": id, "backend": backend, "vectors": vectors, "phases": phases})
}

/// A phase as it must be.
pub(crate) fn phase(mode: &str, vectors: u16) -> Value {
    let legacy = mode == "legacy";
    let direct = mode == "direct";
    let calls = u64::from(!legacy);
    let per_vector = match mode {
        "legacy" => 5,
        "trapped" => 2,
        _ => 0,
    };
    let accesses = u64::from(vectors).saturating_mul(per_vector);
    json!({
        "mode": mode,
        "reasons": if mode == "trapped" { json!(["no-isolation"]) } else { json!([]) },
        "configure": {
            "doorbell_exits": calls,
            "routing_updates": if legacy { u64::from(vectors) } else { 1 },
            "interrupt_setups": if legacy { u64::from(vectors) } else { 1 },
            "granted": vectors,
            "exits": accesses.saturating_add(calls).saturating_add(10),
            "table_exits": accesses,
            "set_irqs": if legacy { u64::from(vectors).saturating_add(1) } else { 2 },
            "irqfds": vectors,
            "ns": if direct { 50_000_000 } else { 90_000_000 },
            "ns_each": if direct {
                [60_000_000, 50_000_000, 40_000_000]
            } else {
                [100_000_000, 45_000_000, 90_000_000]
            },
        },
        "mask_unmask": {
            "pairs": 200,
            "exits": if direct { 0 } else { 400 },
            "ns_per_pair": if direct { 90.5 } else { 36_000.0 },
        },
        "neighbour": {
            "writes": 200,
            "exits": if direct { 0 } else { 200 },
            "ns_per_write": if direct { 40.0 } else { 18_000.0 },
        },
        "interrupts": {
            "raised": 100_000,
            "observed": 100_000,
            "lost": 0,
            "spurious": 0,
            "while_masked": 0,
        },
        "table_exits_after_switch": if direct { json!(0) } else { Value::Null },
    })
}

/// The same phase of a drive that was read, its doorbells trapped or not.
pub(crate) fn with_io(mut phase: Value, doorbells_trapped: bool) -> Value {
    if let Some(fields) = phase.as_object_mut() {
        fields.insert(
            "io".to_owned(),
            json!({
                "commands": 1024,
                "mmio_exits": if doorbells_trapped { 2048 } else { 0 },
                "blocks": 131_072,
                "bytes_verified": 67_108_864,
                "bytes_wrong": 0,
                "interrupts": 1024,
                "queues": 2,
            }),
        );
    }
    phase
}
