//! Another revision's own bench.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::folder;
use super::report::Report;
use crate::process;
use crate::workspace::{Workspace, cargo_in};

/// Bound of the other revision's bench: it builds everything.
const LIMIT: Duration = Duration::from_secs(3600);

/// A commit of this repository.
pub(super) struct Revision {
    /// As the user has named it.
    pub(super) name: String,
    commit: String,
}

impl Revision {
    /// Looks it up.
    ///
    /// # Errors
    /// When git does not know it.
    pub(super) fn find(workspace: &Workspace, name: &str) -> Result<Self> {
        let mut git = git(workspace);
        git.args(["rev-parse", "--quiet", "--verify", "--end-of-options"]);
        git.arg(format!("{name}^{{commit}}"));
        let (status, text) = process::capture("git rev-parse", &mut git, LIMIT, false)?;
        ensure!(
            status.success(),
            "--compare {name}: git knows no such commit; name one that `git log` shows"
        );
        Ok(Self { name: name.to_owned(), commit: text.trim().to_owned() })
    }

    /// Runs its bench, from a copy of its files that is removed afterwards.
    ///
    /// # Errors
    /// When it has none, or it fails.
    pub(super) fn bench(&self, workspace: &Workspace) -> Result<Report> {
        // A place of its own for each: cargo tells them apart by it, since all files of a copy are
        // as old as the commit.
        let copy = folder(workspace).join("revisions").join(&self.commit);
        remove(&copy)?;
        let result = self.unpack(workspace, &copy).and_then(|()| {
            let xtask = |arguments: &[&str]| {
                let mut command = cargo_in(&copy);
                command.args(["run", "--quiet", "--package", "xtask", "--"]).args(arguments);
                // All revisions share a build folder: the libraries of others are the same.
                command.env("CARGO_TARGET_DIR", folder(workspace).join("revisions/build"));
                command
            };
            let mut help = xtask(&["bench", "--help"]);
            let (status, _) =
                process::capture("cargo xtask", help.stderr(Stdio::null()), LIMIT, false)?;
            if !status.success() {
                bail!("it has no bench");
            }
            let mut bench = xtask(&["bench", "--json"]);
            let (status, text) = process::capture("cargo xtask bench", &mut bench, LIMIT, false)?;
            if !status.success() {
                bail!("its bench: {status}");
            }
            Report::read(&text)
        });
        remove(&copy)?;
        result
    }

    fn unpack(&self, workspace: &Workspace, copy: &PathBuf) -> Result<()> {
        fs::create_dir_all(copy)?;
        let mut git = git(workspace);
        git.args(["archive", "--format=tar", &self.commit]);
        let mut archive =
            git.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start git")?;
        let contents = archive.stdout.take().context("git has no stdout")?;
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--directory"]).arg(copy).stdin(contents);
        let unpacked = tar.status().context("cannot start tar")?;
        let packed = archive.wait()?;
        ensure!(packed.success() && unpacked.success(), "git archive: {packed}, tar: {unpacked}");
        Ok(())
    }
}

fn git(workspace: &Workspace) -> Command {
    let mut command = Command::new("git");
    command.arg("-C").arg(&workspace.root);
    command
}

fn remove(folder: &PathBuf) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}
