//! `cargo xtask lab ARCHITECTURE --matrix`: all hosts and what they show, as the book has it.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::kind::Kind;
use super::scenario::Scenario;
use super::{Lab, Options, Run};
use crate::check;
use crate::process;
use crate::workspace::Workspace;

/// How one scenario went on one host, as a line of the file that a run which was cut goes on from.
#[derive(Debug, Deserialize, Serialize)]
struct Record {
    /// None where the tree was not a commit's.
    commit: Option<String>,
    /// How long interrupts were moved.
    minutes: u64,
    host: String,
    /// Its kernel's release.
    kernel: String,
    scenario: String,
    /// What did not hold.
    failed: Vec<String>,
}

/// What has been recorded, by this run and by earlier ones that it goes on with.
struct Records {
    file: PathBuf,
    commit: Option<String>,
    minutes: u64,
    all: Vec<Record>,
}

/// A host that is ready to boot: the release of its kernel, and a scenario on it.
type Ready<'a> = (String, Box<dyn Fn(Scenario) -> Result<Run> + 'a>);

/// Runs all that the hosts of an architecture can show, but for Linux guests and what has held on the same
/// commit before, and prints a table; true when all held. A host that does not come up costs its row, not the others.
///
/// # Errors
/// When nothing can be built, or results cannot be written.
pub(super) fn command(workspace: &Workspace, options: &Options) -> Result<bool> {
    let pvmsi = workspace.build_pvmsi(options.architecture)?;
    let folder = workspace.target.join("lab").join(options.architecture.name());
    fs::create_dir_all(&folder)?;
    let commit = commit(&workspace.root);
    if commit.is_none() {
        eprintln!(
            "the tree is not a commit's: all is run, and a later run will not go on from here"
        );
    }
    let mut records = Records::read(folder.join("matrix.jsonl"), commit, options.minutes());
    let kinds: Vec<_> = Kind::all(options.architecture).collect();
    run(&kinds, &mut records, |kind, scenarios| {
        let lab = Lab::prepare(workspace, kind, scenarios)?;
        let release = lab.release()?;
        let pvmsi = &pvmsi;
        Ok((release, Box::new(move |scenario| lab.run(pvmsi, scenario, options.minutes()))))
    })?;
    let table = Table { kinds: &kinds, records: &records };
    process::print(&table.to_string());
    eprintln!("    from {}", records.file.display());
    Ok(table.is_good())
}

/// The commit that the tree is, if it is one as it stands.
fn commit(root: &Path) -> Option<String> {
    let mut git = Command::new("git");
    git.arg("-C").arg(root).args(["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]);
    let (status, text) =
        process::capture("git describe", &mut git, Duration::from_secs(60), false).ok()?;
    let name = text.trim();
    (status.success() && !name.is_empty() && !name.ends_with("-dirty")).then(|| name.to_owned())
}

/// Runs what has not held yet. What fails is recorded and said, and the next one runs.
fn run<'a>(
    kinds: &[&'static Kind],
    records: &mut Records,
    mut prepare: impl FnMut(&'static Kind, &[Scenario]) -> Result<Ready<'a>>,
) -> Result<()> {
    for &kind in kinds {
        let mut scenarios = Scenario::all(kind);
        scenarios.retain(|scenario| {
            let held = records.of(kind, *scenario).any(|record| record.failed.is_empty());
            if held {
                eprintln!("test {}: {} ... ok, before", kind.name, scenario.name());
            }
            !held
        });
        if scenarios.is_empty() {
            continue;
        }
        let (release, boot) = match prepare(kind, &scenarios) {
            Ok(ready) => ready,
            Err(error) => {
                eprintln!("error: host {}: {error:#}", kind.name);
                continue;
            }
        };
        for scenario in scenarios {
            let failed = judge(&format!("{}: {}", kind.name, scenario.name()), boot(scenario));
            records.add(kind, &release, scenario, failed)?;
        }
    }
    Ok(())
}

/// Says what a scenario has shown; the names of what did not hold.
fn judge(group: &str, run: Result<Run>) -> Vec<String> {
    match run {
        Ok(run) => {
            if let Some(shown) = &run.shown {
                eprintln!("{}", shown.text);
            }
            check::print(group, &run.checks);
            let failed = run.checks.into_iter().filter(|check| check.result.is_err());
            failed.map(|check| check.name).collect()
        }
        Err(error) => {
            eprintln!("test {group} ... FAILED: {error:#}");
            vec!["it came to no end".to_owned()]
        }
    }
}

impl Records {
    /// Those of the same commit. A line that was cut is none.
    fn read(file: PathBuf, commit: Option<String>, minutes: u64) -> Self {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Record>(line).ok());
        let same = |record: &Record| {
            commit.is_some() && record.commit == commit && record.minutes == minutes
        };
        let all = lines.filter(same).collect();
        Self { file, commit, minutes, all }
    }

    /// Writes down how a scenario went, before the next one runs.
    fn add(
        &mut self,
        kind: &Kind,
        release: &str,
        scenario: Scenario,
        failed: Vec<String>,
    ) -> Result<()> {
        let record = Record {
            commit: self.commit.clone(),
            minutes: self.minutes,
            host: kind.name.to_owned(),
            kernel: release.to_owned(),
            scenario: scenario.name().to_owned(),
            failed,
        };
        // The line before may have been cut.
        let line = format!("\n{}", serde_json::to_string(&record)?);
        File::options()
            .create(true)
            .append(true)
            .open(&self.file)
            .and_then(|mut file| file.write_all(line.as_bytes()))
            .with_context(|| format!("cannot write {}", self.file.display()))?;
        self.all.push(record);
        Ok(())
    }

    fn of_host(&self, kind: &Kind) -> impl Iterator<Item = &Record> {
        self.all.iter().filter(move |record| record.host == kind.name)
    }

    fn of(&self, kind: &Kind, scenario: Scenario) -> impl Iterator<Item = &Record> {
        self.of_host(kind).filter(move |record| record.scenario == scenario.name())
    }
}

/// Hosts and what they have shown, as Markdown.
struct Table<'a> {
    kinds: &'a [&'static Kind],
    records: &'a Records,
}

impl Table<'_> {
    /// Whether all that the hosts can show has held, each time.
    fn is_good(&self) -> bool {
        let cells = |&kind: &&'static Kind| Scenario::all(kind).into_iter().map(move |s| (kind, s));
        self.kinds.iter().flat_map(cells).all(|(kind, scenario)| self.cell(kind, scenario) == "yes")
    }

    fn cell(&self, kind: &Kind, scenario: Scenario) -> String {
        let runs: Vec<_> = self.records.of(kind, scenario).collect();
        let held = runs.iter().filter(|run| run.failed.is_empty()).count();
        let Some(failure) = runs.iter().rfind(|run| !run.failed.is_empty()) else {
            let cell = match (held, Scenario::all(kind).contains(&scenario)) {
                (_, false) => "-",
                (0, true) => "",
                (_, true) => "yes",
            };
            return cell.to_owned();
        };
        let but_for = failure.failed.join("; ");
        match held {
            0 => format!("**no**: {but_for}"),
            // It failed, and held when the run went on.
            _ => format!("**{held} of {}**: {but_for}", runs.len()),
        }
    }
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = ["host", "kernel", "IOMMU", "attached by", "pages"].map(str::to_owned);
        let names = Scenario::each().map(|scenario| format!("`{}`", scenario.name()));
        let header: Vec<_> = header.into_iter().chain(names).collect();
        writeln!(f, "| {} |", header.join(" | "))?;
        writeln!(f, "|{}", "---|".repeat(header.len()))?;
        for kind in self.kinds {
            let release = self.records.of_host(kind).last();
            let release = release.map_or("not there", |record| &record.kernel);
            let (iommu, attach, pages) = (kind.iommu, kind.attach, kind.pages);
            write!(f, "| `{}` | {release} | {iommu} | {attach} | {pages} |", kind.name)?;
            for scenario in Scenario::each() {
                match self.cell(kind, scenario).as_str() {
                    "" => write!(f, " |")?,
                    cell => write!(f, " {cell} |")?,
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use anyhow::bail;

    use super::*;
    use crate::architecture::Architecture;
    use crate::check::Check;

    const RELEASE: &str = "6.12.1";

    /// A file of results that is gone with the test.
    struct Results(PathBuf);

    impl Results {
        fn new(name: &str) -> Self {
            let file = format!("pvmsi-matrix-{}-{name}.jsonl", std::process::id());
            Self(std::env::temp_dir().join(file))
        }

        fn of(&self, commit: Option<&str>, minutes: u64) -> Records {
            Records::read(self.0.clone(), commit.map(str::to_owned), minutes)
        }
    }

    impl Drop for Results {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn kinds(names: &[&str]) -> Vec<&'static Kind> {
        names.iter().map(|name| Kind::named(Architecture::X86_64, name).unwrap()).collect()
    }

    /// Runs with hosts that show what `outcome` says; what was booted.
    fn booted(
        kinds: &[&'static Kind],
        records: &mut Records,
        outcome: impl Fn(&Kind, Scenario) -> Result<&'static str>,
    ) -> Vec<String> {
        let booted = RefCell::new(Vec::new());
        run(kinds, records, |kind, _| {
            if kind.name == "vtd-6.1" {
                bail!("no kernel");
            }
            let (booted, outcome) = (&booted, &outcome);
            let boot = move |scenario: Scenario| {
                booted.borrow_mut().push(format!("{} {}", kind.name, scenario.name()));
                let result = match outcome(kind, scenario)? {
                    "" => Ok(()),
                    why => Err(why.to_owned()),
                };
                let good = Check::new("probe", Ok(()));
                Ok(Run { shown: None, checks: vec![good, Check::new("suite", result)] })
            };
            Ok((RELEASE.to_owned(), Box::new(boot)))
        })
        .unwrap();
        booted.into_inner()
    }

    #[test]
    fn what_fails_costs_its_cell_or_its_row() {
        let results = Results::new("fails");
        let mut records = results.of(Some("a"), 1);
        let kinds = kinds(&["vtd-newest", "vtd-6.1", "none"]);
        let outcome = |_: &Kind, scenario| match scenario {
            Scenario::Direct => Ok("not finished"),
            Scenario::Off => bail!("it did not boot"),
            _ => Ok(""),
        };
        assert_eq!(booted(&kinds, &mut records, outcome).len(), 7, "vtd-6.1 cannot be had");
        let table = Table { kinds: &kinds, records: &records };
        assert_eq!(
            table.to_string(),
            "\
| host | kernel | IOMMU | attached by | pages | `direct` | `off` | `unisolated` | `hostile` | `bounded` | `moving` | `refused` |
|---|---|---|---|---|---|---|---|---|---|---|---|
| `vtd-newest` | 6.12.1 | VT-d | group | 4K | **no**: suite | **no**: it came to no end | yes | yes | yes | yes | - |
| `vtd-6.1` | not there | VT-d | group | 4K | | | | | - | | - |
| `none` | 6.12.1 | none | group | 4K | - | - | - | - | - | - | yes |
"
        );
        assert!(!table.is_good());
    }

    #[test]
    fn a_run_that_was_cut_goes_on_where_it_was() {
        let results = Results::new("cut");
        let kinds = kinds(&["none", "amd-newest", "vtd-iommufd"]);
        let mut records = results.of(Some("a"), 1);
        booted(&kinds[..2], &mut records, |kind, _| {
            Ok(if kind.name == "none" { "" } else { "failed" })
        });
        // The next line was being written.
        let mut text = fs::read_to_string(&results.0).unwrap();
        text.push_str("\n{\"commit\":\"a\",\"minutes\":1,\"host\":\"vtd-io");
        fs::write(&results.0, text).unwrap();
        let mut records = results.of(Some("a"), 1);
        let rest = ["amd-newest unisolated", "vtd-iommufd direct", "vtd-iommufd off"];
        assert_eq!(booted(&kinds, &mut records, |_, _| Ok(""))[..3], rest);
        let mut records = results.of(Some("a"), 1);
        let table = Table { kinds: &kinds, records: &records };
        assert_eq!(table.cell(kinds[1], Scenario::Unisolated), "**1 of 2**: suite");
        assert!(!table.is_good());
        let others = Table { kinds: &[kinds[0], kinds[2]], records: &records };
        assert!(others.is_good());
        assert_eq!(booted(&kinds, &mut records, |_, _| Ok("")), [""; 0]);
    }

    #[test]
    fn another_commit_or_another_time_is_another_run() {
        let results = Results::new("commit");
        let kinds = kinds(&["none"]);
        for (commit, minutes, runs) in [
            (Some("a"), 1, 1),
            (Some("a"), 1, 0),
            (Some("b"), 1, 1),
            (Some("a"), 10, 1),
            (None, 1, 1),
            (None, 1, 1),
            (Some("a"), 1, 0),
        ] {
            let mut records = results.of(commit, minutes);
            let booted = booted(&kinds, &mut records, |_, _| Ok(""));
            assert_eq!(booted.len(), runs, "{commit:?}, {minutes} minutes");
            assert!(Table { kinds: &kinds, records: &records }.is_good());
        }
    }
}
