//! The report as a table for people: the standard table beside PV-MSI, function by function.

use std::fmt::Write;

use super::report::{FunctionReport, LongestCall, PhaseReport, Report, Soak};

/// Width of the column of names, and of each phase.
const NAME: usize = 30;
const COLUMN: usize = 15;

/// The table. Colours only for terminals.
pub(crate) fn table(report: &Report, colour: bool) -> String {
    let paint = Paint { colour };
    let mut out = String::new();
    let host = &report.host;
    // Writing to a string does not fail.
    let _ = writeln!(
        out,
        "\nkernel {}, {}, pages of {} bytes, policy {}",
        host.kernel,
        host.kvm,
        host.page_size,
        policy(report)
    );
    for function in &report.functions {
        function_table(&mut out, function, &paint);
    }
    if let Some(soak) = &report.soak {
        soak_table(&mut out, soak);
    }
    let LongestCall { ns, vectors } = report.longest_call;
    if ns > 0 {
        let us = ns / 1000;
        let _ = writeln!(out, "\nlongest call {us} us; at most {vectors} vectors set up in one");
    }
    let _ = writeln!(out);
    if report.passed() {
        let _ = writeln!(out, "{}", paint.good("all checks passed"));
    } else {
        for failure in &report.failures {
            let _ = writeln!(out, "{} {failure}", paint.bad("failed:"));
        }
    }
    out
}

fn soak_table(out: &mut String, soak: &Soak) {
    let _ = writeln!(out, "\nsoak");
    for (name, figure) in [
        ("seconds", soak.seconds),
        ("rounds", soak.guest.rounds),
        ("operations", soak.guest.operations),
        ("mask changes", soak.guest.mask_changes),
        ("mode switches", soak.mode_switches),
        ("calls", soak.calls),
        ("routing updates", soak.routing_updates),
        ("events", soak.guest.events),
        ("interrupts", soak.guest.interrupts),
        ("merged", soak.guest.merged),
        ("dropped by resets and releases", soak.guest.dropped),
        ("lost", soak.guest.lost),
        ("doubled", soak.guest.doubled),
        ("while masked", soak.guest.while_masked),
    ] {
        let _ = writeln!(out, "  {name:<32}{figure:>12}");
    }
}

fn policy(report: &Report) -> &'static str {
    match report.policy {
        pvmsi_hypervisor::Policy::Off => "off",
        pvmsi_hypervisor::Policy::Trapped => "trapped",
        pvmsi_hypervisor::Policy::Direct => "direct",
    }
}

/// A line of the table: a name, and a figure of each phase, with the number that ratios are made of.
struct Row {
    name: &'static str,
    cells: Vec<Option<Cell>>,
    /// The heading before it.
    group: &'static str,
    /// Whether the last column tells how many times less the second phase takes.
    compared: bool,
}

struct Cell {
    text: String,
    value: f64,
}

fn function_table(out: &mut String, function: &FunctionReport, paint: &Paint) {
    let _ = writeln!(
        out,
        "\n{}",
        paint.strong(&format!(
            "{} ({}, {} vectors)",
            function.id, function.backend, function.vectors
        ))
    );
    if function.phases.is_empty() {
        let _ = writeln!(out, "  the guest has measured nothing");
        return;
    }
    let _ = write!(out, "{:NAME$}", "");
    for phase in &function.phases {
        let _ = write!(out, "{:>COLUMN$}", phase.mode.name());
    }
    let _ = writeln!(out);
    let mut group = "";
    for row in rows(&function.phases) {
        if row.cells.iter().all(Option::is_none) {
            continue;
        }
        if row.group != group {
            group = row.group;
            let _ = writeln!(out, "  {group}");
        }
        let _ = write!(out, "    {:width$}", row.name, width = NAME.saturating_sub(4));
        for cell in &row.cells {
            let text = cell.as_ref().map_or("-", |cell| cell.text.as_str());
            let _ = write!(out, "{text:>COLUMN$}");
        }
        if let Some(times) = row.times() {
            let _ = write!(out, "   {}", paint.good(&times));
        }
        let _ = writeln!(out);
    }
    for phase in function.phases.iter().filter(|phase| !phase.reasons.is_empty()) {
        let reasons = phase.reasons.join(", ");
        let _ = writeln!(out, "  {}: not direct because of: {reasons}", phase.mode.name());
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn rows(phases: &[PhaseReport]) -> Vec<Row> {
    type Figure = fn(&PhaseReport) -> Option<Cell>;
    let row = |group, name, compared, figure: Figure| Row {
        name,
        group,
        compared,
        cells: phases.iter().map(figure).collect(),
    };
    fn count(value: u64) -> Cell {
        Cell { text: value.to_string(), value: value as f64 }
    }
    fn per(exits: u64, operations: u64) -> Cell {
        let value = exits as f64 / operations.max(1) as f64;
        Cell { text: format!("{value:.2}"), value }
    }
    fn time(nanoseconds: f64) -> Cell {
        let text = match nanoseconds {
            ns if ns < 10_000.0 => format!("{ns:.0} ns"),
            ns if ns < 10_000_000.0 => format!("{:.1} us", ns / 1e3),
            ns => format!("{:.1} ms", ns / 1e6),
        };
        Cell { text, value: nanoseconds }
    }
    const SET_UP: &str = "set-up until all vectors can fire";
    const MASK: &str = "mask and unmask a vector";
    const WRITE: &str = "write beside the table";
    const LOAD: &str = "interrupts under load";
    const SWITCH: &str = "since the set-up";
    const DISK: &str = "read a disk by interrupts";
    vec![
        row(SET_UP, "vectors granted", false, |p| {
            Some(count(p.configure.as_ref()?.granted.into()))
        }),
        row(SET_UP, "doorbell exits", false, |p| Some(count(p.configure.as_ref()?.doorbell_exits))),
        row(SET_UP, "exits on the table", false, |p| {
            Some(count(p.configure.as_ref()?.table_exits))
        }),
        row(SET_UP, "all exits", false, |p| Some(count(p.configure.as_ref()?.exits))),
        row(SET_UP, "routing updates", false, |p| {
            Some(count(p.configure.as_ref()?.routing_updates))
        }),
        row(SET_UP, "interrupt set-ups", false, |p| {
            Some(count(p.configure.as_ref()?.interrupt_setups))
        }),
        row(SET_UP, "events attached", false, |p| Some(count(p.configure.as_ref()?.irqfds))),
        row(SET_UP, "time", true, |p| Some(time(p.configure.as_ref()?.ns as f64))),
        row(MASK, "exits per pair", false, |p| {
            p.mask_unmask.as_ref().map(|m| per(m.exits, m.pairs))
        }),
        row(MASK, "time per pair", true, |p| Some(time(p.mask_unmask.as_ref()?.ns_per_pair))),
        row(WRITE, "exits per write", false, |p| {
            p.neighbour.as_ref().map(|n| per(n.exits, n.writes))
        }),
        row(WRITE, "time per write", true, |p| Some(time(p.neighbour.as_ref()?.ns_per_write))),
        row(LOAD, "events raised", false, |p| Some(count(p.interrupts.as_ref()?.raised))),
        row(LOAD, "observed", false, |p| Some(count(p.interrupts.as_ref()?.observed))),
        row(LOAD, "lost", false, |p| Some(count(p.interrupts.as_ref()?.lost))),
        row(LOAD, "spurious", false, |p| Some(count(p.interrupts.as_ref()?.spurious))),
        row(LOAD, "while masked", false, |p| Some(count(p.interrupts.as_ref()?.while_masked))),
        row(LOAD, "masked meanwhile", false, |p| Some(count(p.interrupts.as_ref()?.mask_cycles))),
        row(DISK, "MiB verified", false, |p| Some(count(p.io.as_ref()?.bytes_verified >> 20))),
        row(DISK, "I/O queues", false, |p| Some(count(p.io.as_ref()?.queues.into()))),
        row(DISK, "interrupts", false, |p| Some(count(p.io.as_ref()?.interrupts))),
        row(DISK, "commands", false, |p| Some(count(p.io.as_ref()?.commands))),
        row(DISK, "register exits per command", false, |p| {
            p.io.as_ref().map(|io| per(io.mmio_exits, io.commands))
        }),
        row(DISK, "exits per block", false, |p| p.io.as_ref().map(|io| per(io.exits, io.blocks))),
        row(DISK, "time", true, |p| Some(time(p.io.as_ref()?.ns as f64))),
        row(SWITCH, "exits on the table's pages", false, |p| p.table_exits_after_switch.map(count)),
    ]
}

impl Row {
    /// How many times less the second phase takes than the first.
    fn times(&self) -> Option<String> {
        let [Some(first), Some(second)] = self.cells.as_slice() else { return None };
        let shown = self.compared && second.value > 0.0 && first.value > second.value;
        shown.then(|| format!("{:.1} x faster", first.value / second.value))
    }
}

struct Paint {
    colour: bool,
}

impl Paint {
    fn with(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn good(&self, text: &str) -> String {
        self.with("32", text)
    }

    fn bad(&self, text: &str) -> String {
        self.with("31", text)
    }

    fn strong(&self, text: &str) -> String {
        self.with("1", text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measurements::ExitCounts;
    use crate::measurements::{
        Configure, Host, Interrupts, MaskUnmask, Neighbour, PhaseMode, REPORT_SCHEMA,
    };

    fn phase(mode: PhaseMode, exits: u64, ns: f64) -> PhaseReport {
        PhaseReport {
            mode,
            reasons: Vec::new(),
            configure: Some(Configure {
                doorbell_exits: u64::from(exits == 0),
                routing_updates: 1,
                interrupt_setups: 1,
                granted: 64,
                requested: 64,
                exits: 1,
                table_exits: exits,
                set_irqs: 2,
                irqfds: 64,
                ns: 1000,
                ns_each: vec![900, 1000, 1100],
            }),
            mask_unmask: Some(MaskUnmask { pairs: 100, exits, ns_per_pair: ns }),
            neighbour: Some(Neighbour { writes: 100, exits, ns_per_write: ns }),
            interrupts: Some(Interrupts {
                raised: 10,
                observed: 10,
                lost: 0,
                spurious: 0,
                while_masked: 0,
                mask_cycles: 5,
            }),
            table_exits_after_switch: Some(exits),
            io: None,
        }
    }

    fn report() -> Report {
        Report {
            schema: REPORT_SCHEMA,
            host: Host { kernel: "6.1".into(), page_size: 4096, kvm: "kvm_amd".into() },
            policy: pvmsi_hypervisor::Policy::Direct,
            functions: vec![FunctionReport {
                id: "0000:00:01.0".into(),
                guest_address: "0000:00:01.0".into(),
                backend: "software",
                vectors: 64,
                phases: vec![
                    phase(PhaseMode::Legacy, 200, 40_000.0),
                    phase(PhaseMode::Direct, 0, 4_000.0),
                ],
                service: None,
                pinning: None,
            }],
            soak: None,
            failures: Vec::new(),
            exits: ExitCounts::default(),
            longest_call: LongestCall { ns: 1_234_567, vectors: 64 },
        }
    }

    #[test]
    fn a_person_sees_exits_and_ratio() {
        let text = table(&report(), false);
        let line = |name: &str| {
            let line = text.lines().find(|line| line.contains(name)).unwrap();
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(line("exits per pair"), "exits per pair 2.00 0.00");
        assert_eq!(line("time per pair"), "time per pair 40.0 us 4000 ns 10.0 x faster");
        assert!(text.contains("longest call 1234 us; at most 64 vectors set up in one\n"));
        assert!(text.contains("all checks passed"));
        assert!(!text.contains("disk"), "sections that nobody measured are left out");
        assert!(!text.contains('\x1b'), "no colour");
    }

    #[test]
    fn failures_are_shown() {
        let mut report = report();
        report.failures.push("2 interrupts lost".into());
        let text = table(&report, true);
        assert!(text.contains("2 interrupts lost") && !text.contains("all checks"), "{text}");
    }

    #[test]
    fn the_json_has_the_fields_of_the_contract_and_leaves_out_absent_sections() {
        let value = serde_json::to_value(report()).unwrap();
        assert_eq!(value["schema"], "pvmsi.report/1");
        assert_eq!(value["policy"], "direct");
        assert_eq!(value["longest_call"]["ns"], 1_234_567);
        assert_eq!(value["longest_call"]["vectors"], 64);
        assert_eq!(value["host"]["page_size"], 4096);
        let function = &value["functions"][0];
        assert_eq!(function["backend"], "software");
        let phase = &function["phases"][1];
        assert_eq!(phase["mode"], "direct");
        for (section, field) in [
            ("configure", "doorbell_exits"),
            ("configure", "routing_updates"),
            ("configure", "interrupt_setups"),
            ("configure", "granted"),
            ("configure", "exits"),
            ("configure", "table_exits"),
            ("configure", "set_irqs"),
            ("configure", "irqfds"),
            ("configure", "ns"),
            ("mask_unmask", "pairs"),
            ("mask_unmask", "exits"),
            ("mask_unmask", "ns_per_pair"),
            ("neighbour", "writes"),
            ("neighbour", "exits"),
            ("neighbour", "ns_per_write"),
            ("interrupts", "raised"),
            ("interrupts", "observed"),
            ("interrupts", "lost"),
            ("interrupts", "spurious"),
            ("interrupts", "while_masked"),
        ] {
            assert!(phase[section][field].is_number(), "{section}.{field}");
        }
        assert_eq!(phase["configure"]["ns_each"].as_array().unwrap().len(), 3);
        assert_eq!(phase["table_exits_after_switch"], 0);
        assert!(phase["reasons"].as_array().unwrap().is_empty());
        assert!(phase.get("io").is_none());
    }
}
