//! Where the repository, its build folder and cargo are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::architecture::Architecture;
use crate::guests;
use crate::process;
use crate::target::{Source, Target};

/// The repository that this program was built from.
pub(crate) struct Workspace {
    /// Its root folder.
    pub root: PathBuf,
    /// The build folder; `CARGO_TARGET_DIR` and cargo's configuration are honoured.
    pub target: PathBuf,
    /// The forced origin of other targets' standard library.
    pub source: Option<Source>,
}

#[derive(Deserialize)]
struct Metadata {
    workspace_root: PathBuf,
    target_directory: PathBuf,
}

impl Workspace {
    /// Asks cargo.
    ///
    /// # Errors
    /// When cargo cannot read the workspace.
    pub(crate) fn find(source: Option<Source>) -> Result<Self> {
        let mut command = cargo_in(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")));
        command.args(["metadata", "--no-deps", "--format-version=1"]);
        let (status, text) =
            process::capture("cargo metadata", &mut command, Duration::from_secs(120), false)?;
        if !status.success() {
            bail!("cargo metadata: {status}");
        }
        let metadata: Metadata =
            serde_json::from_str(&text).context("cargo metadata printed something else")?;
        Ok(Self { root: metadata.workspace_root, target: metadata.target_directory, source })
    }

    /// Cargo in the root of the workspace.
    pub(crate) fn cargo(&self) -> Command {
        cargo_in(&self.root)
    }

    /// A program of a Linux host, as cargo builds it.
    ///
    /// # Errors
    /// When nothing here runs on this machine's architecture.
    pub(crate) fn program(
        &self,
        architecture: Architecture,
        profile: Profile,
        name: &str,
    ) -> Result<PathBuf> {
        let folder = if architecture == Architecture::native()? {
            self.target.clone()
        } else {
            self.target.join(architecture.linux())
        };
        Ok(folder.join(profile.folder()).join(name))
    }

    /// Builds `pvmsi` and the guests of an architecture in the release profile and returns the
    /// path of `pvmsi`.
    ///
    /// # Errors
    /// When a build fails.
    pub(crate) fn build_pvmsi(&self, architecture: Architecture) -> Result<PathBuf> {
        guests::build(self, architecture)?;
        self.build_program(architecture, "pvmsi")
    }

    /// Builds a package of Linux programs, optimised; the path of the program with its name.
    ///
    /// # Errors
    /// When the build fails.
    pub(crate) fn build_program(
        &self,
        architecture: Architecture,
        package: &str,
    ) -> Result<PathBuf> {
        let target = Target::linux(self, architecture)?;
        process::step(&format!("building {package} for {}", architecture.name()), || {
            let mut command = target.cargo_in(&self.root);
            command.args(["build", "--quiet", "--release", "--package", package]);
            process::run("cargo build", &mut command, Duration::from_secs(1200))
        })?;
        self.program(architecture, Profile::Release, package)
    }

    /// Builds the unit tests of the `pvmsi` package for an architecture and puts them next to it,
    /// as [`MACHINE_TESTS`].
    ///
    /// # Errors
    /// When the build fails.
    pub(crate) fn build_machine_tests(&self, architecture: Architecture) -> Result<()> {
        let mut command = Target::linux(self, architecture)?.cargo_in(&self.root);
        command.args(["test", "--no-run", "--quiet", "--release", "--package", "pvmsi", "--lib"]);
        command.arg("--message-format=json");
        let title = format!("building the machine's tests for {}", architecture.name());
        let (status, text) = process::step(&title, || {
            process::capture("cargo test", &mut command, Duration::from_secs(1200), false)
        })?;
        let executable = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Artifact>(line).ok())
            .find_map(|artifact| artifact.executable)
            .filter(|_| status.success())
            .context("cargo built no tests of pvmsi")?;
        let place = self.program(architecture, Profile::Release, MACHINE_TESTS)?;
        fs::copy(&executable, &place)
            .with_context(|| format!("cannot write {}", place.display()))?;
        Ok(())
    }
}

/// The unit tests of the `pvmsi` package: they build machines where there is a KVM.
pub(crate) const MACHINE_TESTS: &str = "pvmsi-machine-tests";

/// What cargo says of a program that it has built.
#[derive(Deserialize)]
struct Artifact {
    executable: Option<PathBuf>,
}

/// A build profile of cargo.
#[derive(Clone, Copy)]
pub(crate) enum Profile {
    /// What `cargo test` uses.
    Debug,
    /// What demo and lab use.
    Release,
}

impl Profile {
    /// The folder under the build folder.
    pub(crate) fn folder(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Release => "release",
        }
    }
}

/// Cargo in a folder. It is the same cargo that runs this program, so the same toolchain.
pub(crate) fn cargo_in(folder: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(folder);
    // Set by `cargo run` for this program; the next cargo must find its own.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_PKG_NAME"] {
        command.env_remove(name);
    }
    command
}
