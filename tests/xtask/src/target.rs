//! Targets other than this machine's own, ready for cargo: guests, and programs of another architecture.

use std::fs::{self, DirEntry};
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::architecture::Architecture;
use crate::process;
use crate::sysroot::{self, Libraries};
use crate::tools::{self, Tool};
use crate::workspace::{Workspace, cargo_in};

/// Where the standard library for other targets comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Source {
    /// `rustup target add`.
    Rustup,
    /// Built from Debian's `rust-src` of exactly the compiler's version.
    Debian,
}

/// A target that cargo can build for.
pub(crate) struct Target {
    /// None: this machine's own.
    triple: Option<&'static str>,
    /// What cargo must know of it.
    environment: Vec<(String, String)>,
}

impl Target {
    /// The target of an architecture's guests.
    ///
    /// # Errors
    /// When its libraries cannot be had.
    pub(crate) fn bare_metal(workspace: &Workspace, architecture: Architecture) -> Result<Self> {
        let triple = architecture.bare_metal();
        let mut target = Self { triple: Some(triple), environment: Vec::new() };
        let sysroot = libraries(workspace, triple, Libraries::Core)?;
        target.set("RUSTFLAGS", &sysroot.unwrap_or_default());
        Ok(target)
    }

    /// The target of an architecture's Linux programs. Those of another architecture are linked
    /// statically, so that they run without its libraries, and `cargo test` emulates them.
    ///
    /// # Errors
    /// When libraries or tools cannot be had.
    pub(crate) fn linux(workspace: &Workspace, architecture: Architecture) -> Result<Self> {
        if architecture == Architecture::native()? {
            return Ok(Self { triple: None, environment: Vec::new() });
        }
        let triple = architecture.linux();
        let names = architecture.debian();
        tools::install_missing(
            workspace,
            &[
                Tool::program(names.linker, names.linker_package),
                Tool::file(names.library, names.library_package),
                Tool::program(names.user_emulator, "qemu-user"),
            ],
        )?;
        let sysroot = libraries(workspace, triple, Libraries::Std)?.unwrap_or_default();
        let mut target = Self { triple: Some(triple), environment: Vec::new() };
        target.set("LINKER", names.linker);
        target.set("RUNNER", names.user_emulator);
        let flags = format!("-Ctarget-feature=+crt-static {sysroot}");
        target.set("RUSTFLAGS", &flags);
        target.set("RUSTDOCFLAGS", &flags);
        Ok(target)
    }

    /// Cargo in a folder, building for this target.
    pub(crate) fn cargo_in(&self, folder: &Path) -> Command {
        let mut command = cargo_in(folder);
        if let Some(triple) = self.triple {
            // They would replace the flags of the target.
            command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
            command.env("CARGO_BUILD_TARGET", triple);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Sets an entry of cargo's configuration of the target.
    fn set(&mut self, key: &str, value: &str) {
        if let Some(triple) = self.triple {
            let triple = triple.to_uppercase().replace('-', "_");
            self.environment
                .push((format!("CARGO_TARGET_{triple}_{key}"), value.trim_end().to_owned()));
        }
    }
}

/// Makes the libraries of a target available; the compiler's flags that find them, unless it knows
/// by itself. Takes the first origin that works, unless the user has forced one.
fn libraries(
    workspace: &Workspace,
    triple: &'static str,
    libraries: Libraries,
) -> Result<Option<String>> {
    let from_rustup = || from_rustup(workspace, triple).map(|()| None);
    let from_debian = || {
        let release = release(workspace)?;
        let sysroot = sysroot::build(workspace, &release, triple, libraries)?;
        Ok(Some(format!("--sysroot {}", sysroot.display())))
    };
    match workspace.source {
        Some(Source::Rustup) => from_rustup(),
        Some(Source::Debian) => from_debian(),
        None => from_rustup().or_else(|rustup| {
            eprintln!("    not from rustup ({rustup:#}); building it from Debian's sources");
            from_debian().with_context(|| {
                format!(
                    "no target {triple}; install it by other means, for example: rustup target \
                     add {triple}. From rustup: {rustup:#}. From Debian"
                )
            })
        }),
    }
}

fn from_rustup(workspace: &Workspace, triple: &str) -> Result<()> {
    let libraries = rustc(workspace, &["--print", "target-libdir", "--target", triple])?;
    // An installation that has failed may leave the folder without them.
    if fs::read_dir(libraries.trim()).is_ok_and(|mut entries| entries.any(is_core)) {
        return Ok(());
    }
    if !process::available("rustup") {
        bail!("rustup is not installed");
    }
    process::step(&format!("rustup target add {triple}"), || {
        let mut command = Command::new("rustup");
        command.args(["--quiet", "target", "add", triple]).current_dir(&workspace.root);
        process::run("rustup target add", &mut command, Duration::from_secs(180))
    })
}

fn is_core(entry: io::Result<DirEntry>) -> bool {
    entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}

/// The compiler's version, as in "1.95.0".
fn release(workspace: &Workspace) -> Result<String> {
    let text = rustc(workspace, &["--version", "--verbose"])?;
    text.lines()
        .find_map(|line| line.strip_prefix("release: "))
        .map(str::to_owned)
        .context("rustc does not tell its release")
}

/// Asks the compiler, and returns what it prints.
///
/// # Errors
/// When it cannot answer.
pub(crate) fn rustc(workspace: &Workspace, arguments: &[&str]) -> Result<String> {
    let program = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(program)
        .args(arguments)
        .current_dir(&workspace.root)
        .stdin(Stdio::null())
        .output()
        .context("cannot start rustc")?;
    if !output.status.success() {
        bail!("rustc {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
