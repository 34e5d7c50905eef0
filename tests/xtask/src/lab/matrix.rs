//! `cargo xtask lab ARCHITECTURE --matrix`: all hosts and what they show, as the book has it.

use std::fmt;

use anyhow::Result;

use super::kind::Kind;
use super::scenario::Scenario;
use super::{Lab, Options};
use crate::check;
use crate::process;
use crate::workspace::Workspace;

/// What a host has shown.
struct Row {
    kind: &'static Kind,
    /// Of its kernel; none where the host could not be prepared.
    release: Option<String>,
    /// By scenario: whether all held. A scenario that the host cannot show is not there.
    shown: Vec<(Scenario, bool)>,
}

/// Runs all that the hosts of an architecture can show, but for Linux guests, and prints a table; true
/// when all held. A host that does not come up costs its row, not the others.
///
/// # Errors
/// When nothing can be built.
pub(super) fn command(workspace: &Workspace, options: &Options) -> Result<bool> {
    let pvmsi = workspace.build_pvmsi(options.architecture)?;
    let mut rows = Vec::new();
    for kind in Kind::all(options.architecture) {
        let scenarios = Scenario::all(kind);
        let mut row = Row { kind, release: None, shown: Vec::new() };
        let lab = match Lab::prepare(workspace, kind, &scenarios) {
            Ok(lab) => lab,
            Err(error) => {
                eprintln!("error: host {}: {error:#}", kind.name);
                rows.push(row);
                continue;
            }
        };
        row.release = Some(lab.release()?);
        for scenario in scenarios {
            let group = format!("{}: {}", kind.name, scenario.name());
            let held = match lab.run(&pvmsi, scenario, options.minutes()) {
                Ok(run) => {
                    if let Some(shown) = &run.shown {
                        eprintln!("{}", shown.text);
                    }
                    check::print(&group, &run.checks)
                }
                Err(error) => {
                    eprintln!("test {group} ... FAILED: {error:#}");
                    false
                }
            };
            row.shown.push((scenario, held));
        }
        rows.push(row);
    }
    process::print(&Table(&rows).to_string());
    Ok(rows.iter().all(Row::is_good))
}

impl Row {
    fn is_good(&self) -> bool {
        self.release.is_some() && self.shown.iter().all(|(_, held)| *held)
    }

    fn cell(&self, scenario: Scenario) -> &'static str {
        match self.shown.iter().find(|(shown, _)| *shown == scenario) {
            Some((_, true)) => "yes",
            Some((_, false)) => "**no**",
            None => "",
        }
    }
}

/// Rows as Markdown.
struct Table<'a>(&'a [Row]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns: Vec<_> = Scenario::each()
            .filter(|scenario| self.0.iter().any(|row| !row.cell(*scenario).is_empty()))
            .collect();
        write!(f, "| host | kernel | IOMMU | attached by | pages |")?;
        for scenario in &columns {
            write!(f, " `{}` |", scenario.name())?;
        }
        writeln!(f)?;
        writeln!(f, "|{}", "---|".repeat(columns.len().saturating_add(5)))?;
        for row in self.0 {
            let Row { kind, release, .. } = row;
            let release = release.as_deref().unwrap_or("not there");
            let (iommu, attach, pages) = (kind.iommu, kind.attach, kind.pages);
            write!(f, "| `{}` | {release} | {iommu} | {attach} | {pages} |", kind.name)?;
            for scenario in &columns {
                write!(f, " {} |", row.cell(*scenario))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::Architecture;

    #[test]
    fn a_row_tells_what_held_and_what_did_not() {
        let mut kinds = Kind::all(Architecture::X86_64);
        let release = Some("6.12.1".to_owned());
        let shown = vec![(Scenario::Direct, true), (Scenario::Hostile, false)];
        let rows = [
            Row { kind: kinds.next().unwrap(), release, shown },
            Row { kind: kinds.next().unwrap(), release: None, shown: Vec::new() },
        ];
        assert_eq!(
            Table(&rows).to_string(),
            "\
| host | kernel | IOMMU | attached by | pages | `direct` | `hostile` |
|---|---|---|---|---|---|---|
| `vtd` | 6.12.1 | VT-d | group | 4K | yes | **no** |
| `vtd-6.1` | not there | VT-d | group | 4K |  |  |
"
        );
        assert!(rows.iter().all(|row| !row.is_good()));
    }
}
