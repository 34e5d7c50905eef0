//! Rows of counts: as JSON (`pvmsi.bench/1`) and as a table.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::program::as_number;
use crate::check;

/// The name and the version of the contract.
const SCHEMA: &str = "pvmsi.bench/1";

/// How the names of counts begin that are points of a series.
const SWEEP: &str = "sweep.";

/// What counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Callgrind.
    Instructions,
    /// Lackey.
    Accesses,
    /// `pvmsi-bench` itself.
    Counts,
    /// The same, on /dev/kvm.
    Holds,
    /// Sizes of the guest half for C.
    Shim,
}

/// The rows that every report has, in this order; a count that could not be made is missing.
/// What else was counted follows.
const ROWS: [(&str, &str, Part); 12] = [
    ("host.configure.per_vector", "instructions", Part::Instructions),
    ("host.update_one.assigned_8", "instructions", Part::Instructions),
    ("host.update_one.assigned_2048", "instructions", Part::Instructions),
    ("host.trapped_mask_unmask", "instructions", Part::Instructions),
    ("host.function_mask_clear.per_vector", "instructions", Part::Instructions),
    ("guest.configure.per_vector.without_messages", "instructions", Part::Instructions),
    ("guest.configure.per_vector.with_messages", "instructions", Part::Instructions),
    ("guest.enable.per_vector", "instructions", Part::Instructions),
    ("guest.enable.table_reads", "accesses", Part::Accesses),
    ("shim.c.text", "bytes", Part::Shim),
    ("shim.c.text_minimal", "bytes", Part::Shim),
    ("host.longest_call_share", "share", Part::Holds),
];

/// Which of two ways to do the same thing a count is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Side {
    /// By calls.
    PvMsi,
    /// The guest writes messages into a trapped table.
    Standard,
}

/// A count.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Count {
    pub(super) name: String,
    pub(super) side: Side,
    pub(super) unit: String,
    pub(super) vectors: u16,
    pub(super) value: f64,
}

impl Count {
    /// A count that is not divided through anything.
    pub(super) fn whole(name: &str, side: Side, unit: &str, value: u64) -> Self {
        let (name, unit, value) = (name.to_owned(), unit.to_owned(), as_number(value));
        Self { name, side, unit, vectors: 0, value }
    }
}

/// All rows.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Report {
    schema: String,
    /// The revision that stands in the rows' `before`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    compared_with: Option<String>,
    rows: Vec<Row>,
    /// With `--plot`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) series: Vec<Series>,
}

/// The cost of an operation by the number of vectors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Series {
    /// `set_up`, `affinity_change` or `mask_unmask`.
    pub(super) name: String,
    /// `instructions` (of the host service) or `exits`.
    pub(super) unit: String,
    pub(super) points: Vec<Point>,
}

/// The cost with so many vectors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Point {
    pub(super) vectors: u16,
    pub(super) value: Option<f64>,
    pub(super) standard: Option<f64>,
}

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Row {
    name: String,
    unit: String,
    /// Null where it is missing.
    value: Option<f64>,
    /// The same of the standard table, where that exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    standard: Option<f64>,
    /// Why the value is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    missing: Option<String>,
    /// The value of the revision that this one is compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<f64>,
    /// Why that is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before_missing: Option<String>,
}

impl Report {
    /// The rows that every report has, all missing.
    pub(super) fn new() -> Self {
        let rows = ROWS.iter().map(|(name, unit, _)| Row::missing(name, unit, "not counted"));
        let (schema, rows) = (SCHEMA.to_owned(), rows.collect());
        Self { schema, compared_with: None, rows, series: Vec::new() }
    }

    /// Reads the JSON form.
    ///
    /// # Errors
    /// When it is something else.
    pub(super) fn read(text: &str) -> Result<Self> {
        let report: Self = serde_json::from_str(text).context("not a report of the bench")?;
        ensure!(report.schema == SCHEMA, "its schema is {}, not {SCHEMA}", report.schema);
        Ok(report)
    }

    /// Adds what a part has counted, or why it has not.
    pub(super) fn add(&mut self, part: Part, counts: Result<Vec<Count>>) {
        match counts {
            Ok(counts) => counts.into_iter().for_each(|count| self.add_count(count)),
            Err(error) => {
                let why = format!("{error:#}");
                eprintln!("    missing: {why}");
                let names = ROWS.iter().filter(|row| row.2 == part).map(|row| row.0);
                for name in names {
                    if let Some(row) = self.rows.iter_mut().find(|row| row.name == name) {
                        row.missing = Some(why.clone());
                    }
                }
            }
        }
    }

    /// That a row is there and not over its bound.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn check_bound(&self, name: &str, most: f64) -> Result<(), String> {
        let row = self.rows.iter().find(|row| row.name == name).ok_or("no such row")?;
        match row.value {
            Some(value) if value <= most => Ok(()),
            Some(value) => Err(format!("it is {}", number(value))),
            None => Err(row.missing.clone().unwrap_or_default()),
        }
    }

    /// That what is counted of the host in the standard way are the accesses that the guest half
    /// makes there: each is an exit.
    ///
    /// # Errors
    /// Where the numbers differ.
    pub(super) fn check_standard(&self) -> Result<(), String> {
        let standard = |name: &str| {
            let row = self.rows.iter().find(|row| row.name == name);
            row.and_then(|row| row.standard).ok_or_else(|| format!("no standard {name}"))
        };
        let accesses = |name: &str| {
            let [reads, writes] = ["reads", "writes"].map(|what| format!("{name}.table_{what}"));
            Ok::<_, String>(standard(&reads)? + standard(&writes)?)
        };
        // Message control is accessed as often either way; the one exit more is the doorbell.
        let set_up = self.rows.iter().find(|row| row.name == "set_up.exits");
        let control = set_up.and_then(|row| row.value).ok_or("no set_up.exits")? - 1.0;
        for (event, seen) in [
            ("set_up", accesses("guest.enable")? + accesses("guest.unmask_all")? + control),
            ("affinity_change", accesses("guest.affinity_change")?),
            ("mask_unmask", accesses("guest.mask_unmask")?),
        ] {
            check::equal(event, standard(&format!("{event}.exits"))?, seen)?;
        }
        Ok(())
    }

    /// Puts the values of another revision beside these, or why there are none.
    pub(super) fn compare_with(&mut self, revision: &str, other: Result<Self>) {
        self.compared_with = Some(revision.to_owned());
        let (rows, why) = match other {
            Ok(report) => (report.rows, "it has no such row".to_owned()),
            Err(error) => (Vec::new(), format!("{error:#}")),
        };
        let mut rows: BTreeMap<_, _> =
            rows.into_iter().map(|row| (row.name.clone(), row)).collect();
        for row in &mut self.rows {
            match rows.remove(&row.name) {
                Some(Row { value, missing, .. }) => {
                    row.before = value;
                    row.before_missing = missing.filter(|_| value.is_none());
                }
                None => row.before_missing = Some(why.clone()),
            }
        }
        // What this revision has given up.
        self.rows.extend(rows.into_values().map(|Row { name, unit, value, missing, .. }| Row {
            before: value,
            before_missing: missing,
            ..Row::missing(&name, &unit, "this revision does not count it")
        }));
    }

    /// The JSON form.
    ///
    /// # Errors
    /// None that is known.
    pub(super) fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    fn add_count(&mut self, count: Count) {
        let Count { name, side, unit, vectors, value } = count;
        if let Some(operation) = name.strip_prefix(SWEEP) {
            return self.add_point(operation, unit, side, vectors, value);
        }
        let at = self.rows.iter().position(|row| row.name == name).unwrap_or_else(|| {
            self.rows.push(Row::missing(&name, &unit, "only the standard table has it"));
            self.rows.len().saturating_sub(1)
        });
        let Some(row) = self.rows.get_mut(at) else { return };
        match side {
            Side::PvMsi => {
                row.value = Some(value);
                row.missing = None;
            }
            Side::Standard => row.standard = Some(value),
        }
    }
}

impl Report {
    fn add_point(&mut self, operation: &str, unit: String, side: Side, vectors: u16, value: f64) {
        let found = |series: &Series| series.name == operation && series.unit == unit;
        let at = self.series.iter().position(found).unwrap_or_else(|| {
            let (name, points) = (operation.to_owned(), Vec::new());
            self.series.push(Series { name, unit, points });
            self.series.len().saturating_sub(1)
        });
        let Some(Series { points, .. }) = self.series.get_mut(at) else { return };
        let at = points.iter().position(|point| point.vectors == vectors).unwrap_or_else(|| {
            points.push(Point { vectors, value: None, standard: None });
            points.len().saturating_sub(1)
        });
        let Some(point) = points.get_mut(at) else { return };
        match side {
            Side::PvMsi => point.value = Some(value),
            Side::Standard => point.standard = Some(value),
        }
    }
}

impl Row {
    fn missing(name: &str, unit: &str, why: &str) -> Self {
        Self {
            name: name.to_owned(),
            unit: unit.to_owned(),
            value: None,
            standard: None,
            missing: Some(why.to_owned()),
            before: None,
            before_missing: None,
        }
    }
}

impl fmt::Display for Report {
    /// A line for each row, and the reasons why some are missing below.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
        let mut head = format!("{:width$}  {:>12}", "", "PV-MSI");
        if let Some(revision) = &self.compared_with {
            let revision: String = revision.chars().take(12).collect();
            write!(head, "  {revision:>12}  {:>8}", "ratio")?;
        }
        writeln!(f, "{head}  {:>12}", "standard")?;
        let mut missing: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for row in &self.rows {
            write!(f, "{:width$}  {:>12}", row.name, shown(row.value))?;
            if self.compared_with.is_some() {
                let ratio = row.value.zip(row.before).filter(|(_, before)| *before != 0.0);
                let ratio = ratio.map(|(value, before)| format!("{:.3}", value / before));
                write!(f, "  {:>12}  {:>8}", shown(row.before), ratio.unwrap_or_default())?;
            }
            let standard = row.standard.map(number).unwrap_or_default();
            writeln!(f, "  {standard:>12}  {}", row.unit)?;
            let revision = self.compared_with.as_deref().unwrap_or_default();
            let before = row.before_missing.iter().map(|why| format!("in {revision}: {why}"));
            for why in row.missing.iter().cloned().chain(before) {
                missing.entry(why).or_default().push(&row.name);
            }
        }
        for (why, names) in missing {
            let shown: Vec<&str> = names.iter().copied().take(NAMED).collect();
            let rest = names.len().saturating_sub(shown.len());
            let rest = if rest > 0 { format!(" and {rest} more") } else { String::new() };
            writeln!(f, "missing: {why} ({}{rest})", shown.join(", "))?;
        }
        Ok(())
    }
}

/// How many missing rows are named with a reason that they share.
const NAMED: usize = 3;

fn shown(value: Option<f64>) -> String {
    value.map_or_else(|| "missing".to_owned(), number)
}

/// Whole numbers as they are, others to three places.
fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn count(name: &str, side: Side, value: f64) -> Count {
        Count { name: name.to_owned(), side, unit: "instructions".to_owned(), vectors: 8, value }
    }

    fn row(report: &Report, name: &str) -> Value {
        let json: Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
        let rows = json["rows"].as_array().unwrap();
        rows.iter().find(|row| row["name"] == name).unwrap().clone()
    }

    const NAME: &str = "host.update_one.assigned_8";

    #[test]
    fn rows_keep_their_order_and_their_sides() {
        let mut report = Report::new();
        let counts = vec![
            count("set_up.exits", Side::Standard, 9.0),
            count(NAME, Side::Standard, 5.5),
            count(NAME, Side::PvMsi, 7.0),
        ];
        report.add(Part::Instructions, Ok(counts));
        assert_eq!(
            row(&report, NAME),
            json!({"name": NAME, "unit": "instructions", "value": 7.0, "standard": 5.5})
        );
        assert_eq!(row(&report, "set_up.exits")["value"], Value::Null);
        assert_eq!(row(&report, "set_up.exits")["standard"], 9.0);
        let json: Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
        assert_eq!(json["schema"], "pvmsi.bench/1");
        assert_eq!(json["rows"][0]["name"], "host.configure.per_vector");
        let text = report.to_string();
        let line = text.lines().find(|line| line.starts_with(NAME)).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words, [NAME, "7", "5.500", "instructions"]);
    }

    #[test]
    fn a_part_that_failed_is_missing_with_the_reason() {
        let mut report = Report::new();
        report.add(Part::Holds, Err(anyhow::anyhow!("no /dev/kvm")));
        let row = row(&report, "host.longest_call_share");
        assert_eq!((&row["value"], &row["missing"]), (&Value::Null, &json!("no /dev/kvm")));
        assert!(report.to_string().contains("missing: no /dev/kvm (host.longest_call_share)"));
    }

    #[test]
    fn another_revision_stands_beside_with_what_it_lacks() {
        let mut old = Report::new();
        old.add(
            Part::Instructions,
            Ok(vec![count(NAME, Side::PvMsi, 14.0), count("gone", Side::PvMsi, 1.0)]),
        );
        let old = Report::read(&old.to_json().unwrap()).unwrap();
        let mut report = Report::new();
        report.add(
            Part::Instructions,
            Ok(vec![count(NAME, Side::PvMsi, 7.0), count("new", Side::PvMsi, 2.0)]),
        );
        report.compare_with("v1", Ok(old));
        assert_eq!(row(&report, NAME)["before"], 14.0);
        assert_eq!(row(&report, "new")["before_missing"], "it has no such row");
        assert_eq!(row(&report, "gone")["before"], 1.0);
        assert_eq!(row(&report, "gone")["value"], Value::Null);
        assert_eq!(row(&report, "shim.c.text")["before_missing"], "not counted");
        let text = report.to_string();
        let line = text.lines().find(|line| line.starts_with(NAME)).unwrap();
        assert!(line.contains("0.500"), "{line}");
    }

    #[test]
    fn a_revision_without_a_bench_lacks_every_row() {
        let mut report = Report::new();
        report.compare_with("v0", Err(anyhow::anyhow!("it has no bench")));
        assert!(
            report.rows.iter().all(|row| row.before_missing.as_deref() == Some("it has no bench"))
        );
    }

    #[test]
    fn points_of_both_sides_make_a_series() {
        let mut report = Report::new();
        let rows = report.rows.len();
        let point = |side, vectors, value| Count { vectors, ..count("sweep.set_up", side, value) };
        let counts = vec![
            point(Side::PvMsi, 1, 5.0),
            point(Side::Standard, 1, 6.0),
            point(Side::PvMsi, 2, 7.0),
        ];
        report.add(Part::Instructions, Ok(counts));
        assert_eq!(report.rows.len(), rows);
        let json: Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
        assert_eq!(
            json["series"],
            json!([{"name": "set_up", "unit": "instructions", "points": [
                {"vectors": 1, "value": 5.0, "standard": 6.0},
                {"vectors": 2, "value": 7.0, "standard": null},
            ]}])
        );
    }

    #[test]
    fn bounds_fail_where_a_row_is_over_missing_or_unknown() {
        let mut report = Report::new();
        report.add(Part::Instructions, Ok(vec![count(NAME, Side::PvMsi, 7.5)]));
        assert_eq!(report.check_bound(NAME, 7.5), Ok(()));
        assert_eq!(report.check_bound(NAME, 7.0), Err("it is 7.500".to_owned()));
        assert_eq!(report.check_bound("shim.c.text", 1e9), Err("not counted".to_owned()));
        assert!(report.check_bound("none", 1e9).is_err());
    }

    #[test]
    fn the_standard_way_of_host_and_guest_half_must_agree() {
        let report = |exits| {
            let mut report = Report::new();
            let standard = |name: &str, value| count(name, Side::Standard, value);
            let mut counts = vec![
                count("set_up.exits", Side::PvMsi, 6.0),
                standard("set_up.exits", 15.0),
                standard("affinity_change.exits", 6.0),
                standard("mask_unmask.exits", exits),
            ];
            for (name, reads, writes) in [
                ("enable", 2.0, 6.0),
                ("unmask_all", 0.0, 2.0),
                ("affinity_change", 1.0, 5.0),
                ("mask_unmask", 1.0, 2.0),
            ] {
                counts.push(standard(&format!("guest.{name}.table_reads"), reads));
                counts.push(standard(&format!("guest.{name}.table_writes"), writes));
            }
            report.add(Part::Counts, Ok(counts));
            report.check_standard()
        };
        assert_eq!(report(3.0), Ok(()));
        assert!(report(4.0).is_err());
        assert!(Report::new().check_standard().is_err());
    }

    #[test]
    fn other_schemas_are_refused() {
        assert!(Report::read(r#"{"schema":"pvmsi.bench/2","rows":[]}"#).is_err());
        assert!(Report::read("cargo says something else").is_err());
    }
}
